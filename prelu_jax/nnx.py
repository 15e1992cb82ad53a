"""The NNX twins of `modules`: the same parameters give the same outputs and gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from prelu_jax import pooling, rectifiers


class PReLU(nnx.Module):
    """Parametric rectifier with a learned slope (He et al. 2015, §2.1); see `modules.PReLU`.

    Put it where ``nnx.relu`` stood: ``self.act = pj.nnx.PReLU(64)``, then ``x = self.act(x)``.

    Attributes:
        negative_slope: an `nnx.Param`, ``[num_features]`` or a scalar.
    """

    def __init__(
        self,
        num_features: int | None,
        *,
        negative_slope_init: float = 0.25,
        param_dtype: Any = jnp.float32,
        channel_axis: int = -1,
        constraint: Callable[[jax.Array], jax.Array] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        """Makes the slopes.

        Args:
            num_features: channels of the input; None for one slope shared by all.
            negative_slope_init: the slopes' initial value, 0.25 throughout the paper.
            param_dtype: type of the slopes.
            channel_axis: the axis of the input that holds the channels.
            constraint: applied to the slopes before they are used; none in the paper.
            rngs: taken for the look of other layers; nothing here is random.
        """
        del rngs
        shape = () if num_features is None else (num_features,)
        self.negative_slope = nnx.Param(jnp.full(shape, negative_slope_init, param_dtype))
        self.channel_axis = channel_axis
        self.constraint = constraint

    def __call__(self, x: jax.Array) -> jax.Array:
        """Rectifies an array of any rank; shape and type are kept."""
        slope = self.negative_slope[...]
        if self.constraint is not None:
            slope = self.constraint(slope)
        return rectifiers.prelu(x, slope, channel_axis=self.channel_axis)


class SpatialPyramidPooling(nnx.Module):
    """Max-pools maps of any size into ``Σn²`` bins: ``[b, h, w, c] -> [b, Σn² · c]``.

    Attributes:
        levels: bins per side at each level, e.g. (7, 3, 2, 1) for 63 bins (He et al. 2015).
    """

    def __init__(self, levels: tuple[int, ...]) -> None:
        self.levels = tuple(levels)

    def __call__(self, x: jax.Array) -> jax.Array:
        return pooling.spatial_pyramid(x, self.levels).reshape(x.shape[0], -1)
