"""Moments of every channel of a layer's output, and corrections of them.

Both are in float32 where the output's type is narrower.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prelu_jax.compiling import share_trace
from prelu_jax.signal.reductions import pmax, pmean

# A channel whose std is less than this of its largest value is constant: the rest is rounding.
_CONSTANT = 1e-6
# A channel varies for certain, and its squares fit in float32, if its std is
_SMALL, _LARGE = 1e-15, 1e15  # between these two
_CLEAR = 1e-3  # and above this times its mean.


class Moments(NamedTuple):
    """Moments of every channel, over examples, positions and devices; in the channels' shape.

    Attributes:
        mean: E[y].
        std: the square root of E[(y − E[y])²].
        varies: whether the channel does: not so if it is dead or constant on the batch.
    """

    mean: jax.Array
    std: jax.Array
    varies: jax.Array


class Correction(NamedTuple):
    """y ← scale · y + shift, channel by channel; weights and bias change accordingly."""

    scale: jax.Array | np.ndarray
    shift: jax.Array | np.ndarray

    def of_output(self, y: jax.Array, axes: Sequence[int]) -> jax.Array:
        """Return scale · y + shift along the channels' axes, in y's own type."""
        shape = [1] * y.ndim
        for axis in axes:
            shape[axis] = y.shape[axis]
        return affine(y, self.scale.reshape(shape), self.shift.reshape(shape))


@share_trace("channel_axes", "axis_name")
def of_channels(
    y: jax.Array, channel_axes: tuple[int, ...], axis_name: str | None = None
) -> Moments:
    """Return the moments of an output's channels.

    Where a channel does not vary clearly, or squares may not fit in float32, as of 1e-25, all are
    computed in units of their largest values.

    Args:
        y: the output.
        channel_axes: the axes that count channels, from the end.
        axis_name: the axis of devices under `pmap`, each with as many values as the others.
    """
    others = tuple(i for i in range(y.ndim) if i - y.ndim not in channel_axes)
    y = wide(y)

    def moments(values: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean = pmean(jnp.mean(values, axis=others, keepdims=True), axis_name)
        var = pmean(jnp.mean(jnp.square(values - mean), axis=others, keepdims=True), axis_name)
        return mean, jnp.sqrt(var)

    def in_units() -> Moments:
        largest = pmax(jnp.max(jnp.abs(y), axis=others, keepdims=True), axis_name)
        mean, std = moments(y / jnp.where(largest == 0, 1, largest))
        return Moments(mean * largest, std * largest, std > _CONSTANT)

    mean, std = moments(y)
    varies = (std > _SMALL) & (std < _LARGE) & (std > _CLEAR * jnp.abs(mean))
    result = jax.lax.cond(varies.all(), lambda: Moments(mean, std, varies), in_units)
    return Moments(*(jnp.squeeze(value, others) for value in result))


@share_trace()
def pooled(moments: Moments, weights: jax.Array) -> Moments:
    """Return the moments of several outputs of one layer together.

    In units of the largest moment of each channel, whose square fits in float32.

    Args:
        moments: of each output, along the first axis.
        weights: the share of each in all values of a channel, ``[outputs, ...]``; it may have fewer
            axes than the moments.
    """
    if moments.mean.shape[0] == 1:
        return Moments(*(leaf[0] for leaf in moments))
    share = weights.reshape(*weights.shape, *[1] * (moments.mean.ndim - weights.ndim))
    largest = jnp.maximum(jnp.abs(moments.mean), moments.std).max(axis=0)
    unit = jnp.where(largest == 0, 1, largest)
    means, stds = moments.mean / unit, moments.std / unit
    mean = jnp.sum(share * means, axis=0)
    var = jnp.sum(share * (jnp.square(stds) + jnp.square(means - mean)), axis=0)
    std = jnp.sqrt(var)  # between outputs too: each may be constant in itself
    varies = jnp.any(moments.varies, axis=0) | (std > _CONSTANT)
    return Moments(mean * largest, std * largest, varies)


@share_trace()
def affine(values: jax.Array, scale: Any, shift: Any) -> jax.Array:
    """Return scale · values + shift in the values' own type."""
    precise = wide(values)
    scale, shift = (jnp.asarray(v, precise.dtype) for v in (scale, shift))
    result: jax.Array = precise * scale + shift
    return result.astype(values.dtype)


def wide(values: jax.Array) -> jax.Array:
    """Return the values in float32, or as they are if they are wider."""
    return values.astype(jnp.float32) if jnp.finfo(values.dtype).bits < 32 else values
