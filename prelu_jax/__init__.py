"""prelu_jax: training very deep rectifier networks from scratch, in JAX and Flax.

After He, Zhang, Ren & Sun 2015, "Delving Deep into Rectifiers" (arXiv:1502.01852).

A public name is imported when it is first used: commands that need neither JAX nor Flax, such as
`--help`, do not wait for them.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prelu_jax import activations, arch, datadep, initializers, models, nnx, signal, theory
    from prelu_jax.cosines import tailored_slope
    from prelu_jax.datadep import calibrate
    from prelu_jax.decay import decay_mask
    from prelu_jax.diagnosis import diagnose
    from prelu_jax.modules import PReLU, SpatialPyramidPooling
    from prelu_jax.pooling import spatial_pyramid
    from prelu_jax.rectifiers import leaky_relu, prelu, relu

__version__ = "0.1.0"

__all__ = [
    "PReLU",
    "SpatialPyramidPooling",
    "activations",
    "arch",
    "calibrate",
    "datadep",
    "decay_mask",
    "diagnose",
    "initializers",
    "leaky_relu",
    "models",
    "nnx",
    "prelu",
    "relu",
    "signal",
    "spatial_pyramid",
    "tailored_slope",
    "theory",
]

# The submodule of every public name that is not one itself.
_HOMES = {
    "PReLU": "modules",
    "SpatialPyramidPooling": "modules",
    "calibrate": "datadep",
    "decay_mask": "decay",
    "diagnose": "diagnosis",
    "leaky_relu": "rectifiers",
    "prelu": "rectifiers",
    "relu": "rectifiers",
    "spatial_pyramid": "pooling",
    "tailored_slope": "cosines",
}


def __getattr__(name: str) -> Any:
    home = f"{__name__}.{_HOMES.get(name, name)}"
    if name.startswith("_") or not importlib.util.find_spec(home):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(home)
    value = getattr(module, name) if name in _HOMES else module
    globals()[name] = value  # so that this function is not called again
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
