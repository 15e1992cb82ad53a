"""Moments of every channel of a layer's output, in float32 where its type is narrower."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from prelu_jax.signal.sites import Axes

# A channel whose std is less than this of its largest value is constant: what is left is rounding.
_CONSTANT = 1e-6


class Moments(NamedTuple):
    """Of every channel, over examples, positions and devices; in the channels' shape.

    Attributes:
        mean: E[y].
        std: the square root of E[(y − E[y])²].
        varies: whether the channel does: not so if it is dead or constant on the batch.
    """

    mean: jax.Array
    std: jax.Array
    varies: jax.Array


def of_channels(y: jax.Array, channel_axes: Axes, axis_name: str | None = None) -> Moments:
    """The moments of an output's channels.

    Each is computed in units of its largest value: squares of 1e-25 do not fit in float32.

    Args:
        y: the output.
        channel_axes: the axes that count channels, from the end.
        axis_name: the axis of devices under `pmap`, each with as many values as the others.
    """
    others = tuple(i for i in range(y.ndim) if i - y.ndim not in channel_axes)
    y = wide(y)
    largest = jnp.max(jnp.abs(y), axis=others, keepdims=True)
    largest = largest if axis_name is None else jax.lax.pmax(largest, axis_name)
    unit = y / jnp.where(largest == 0, 1, largest)
    mean = _pmean(jnp.mean(unit, axis=others, keepdims=True), axis_name)
    var = _pmean(jnp.mean(jnp.square(unit - mean), axis=others, keepdims=True), axis_name)
    largest, mean, std = (jnp.squeeze(v, others) for v in (largest, mean, jnp.sqrt(var)))
    return Moments(mean * largest, std * largest, std > _CONSTANT)


def pooled(moments: Sequence[Moments], counts: Sequence[int]) -> Moments:
    """The moments of several outputs of one layer together.

    In units of the largest moment of each channel, whose square fits in float32.

    Args:
        moments: of each output.
        counts: how many values of a channel each has.
    """
    if len(moments) == 1:
        return moments[0]
    weights = [count / sum(counts) for count in counts]
    largest = jnp.stack([jnp.maximum(jnp.abs(m.mean), m.std) for m in moments]).max(axis=0)
    unit = jnp.where(largest == 0, 1, largest)
    means, stds = [m.mean / unit for m in moments], [m.std / unit for m in moments]
    mean = sum(w * m for w, m in zip(weights, means, strict=True))
    var = sum(
        w * (jnp.square(s) + jnp.square(m - mean))
        for w, m, s in zip(weights, means, stds, strict=True)
    )
    varies = jnp.any(jnp.stack([m.varies for m in moments]), axis=0)
    return Moments(mean * largest, jnp.sqrt(var) * largest, varies)


def wide(values: jax.Array) -> jax.Array:
    """The values in float32, or as they are if they are wider."""
    return values.astype(jnp.float32) if jnp.finfo(values.dtype).bits < 32 else values


def _pmean(value: jax.Array, axis_name: str | None) -> jax.Array:
    return value if axis_name is None else jax.lax.pmean(value, axis_name)
