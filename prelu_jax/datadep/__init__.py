"""Data-dependent initialisation (Krähenbühl et al. 2015; LSUV, Mishkin & Matas 2015)."""

from prelu_jax.datadep.between_layer import BetweenLayer
from prelu_jax.datadep.calibration import REGISTRY, Method, calibrate, resolve
from prelu_jax.datadep.from_patches import FromPatches
from prelu_jax.datadep.methods import Lsuv, WithinLayer
from prelu_jax.datadep.report import CalibrationReport

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
