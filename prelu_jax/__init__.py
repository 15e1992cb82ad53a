"""prelu_jax: training very deep rectifier networks from scratch, in JAX and Flax.

After He, Zhang, Ren & Sun 2015, "Delving Deep into Rectifiers" (arXiv:1502.01852).
"""

from prelu_jax import arch, datadep, initializers, models, nnx, signal, theory
from prelu_jax.datadep import calibrate
from prelu_jax.diagnosis import diagnose
from prelu_jax.modules import PReLU, SpatialPyramidPooling
from prelu_jax.pooling import spatial_pyramid
from prelu_jax.rectifiers import leaky_relu, prelu, relu

__version__ = "0.1.0"

__all__ = [
    "PReLU",
    "SpatialPyramidPooling",
    "arch",
    "calibrate",
    "datadep",
    "diagnose",
    "initializers",
    "leaky_relu",
    "models",
    "nnx",
    "prelu",
    "relu",
    "signal",
    "spatial_pyramid",
    "theory",
]
