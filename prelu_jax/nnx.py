"""The NNX twins of `modules`: the same parameters give the same outputs and gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from prelu_jax import pooling, rectifiers


class PReLU(nnx.Module):
    """Parametric rectifier with a learned slope (He et al. 2015, §2.1); see `modules.PReLU`.

    Use it in the place of ``nnx.relu``: ``self.act = pj.nnx.PReLU(64)``, then ``x = self.act(x)``.

    Attributes:
        negative_slope: an `nnx.Param`, ``[num_features]`` or a scalar.
    """

    def __init__(
        self,
        num_features: int | None,
        *,
        negative_slope_init: jax.typing.ArrayLike = 0.25,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        channel_axis: int = -1,
        constraint: Callable[[jax.Array], jax.Array] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        """Create the slopes.

        Args:
            num_features: channels of the input; None for one slope shared by all.
            negative_slope_init: the slopes' initial value, 0.25 throughout the paper; or an array
                of one value per channel.
            param_dtype: type of the slopes.
            channel_axis: the axis of the input that holds the channels.
            constraint: applied to the slopes before they are used; none in the paper.
            rngs: not used, as nothing here is random; accepted like other layers do.

        Raises:
            TypeError: an argument is of a wrong type.
            ValueError: ``num_features`` is below 1, or the initial value does not fit it.
        """
        del rngs
        if num_features is not None:
            _check_features(num_features)
        shape = () if num_features is None else (int(num_features),)
        rectifiers.check_slope_init(negative_slope_init, shape, param_dtype)
        self.negative_slope = nnx.Param(jnp.full(shape, negative_slope_init, param_dtype))
        self.channel_axis = channel_axis
        self.constraint = constraint

    def __call__(self, x: jax.Array) -> jax.Array:
        """Rectify an array of any rank; shape and type are kept.

        Raises:
            TypeError: the array is not floating-point.
            ValueError: the array has no ``channel_axis``, or the slopes do not fit it.
        """
        slope = self.negative_slope[...]
        if self.constraint is not None:
            slope = self.constraint(slope)
        return rectifiers.prelu(x, slope, channel_axis=self.channel_axis)


class SpatialPyramidPooling(nnx.Module):
    """Max pooling of maps of any size into ``Σn²`` bins: ``[b, h, w, c] -> [b, Σn² · c]``.

    Attributes:
        levels: bins per side at each level, e.g. (7, 3, 2, 1) for 63 bins (He et al. 2015).
    """

    def __init__(self, levels: tuple[int, ...]) -> None:
        pooling.check_levels("SpatialPyramidPooling", levels)
        self.levels = tuple(levels)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Pool maps.

        Raises:
            TypeError: the maps are complex numbers, or the levels are not integers.
            ValueError: the maps are not ``[b, h, w, c]``, have no pixels, or a level is below 1.
        """
        return pooling.flat_pyramid(x, self.levels)


def _check_features(num_features: Any) -> None:
    if isinstance(num_features, bool) or not isinstance(num_features, int | np.integer):
        raise TypeError(
            f"PReLU: num_features is {num_features!r}, expected an integer, the channels of the "
            "input, or None for one slope shared by all."
        )
    if num_features < 1:
        raise ValueError(f"PReLU: num_features is {num_features}, expected at least 1.")
