"""Moments of activations and gradients, reduced on the device to a handful of float32 numbers.

A second moment is kept as ``[scale, mean((values / scale)²)]`` with the scale the largest absolute
value. Signals that vanish or explode are the subject here, and the square of 1e-25 or 1e25 does
not fit in float32; the host multiplies in double precision (`second_moment`).

Under `pmap`, ``axis_name`` names the axis of devices, each with as many examples as the others:
the numbers are then those of all devices' examples together.
"""

from typing import Any

import jax
import jax.numpy as jnp

Local = jax.Array  # float32[2]: scale, mean((values / scale)²)


def scaled(values: jax.Array) -> Local:
    """One device's second moment of an array of floats, any shape, as float32[2]."""
    values = values.astype(jnp.float32)
    scale = jnp.max(jnp.abs(values))
    return jnp.stack([scale, jnp.mean(jnp.square(values / _divisor(scale)))])


def combine(local: Local, axis_name: str | None) -> Local:
    """The second moment over all devices, from each device's `scaled`."""
    if axis_name is None:
        return local
    scale = jax.lax.pmax(local[0], axis_name)
    mean = jax.lax.pmean(local[1] * jnp.square(local[0] / _divisor(scale)), axis_name)
    return jnp.stack([scale, mean])


def second_moment(pair: Any) -> float:
    """The number itself, in double precision, from a `scaled` or a `combine` on the host."""
    scale, mean = (float(part) for part in pair)
    return scale * scale * mean


@jax.custom_vjp
def tap(y: jax.Array, sink: jax.Array) -> jax.Array:
    """``y`` itself; differentiating by ``sink``, float32[2], yields `scaled` of y's gradient.

    The backward pass meets the gradient once and reduces it there; nothing of it is kept.
    """
    del sink
    return y


def _tap_forward(y: jax.Array, sink: jax.Array) -> tuple[jax.Array, None]:
    del sink
    return y, None


def _tap_backward(_: None, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gradient, scaled(gradient)


tap.defvjp(_tap_forward, _tap_backward)


def of_output(
    y: jax.Array, channel_axes: tuple[int, ...], batch_size: int, axis_name: str | None
) -> dict[str, jax.Array]:
    """Moments, dead channels and collapse of a layer's output.

    Args:
        y: the output. Its first axis counts examples if it has ``batch_size`` entries.
        channel_axes: the axes that count channels, from the end.
        batch_size: the number of examples on this device.
        axis_name: the axis of devices under `pmap`.

    Returns:
        float32 scalars: ``scale``, the largest absolute value; ``mean`` of y / scale; ``var`` of
        y / scale; ``dead``, the fraction of channels with y <= 0 for every example and position;
        ``cosine``, the mean of cos(y_i, y_j) over the pairs of different examples i ≠ j with
        outputs other than zero, nan where there is no pair or the first axis counts no examples.
    """
    y = y.astype(jnp.float32)
    has_examples = y.ndim > 1 and y.shape[0] == batch_size
    by_example = y.reshape((batch_size, -1) if has_examples else (1, -1))
    largest = jnp.max(jnp.abs(by_example), axis=1, keepdims=True)
    others = tuple(i for i in range(y.ndim) if i - y.ndim not in channel_axes)
    dead = jnp.mean(_pmax(jnp.max(y, axis=others), axis_name) <= 0, dtype=jnp.float32)
    return {
        **_spread(y, jnp.max(largest), axis_name),
        "dead": dead,
        "cosine": _mean_cosine(by_example, largest, axis_name)
        if has_examples
        else jnp.float32(jnp.nan),
    }


def of_input(x: jax.Array, axis_name: str | None) -> dict[str, jax.Array]:
    """Moments of a layer's input, and how much of it is no signal at all.

    Args:
        x: the input, its channels along the last axis.
        axis_name: the axis of devices under `pmap`.

    Returns:
        float32 scalars: ``scale``, ``mean`` and ``var`` as `of_output`; ``zero``, the fraction of
        channels that are 0 for every example and position.
    """
    x = x.astype(jnp.float32)
    largest = _pmax(jnp.max(jnp.abs(x), axis=tuple(range(x.ndim - 1))), axis_name)
    zero = jnp.mean(largest == 0, dtype=jnp.float32)
    return {**_spread(x, jnp.max(largest), axis_name), "zero": zero}


def _spread(values: jax.Array, largest: jax.Array, axis_name: str | None) -> dict[str, jax.Array]:
    """``scale``, and ``mean`` and ``var`` of values / scale, given this device's largest |value|.

    In two passes: E[y²] − E[y]² would lose what is left of a variance under a large mean.
    """
    scale = _pmax(largest, axis_name)
    unit = values / _divisor(scale)
    local_mean = jnp.mean(unit)
    mean = _pmean(local_mean, axis_name)
    spread = jnp.mean(jnp.square(unit - local_mean)) + jnp.square(local_mean - mean)
    return {"scale": scale, "mean": mean, "var": _pmean(spread, axis_name)}


def _mean_cosine(by_example: jax.Array, largest: jax.Array, axis_name: str | None) -> jax.Array:
    """Σ_{i≠j} û_i·û_j = |Σ_i û_i|² − n for n unit vectors û_i: no pair is formed."""
    scaled_rows = by_example / _divisor(largest)
    norm = jnp.sqrt(jnp.sum(jnp.square(scaled_rows), axis=1, keepdims=True))
    n = psum(jnp.sum(norm > 0, dtype=jnp.float32), axis_name)
    total = psum(jnp.sum(scaled_rows / _divisor(norm), axis=0), axis_name)
    pairs = n * (n - 1)
    cosine = (jnp.sum(jnp.square(total)) - n) / _divisor(pairs)
    return jnp.where((pairs > 0) | jnp.isnan(cosine), cosine, jnp.nan)


def gaussian_like(
    key: jax.Array, outputs: list[jax.Array], batch_size: int, axis_name: str | None
) -> list[jax.Array]:
    """Independent standard normal entries, float32, in the shapes of the outputs.

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


def _divisor(scale: jax.Array) -> jax.Array:
    """The scale, or 1 where it is 0: zeros divided by it stay zeros."""
    return jnp.where(scale == 0, jnp.ones_like(scale), scale)


def _pmean(value: jax.Array, axis_name: str | None) -> jax.Array:
    return value if axis_name is None else jax.lax.pmean(value, axis_name)


def psum(value: Any, axis_name: str | None) -> Any:
    """A pytree's sum over the devices."""
    return value if axis_name is None else jax.lax.psum(value, axis_name)


def _pmax(value: jax.Array, axis_name: str | None) -> jax.Array:
    return value if axis_name is None else jax.lax.pmax(value, axis_name)
