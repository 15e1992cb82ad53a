"""Moments of activations and gradients, reduced on the device to a few float32 numbers a channel.

A second moment is kept as a scale, the largest absolute value, and mean((values / scale)²) of every
channel. Signals that vanish or explode are the subject here, and the square of 1e-25 or 1e25 does
not fit in float32; the host multiplies in double precision (`second_moment`). The host also takes
the means over channels (`signal.rows`): for XLA each would be a program to compile.

Under `pmap`, ``axis_name`` names the axis of devices, each with as many examples as the others:
the numbers are then those of all devices' examples together.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prelu_jax.compiling import share_trace
from prelu_jax.tracing.counts import ByAxis

Axes = tuple[int, ...]  # from the end


class SecondMoments(NamedTuple):
    """Second moments of every channel, float32.

    Attributes:
        scale: the unit, a scalar.
        means: mean((values / scale)²) of every channel, ``[channels]``.
    """

    scale: jax.Array
    means: jax.Array


@share_trace("channel_axes")
def scaled(values: jax.Array, channel_axes: Axes = ()) -> SecondMoments:
    """Return one device's second moments, in units of the largest absolute value.

    Without channel axes all values are of one channel.
    """
    values = values.astype(jnp.float32)
    scale = jnp.max(jnp.abs(values))
    means = jnp.mean(jnp.square(values / _divisor(scale)), axis=_others(values, channel_axes))
    return SecondMoments(scale, means.ravel())


@share_trace()
def in_units(values: jax.Array, scale: jax.Array) -> SecondMoments:
    """Return the mean square of all values, in one pass.

    Args:
        values: floats.
        scale: a unit in which their squares fit in float32.
    """
    square = jnp.mean(jnp.square(values.astype(jnp.float32) / _divisor(scale)))
    return SecondMoments(scale, square[None])


@share_trace("channel_axis", "by_axis")
def scaled_and_weighted(
    values: jax.Array, scale: jax.Array, channel_axis: int, by_axis: ByAxis
) -> tuple[SecondMoments, SecondMoments]:
    """Return the mean square of every channel and the weighted one of all values, in one pass.

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
    return SecondMoments(scale, means), SecondMoments(scale, weighted[None])


def _weighted(values: jax.Array, by_axis: ByAxis) -> jax.Array:
    """Return values times weights along axes."""
    for axis, weights in by_axis:
        shape = [-1 if i == axis else 1 for i in range(values.ndim)]
        values = values * np.asarray(weights, np.float32).reshape(shape)
    return values


def _others(values: jax.Array, channel_axes: Axes) -> Axes:
    return tuple(i for i in range(values.ndim) if i - values.ndim not in channel_axes)


def of_all_devices(local: SecondMoments, axis_name: str | None) -> SecondMoments:
    """Return the second moments over all devices, from each device's own."""
    if axis_name is None:
        return local
    scale = pmax(local.scale, axis_name)
    own = jnp.square(local.scale / _divisor(scale))
    return SecondMoments(scale, pmean(local.means * own, axis_name))


def second_moment(scale: Any, square: Any) -> float:
    """Return scale² · square, in double precision on the host."""
    return float(scale) * float(scale) * float(square)


@share_trace("channel_axes", "batch_size", "axis_name", "by_axis", "stored")
def of_channels(
    values: jax.Array,
    channel_axes: Axes,
    batch_size: int,
    axis_name: str | None,
    by_axis: ByAxis = (),
    *,
    stored: bool = False,
) -> dict[str, jax.Array]:
    """Return moments of every channel, and the sums of the cosine between examples.

    Args:
        values: a layer's input or output. Its first axis counts examples if it has ``batch_size``
            entries.
        channel_axes: the axes that count channels, from the end.
        batch_size: the number of examples on this device.
        axis_name: the axis of devices under `pmap`.
        by_axis: weights along axes, whose product is the weight of an entry.
        stored: whether the values stay in memory for the backward pass anyway. They are then
            flattened for the cosine, which is faster; XLA would store other values if they were
            flattened, instead of recomputing them.

    Returns:
        float32. ``scale``, the largest absolute value; of every channel the ``lowest`` and the
        ``highest`` value, and the ``mean`` and ``var`` of values / scale. ``weighted``, the mean of
        weight · (values / scale)². Of examples, as unit vectors û_i: ``vectors``, the number n of
        those other than 0, and ``resultant``, |Σ_i û_i|², from which the mean cosine of different
        examples follows without any pair, as Σ_{i≠j} û_i·û_j = |Σ_i û_i|² − n. Both are absent
        where the first axis counts no examples.
    """
    # Four passes over the values, most of a measurement's time. Two are for the variance:
    # E[y²] − E[y]² is inexact under a large mean. Both first keep the axes that have weights, so
    # that the weighted mean needs no pass of its own.
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
    local = jnp.mean(at_place, axis=rest, keepdims=True) if rest else at_place
    mean = pmean(local, axis_name)
    spread = jnp.mean(jnp.square(unit - local), axis=reduced, keepdims=True)
    var = jnp.mean(spread, axis=rest, keepdims=True) if rest else spread
    if axis_name is not None:
        var = pmean(var + jnp.square(local - mean), axis_name)
    squares = spread + 2 * local * at_place - jnp.square(local)  # E[(x / scale)²] at each place
    weighted = pmean(jnp.mean(_weighted(squares, by_axis)), axis_name)
    vectors = unit.reshape(len(unit), -1) if stored and unit.ndim > 1 else unit
    of_each = {"lowest": lowest, "highest": highest, "mean": mean, "var": var}
    return {
        "scale": scale,
        **{name: value.ravel() for name, value in of_each.items()},
        "weighted": weighted,
        **_of_vectors(vectors, batch_size, axis_name),
    }


def _of_vectors(values: jax.Array, batch_size: int, axis_name: str | None) -> dict[str, jax.Array]:
    """Return ``vectors`` and ``resultant`` of `of_channels`."""
    if values.ndim < 2 or values.shape[0] != batch_size:
        return {}
    norm = jnp.sqrt(jnp.sum(jnp.square(values.reshape(batch_size, -1)), axis=1))
    norm = norm.reshape(-1, *(1,) * (values.ndim - 1))
    total = psum(jnp.sum(values / _divisor(norm), axis=0), axis_name)
    return {
        "vectors": psum(jnp.sum(norm > 0, dtype=jnp.float32), axis_name),
        "resultant": jnp.sum(jnp.square(total)),
    }


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
    """Return this device's part of ⟨η, outputs⟩; the sum over devices is the whole.

    Its gradient at the outputs is the noise η of `gaussian_like` (Krähenbühl et al. 2015). Outputs
    that are not floats are left out.
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
