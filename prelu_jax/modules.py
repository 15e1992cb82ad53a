"""Flax Linen modules: parametric rectifier, spatial pyramid, dropout with one mask per example."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from prelu_jax import pooling, rectifiers, streams


class PReLU(nn.Module):
    """Parametric rectifier with a learned slope (He et al. 2015, §2.1).

    Use it in the place of ``nn.relu``: ``x = pj.PReLU()(x)``. Its parameter is called
    'negative_slope'. The slope must not decay, because decay would pull the network towards ReLU;
    `pj.decay_mask` selects the kernels alone.

    Attributes:
        channel_shared: one slope for the layer instead of one per channel.
        negative_slope_init: the slopes' initial value, 0.25 throughout the paper; or an array of
            one value per channel.
        param_dtype: type of the slopes; their gradient is always summed in float32 or wider.
        channel_axis: the axis of the input that holds the channels.
        constraint: applied to the slopes before they are used, e.g.
            ``lambda a: jnp.clip(a, 0, 1)``; none in the paper.
    """

    channel_shared: bool = False
    negative_slope_init: jax.typing.ArrayLike = 0.25
    param_dtype: jax.typing.DTypeLike = jnp.float32
    channel_axis: int = -1
    constraint: Callable[[jax.Array], jax.Array] | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Rectify an array of any rank; shape and type are kept.

        Raises:
            TypeError: the array is not floating-point, or an attribute is of a wrong type.
            ValueError: the array has no ``channel_axis``, or the slopes do not fit it.
        """
        if not isinstance(self.channel_shared, bool):  # PReLU(64) is the form of NNX
            raise TypeError(
                f"PReLU: channel_shared is {self.channel_shared!r}, expected True or False. The "
                "Linen module reads the number of channels from its input."
            )
        x = rectifiers.floating("x", x)
        shape = () if self.channel_shared else (rectifiers.num_channels(x, self.channel_axis),)
        rectifiers.check_slope_init(self.negative_slope_init, shape, self.param_dtype)
        init = nn.initializers.constant(self.negative_slope_init)
        slope = self.param("negative_slope", init, shape, self.param_dtype)
        if self.constraint is not None:
            slope = self.constraint(slope)
        return rectifiers.prelu(x, slope, channel_axis=self.channel_axis)


class SpatialPyramidPooling(nn.Module):
    """Max pooling of maps of any size into ``Σn²`` bins: ``[b, h, w, c] -> [b, Σn² · c]``.

    Attributes:
        levels: bins per side at each level, e.g. (7, 3, 2, 1) for 63 bins (He et al. 2015).
    """

    levels: tuple[int, ...]

    def __call__(self, x: jax.Array) -> jax.Array:
        """Pool maps.

        Raises:
            TypeError: the maps are complex numbers, or the levels are not integers.
            ValueError: the maps are not ``[b, h, w, c]``, have no pixels, or a level is below 1.
        """
        return pooling.flat_pyramid(x, self.levels)


class Dropout(nn.Module):
    """Dropout whose mask for an example depends only on its place in the global batch.

    Each example has the same mask for any number of devices, so that one device and many compute
    the same step. `flax.linen.Dropout` draws one mask for the whole array.

    Attributes:
        rate: the probability that a unit is dropped; the others are divided by ``1 - rate``.
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, first_example: jax.typing.ArrayLike = 0
    ) -> jax.Array:
        """Drop units of ``[b, features]``; ``first_example`` is row 0's index in the batch.

        Raises:
            ValueError: the rate is not in [0, 1).
        """
        if not 0 <= self.rate < 1:
            raise ValueError(f"Dropout: rate is {self.rate}, expected a number in [0, 1).")
        if not train or self.rate == 0.0:
            return x
        keys = streams.by_example(self.make_rng("dropout"), x.shape[0], first_example)
        kept = jnp.float32(1 - self.rate)
        keep = jax.vmap(lambda k: jax.random.bernoulli(k, kept, x.shape[1:]))(keys)
        return jnp.where(keep, x / (1 - self.rate), jnp.zeros_like(x))
