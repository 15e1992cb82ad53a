"""Moments of activations and gradients, reduced on the device to a handful of float32 numbers.

A second moment is kept as ``[scale, mean((values / scale)²), ...]``, a mean for every channel, with
the scale the largest absolute value. Signals that vanish or explode are the subject here, and the
square of 1e-25 or 1e25 does not fit in float32; the host multiplies in double precision
(`second_moment`).

Under `pmap`, ``axis_name`` names the axis of devices, each with as many examples as the others:
the numbers are then those of all devices' examples together.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prelu_jax.tracing.counts import ByAxis

Local = jax.Array  # float32[1 + channels]: scale, mean((values / scale)²) of every channel
Axes = tuple[int, ...]  # from the end


def scaled(values: jax.Array, channel_axes: Axes = ()) -> Local:
    """Return one device's second moments of an array of floats, float32[1 + channels].

    Without channel axes all values are of one channel.
    """
    values = values.astype(jnp.float32)
    scale = jnp.max(jnp.abs(values))
    means = jnp.mean(jnp.square(values / _divisor(scale)), axis=_others(values, channel_axes))
    return jnp.concatenate([scale[None], means.ravel()])


def in_units(values: jax.Array, scale: jax.Array) -> Local:
    """Return ``scale`` and the mean of (values / scale)², float32[2], in one pass.

    Args:
        values: floats.
        scale: a unit in which their squares fit in float32.
    """
    return jnp.stack([scale, jnp.mean(jnp.square(values.astype(jnp.float32) / _divisor(scale)))])


def scaled_and_weighted(
    values: jax.Array, scale: jax.Array, channel_axis: int, by_axis: ByAxis
) -> tuple[Local, Local]:
    """Return `scaled`, and ``scale`` with the mean of weight · (values / scale)², in one pass.

    Args:
        values: floats.
        scale: the largest absolute value, a scalar.
        channel_axis: the axis that counts channels.
        by_axis: weights along axes, whose product is the weight of an entry.
    """
    squares = jnp.square(values.astype(jnp.float32) / _divisor(scale))
    channel_axis %= values.ndim
    kept = {channel_axis, *(axis for axis, _ in by_axis)}
    others = tuple(i for i in range(values.ndim) if i not in kept)
    squares = jnp.mean(squares, axis=others, keepdims=True)
    means = jnp.mean(squares, axis=tuple(i for i in range(values.ndim) if i != channel_axis))
    weighted = jnp.mean(_weighted(squares, by_axis))
    return jnp.concatenate([scale[None], means]), jnp.stack([scale, weighted])


def _weighted(values: jax.Array, by_axis: ByAxis) -> jax.Array:
    """Return values times weights along axes."""
    for axis, weights in by_axis:
        shape = [-1 if i == axis else 1 for i in range(values.ndim)]
        values = values * np.asarray(weights, np.float32).reshape(shape)
    return values


def _others(values: jax.Array, channel_axes: Axes) -> Axes:
    return tuple(i for i in range(values.ndim) if i - values.ndim not in channel_axes)


def summarised(local: Local, axis_name: str | None) -> dict[str, jax.Array]:
    """Return the second moment over all devices, from each device's `scaled`.

    It is ``scale`` and ``square``, the mean of (values / scale)²; ``spread`` is `channel_spread`.
    """
    scale = pmax(local[0], axis_name)
    means = pmean(local[1:] * jnp.square(local[0] / _divisor(scale)), axis_name)
    return {"scale": scale, "square": jnp.mean(means), "spread": channel_spread(means)}


def channel_spread(second_moments: jax.Array) -> jax.Array:
    """Return the unbiased variance over channels of their second moments, over their squared mean.

    Channels of a layer with independent weights are independent given its input, so this over
    their number is the relative variance of the layer's second moment. 0 for zeros and one channel.
    """
    count = second_moments.size
    unbiased = jnp.var(second_moments) * (count / max(count - 1, 1))
    return unbiased / _divisor(jnp.square(jnp.mean(second_moments)))


def second_moment(scale: Any, square: Any) -> float:
    """Return scale² · square, in double precision on the host."""
    return float(scale) * float(scale) * float(square)


def of_output(
    y: jax.Array, channel_axes: Axes, batch_size: int, axis_name: str | None
) -> dict[str, jax.Array]:
    """Return moments, dead channels and collapse of a layer's output.

    Args:
        y: the output. Its first axis counts examples if it has ``batch_size`` entries.
        channel_axes: the axes that count channels, from the end.
        batch_size: the number of examples on this device.
        axis_name: the axis of devices under `pmap`.

    Returns:
        float32 scalars: ``scale``, the largest absolute value; ``mean`` of y / scale; ``var`` of
        y / scale; ``spread``, its `channel_spread`; ``minimum`` of y / scale; ``dead``, the
        fraction of channels with y <= 0 for every example and position; ``cosine``, the mean of
        cos(y_i, y_j) over the pairs of different examples i ≠ j with outputs other than zero, nan
        where there is no pair or the first axis counts no examples.
    """
    channels = _channels(y, channel_axes, axis_name)
    unit = channels.unit
    flat = unit.reshape(len(unit), -1) if unit.ndim > 1 else unit  # faster
    return {
        **_summary(channels),
        "dead": jnp.mean(channels.highest <= 0, dtype=jnp.float32),
        "cosine": _cosine(flat, batch_size, axis_name),
    }


def of_input(
    x: jax.Array, batch_size: int, axis_name: str | None, by_axis: ByAxis = ()
) -> dict[str, jax.Array]:
    """Return moments and cosine of a layer's input, and the share of its channels always 0.

    Args:
        x: the input, its channels along the last axis.
        batch_size: the number of examples on this device.
        axis_name: the axis of devices under `pmap`.
        by_axis: weights along axes, whose product is the weight of an entry.

    Returns:
        float32 scalars: ``scale``, ``mean``, ``var``, ``spread``, ``minimum`` and ``cosine`` as in
        `of_output`; ``zero``, the fraction of channels that are 0 for every example and position;
        ``weighted``, the mean of weight · (x / scale)².
    """
    channels = _channels(x, (-1,), axis_name, by_axis)
    zero = (channels.highest == 0) & (channels.lowest == 0)
    # Not flattened as in of_output: XLA would store x instead of recomputing it.
    return {
        **_summary(channels),
        "zero": jnp.mean(zero, dtype=jnp.float32),
        "weighted": channels.weighted,
        "cosine": _cosine(channels.unit, batch_size, axis_name),
    }


class _Channels(NamedTuple):
    """Moments of every channel, over all devices, in units of the largest absolute value."""

    unit: jax.Array  # this device's values / scale, in their own shape
    scale: jax.Array  # []
    lowest: jax.Array  # [channels], and so on
    highest: jax.Array
    mean: jax.Array
    var: jax.Array
    weighted: jax.Array  # [], the weighted mean square


def _channels(
    values: jax.Array, channel_axes: Axes, axis_name: str | None, by_axis: ByAxis = ()
) -> _Channels:
    """Return the statistics in four passes over the values, most of a measurement's time.

    Two passes are for the variance: E[y²] − E[y]² is inexact under a large mean. Both first keep
    the axes that have weights, so that the weighted mean needs no pass of its own.
    """
    values = values.astype(jnp.float32)
    others = _others(values, channel_axes)
    lowest = -pmax(-jnp.min(values, axis=others, keepdims=True), axis_name)
    highest = pmax(jnp.max(values, axis=others, keepdims=True), axis_name)
    scale = jnp.maximum(jnp.max(highest), -jnp.min(lowest))
    unit = values / _divisor(scale)
    weighted_axes = {axis for axis, _ in by_axis}
    reduced = tuple(i for i in others if i not in weighted_axes)
    rest = tuple(i for i in others if i in weighted_axes)
    at_place = jnp.mean(unit, axis=reduced, keepdims=True)
    local = jnp.mean(at_place, axis=rest, keepdims=True)
    mean = pmean(local, axis_name)
    spread = jnp.mean(jnp.square(unit - local), axis=reduced, keepdims=True)
    var = jnp.mean(spread, axis=rest, keepdims=True)
    var = pmean(var + jnp.square(local - mean), axis_name)
    squares = spread + 2 * local * at_place - jnp.square(local)  # E[(x / scale)²] at each place
    weighted = pmean(jnp.mean(_weighted(squares, by_axis)), axis_name)
    lowest, highest = lowest / _divisor(scale), highest / _divisor(scale)
    return _Channels(unit, scale, lowest, highest, mean, var, weighted)


def _summary(channels: _Channels) -> dict[str, jax.Array]:
    return {
        "scale": channels.scale,
        "mean": jnp.mean(channels.mean),
        "var": jnp.mean(channels.var) + jnp.var(channels.mean),
        "spread": channel_spread(channels.var + jnp.square(channels.mean)),
        "minimum": jnp.min(channels.lowest),
    }


def _cosine(values: jax.Array, batch_size: int, axis_name: str | None) -> jax.Array:
    """Return the mean cosine of different examples; nan if the first axis counts no examples.

    Σ_{i≠j} û_i·û_j = |Σ_i û_i|² − n for n unit vectors û_i: no pair is formed.
    """
    if values.ndim < 2 or values.shape[0] != batch_size:
        return jnp.full((), jnp.nan, jnp.float32)
    norm = jnp.sqrt(jnp.sum(jnp.square(values.reshape(batch_size, -1)), axis=1))
    norm = norm.reshape(-1, *(1,) * (values.ndim - 1))
    n = psum(jnp.sum(norm > 0, dtype=jnp.float32), axis_name)
    total = psum(jnp.sum(values / _divisor(norm), axis=0), axis_name)
    pairs = n * (n - 1)
    cosine = (jnp.sum(jnp.square(total)) - n) / _divisor(pairs)
    return jnp.where((pairs > 0) | jnp.isnan(cosine), cosine, jnp.nan)


def gaussian_like(
    key: jax.Array, outputs: list[jax.Array], batch_size: int, axis_name: str | None
) -> list[jax.Array]:
    """Return independent standard normal entries, float32, in the shapes of the outputs.

    Where an output's first axis counts the examples, each example's noise follows from the key and
    its number among all devices' examples, however they are split over devices.
    """
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * batch_size
    numbers = first + jnp.arange(batch_size)

    def noise(key: jax.Array, output: jax.Array) -> jax.Array:
        if output.ndim == 0 or output.shape[0] != batch_size:
            return jax.random.normal(key, output.shape, jnp.float32)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
        return jax.vmap(lambda k: jax.random.normal(k, output.shape[1:], jnp.float32))(keys)

    return [noise(jax.random.fold_in(key, i), output) for i, output in enumerate(outputs)]


def noise_objective(
    outputs: Any, key: jax.Array, batch_size: int, axis_name: str | None
) -> jax.Array:
    """Return ⟨η, outputs⟩ of `gaussian_like` noise η: the gradient at the outputs is η itself.

    It is this device's part: the sum over devices is the whole. Outputs other than floats are left
    out (Krähenbühl et al. 2015).
    """
    floats = [
        jnp.asarray(y, jnp.float32)
        for y in jax.tree.leaves(outputs)
        if hasattr(y, "dtype") and jnp.issubdtype(y.dtype, jnp.floating)
    ]
    noise = gaussian_like(key, floats, batch_size, axis_name)
    return jnp.sum(jnp.stack([jnp.vdot(n, y) for n, y in zip(noise, floats, strict=True)]))


def _divisor(scale: jax.Array) -> jax.Array:
    """Return the scale, or 1 where it is 0: zeros divided by it stay zeros."""
    return jnp.where(scale == 0, jnp.ones_like(scale), scale)


def pmean(values: Any, axis_name: str | None) -> Any:
    """Return a pytree's mean over the devices."""
    return values if axis_name is None else jax.lax.pmean(values, axis_name)


def psum(values: Any, axis_name: str | None) -> Any:
    """Return a pytree's sum over the devices."""
    return values if axis_name is None else jax.lax.psum(values, axis_name)


def pmax(values: Any, axis_name: str | None) -> Any:
    """Return a pytree's maximum over the devices."""
    return values if axis_name is None else jax.lax.pmax(values, axis_name)
