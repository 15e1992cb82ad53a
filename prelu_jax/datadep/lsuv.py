"""Layer-sequential unit variance (Mishkin & Matas 2015)."""

import dataclasses
import numbers
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from prelu_jax import initializers
from prelu_jax.datadep import options
from prelu_jax.datadep.layers import Layer
from prelu_jax.datadep.method import OnePass
from prelu_jax.datadep.moments import Moments
from prelu_jax.datadep.places import Correction


@dataclasses.dataclass(frozen=True)
class Lsuv(OnePass):
    """Every affine layer's output to a variance of 1 over examples, positions and channels.

    Orthonormal kernels and biases of 0, then W ← W / √Var(y), layer by layer in execution order.
    An output is proportional to its kernel and bias, so that one division is exact where the
    published loop measures again. The mean is left alone.

    Attributes:
        orthonormal: draw the kernels anew; False keeps kernels and biases as they are given.
        tolerance: layers with |Var(y) − 1| below it are left alone, as the published loop does
            (its authors' code has 0.02); with it, the same weights are reached as by that loop.
    """

    orthonormal: bool = True
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        options.check_type(self, "orthonormal", bool)
        options.check_type(self, "tolerance", numbers.Real)
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"lsuv: tolerance is {self.tolerance}, expected 0 (none) to below 1.")

    def draw(self, layer: Layer, shape: Sequence[int], key: jax.Array) -> jax.Array | None:
        """Return orthonormal weights in the layer's own layout."""
        if not self.orthonormal:
            return None
        return initializers.orthogonal(layout=layer.layout)(key, shape, jnp.float32)

    def correction(self, moments: Moments, has_bias: bool) -> Correction:
        """The same scale for every channel, 1 if nothing varies; no shift."""
        std = _std(moments)
        near = jnp.abs(jnp.square(std) - 1) < self.tolerance
        scale = 1 / jnp.where(near | (std == 0), 1, std)
        return Correction(jnp.full_like(moments.std, scale), jnp.zeros_like(moments.std))

    def error(self, moments: Moments, has_bias: bool) -> float:
        """How far the variance is from its target; 0 within the tolerance."""
        off = abs(float(_std(moments)) ** 2 - 1)
        return off if off >= self.tolerance and moments.varies.any() else 0.0


def _std(moments: Moments) -> jax.Array:
    """Of the whole output, within channels and between their means.

    In units of the largest moment, whose square fits in float32.
    """
    largest = jnp.maximum(jnp.abs(moments.mean), moments.std).max()
    unit = jnp.where(largest == 0, 1, largest)
    return jnp.sqrt(jnp.square(moments.std / unit).mean() + (moments.mean / unit).var()) * largest
