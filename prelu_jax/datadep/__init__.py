"""Data-dependent initialisation (Krähenbühl et al. 2015; LSUV, Mishkin & Matas 2015)."""

from prelu_jax.datadep.between_layer import BetweenLayer
from prelu_jax.datadep.calibration import calibrate
from prelu_jax.datadep.from_patches import FromPatches
from prelu_jax.datadep.lsuv import Lsuv
from prelu_jax.datadep.registry import REGISTRY, Method, resolve
from prelu_jax.datadep.report import CalibrationReport
from prelu_jax.datadep.within_layer import WithinLayer

__all__ = [
    "REGISTRY",
    "BetweenLayer",
    "CalibrationReport",
    "FromPatches",
    "Lsuv",
    "Method",
    "WithinLayer",
    "calibrate",
    "resolve",
]
