"""Rectified activations as pure functions, and their effect on second moments.

Symbols follow He et al. 2015 (arXiv:1502.01852): the negative slope is ``a``, ``E[.]`` an
expectation over examples, positions and random weights.
"""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def relu(x: jax.Array) -> jax.Array:
    """Return ``max(0, x)``, `prelu` with slope 0 (He et al. 2015, Eq. 1).

    The derivative at 0 is 0, and nan stays nan, as in ``jax.nn.relu``.
    """
    return _relu_bfloat16(x) if jnp.result_type(x) == jnp.bfloat16 else jax.nn.relu(x)


@jax.custom_jvp
def _relu_bfloat16(x: jax.Array) -> jax.Array:
    """Return `relu` of bfloat16; on a CPU the maximum is taken in float32.

    In jaxlib 0.11, XLA on a CPU reads uninitialised memory where one program compares two bfloat16
    products with the same number (docs/findings/numerics.md). Other platforms compile the plain
    maximum.
    """
    y: jax.Array = jax.lax.platform_dependent(x, cpu=_relu_through_float32, default=jax.nn.relu)
    return y


def _relu_through_float32(x: jax.Array) -> jax.Array:
    return jax.nn.relu(x.astype(jnp.float32)).astype(x.dtype)


# One derivative for all platforms: without it, `jax.grad` would store arrays for every branch.
_relu_bfloat16.defjvps(lambda g, _, x: jax.lax.select(x > 0, g, jnp.zeros_like(g)))


def leaky_relu(x: jax.Array, negative_slope: float = 0.01) -> jax.Array:
    """Return `prelu` with a fixed slope, 0.01 as in Maas et al. 2013."""
    return prelu(x, negative_slope)


def prelu(
    x: jax.Array, negative_slope: jax.typing.ArrayLike, *, channel_axis: int = -1
) -> jax.Array:
    """Return ``x`` where ``x > 0``, ``negative_slope * x`` elsewhere.

    This is the parametric rectifier of He et al. 2015. Eq. 1 puts ``x = 0`` on the negative branch,
    so the derivative there is the slope (Eq. 3). The product, and the sum in the slope's gradient
    (Eq. 2), are computed in float32 or wider, whatever the types of ``x`` and the slope. Infinite
    activations on the positive branch add nothing to that sum.

    Args:
        x: floating-point activations, ``[..., channels]`` by default.
        negative_slope: a scalar (channel-shared), or ``[channels]`` (channel-wise).
        channel_axis: the axis of ``x`` that channel-wise slopes lie along.

    Returns:
        An array of the shape and type of ``x``.

    Raises:
        TypeError: ``x`` or the slope is not floating-point, or the axis is not an integer.
        ValueError: the slope is neither a scalar nor one value per channel of ``x``.
    """
    x, slope = floating("x", x), floating("negative_slope", negative_slope)
    if slope.ndim:
        _check_channels(x, slope, channel_axis)
    with jax.numpy_dtype_promotion("standard"):  # promotion is intended here, also in strict mode
        wide = jnp.promote_types(jnp.promote_types(x.dtype, slope.dtype), jnp.float32)
    wide_x, wide_slope = x.astype(wide), slope.astype(wide)
    if slope.ndim:
        # Explicit, because NumPy's rules would always align the slopes with the last axis.
        wide_slope = jax.lax.broadcast_in_dim(wide_slope, x.shape, (channel_axis % x.ndim,))
    # Select the factor, not the product. The select is then the last operation of the slope's
    # gradient too, and discards 0 · ∞ = nan of the branch not taken. A factor of 1 is exact.
    return (jnp.where(x > 0, jnp.ones_like(wide_slope), wide_slope) * wide_x).astype(x.dtype)


def floating(name: str, value: Any) -> jax.Array:
    """Return an argument of a rectifier as an array.

    Raises:
        TypeError: the value is not an array of a real floating-point type.
    """
    array = None
    if value is not None:
        with contextlib.suppress(TypeError, ValueError):
            array = jnp.asarray(value)
    if array is None:
        raise TypeError(
            f"prelu: {name} is of type {type(value).__name__}, expected a floating-point array."
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        advice = (
            f"convert it first, e.g. jnp.asarray({name}, jnp.float32)"
            if jnp.issubdtype(array.dtype, jnp.integer) or array.dtype == bool
            else "such numbers have no order, so no negative side"
        )
        raise TypeError(
            f"prelu: {name} has type {array.dtype}, expected a floating-point type; {advice}."
        )
    return array


def num_channels(x: jax.Array, channel_axis: int) -> int:
    """Return the number of channels of ``x``.

    Raises:
        TypeError: ``channel_axis`` is not an integer.
        ValueError: ``x`` has no such axis.
    """
    if isinstance(channel_axis, bool) or not isinstance(channel_axis, int | np.integer):
        raise TypeError(f"prelu: channel_axis is {channel_axis!r}, expected an integer, e.g. -1.")
    if not -x.ndim <= channel_axis < x.ndim:
        raise ValueError(
            f"prelu: channel_axis is {channel_axis}, but x has shape {x.shape}; expected an axis "
            f"of x{f', from {-x.ndim} to {x.ndim - 1}' if x.ndim else ''}, or one slope for all "
            "channels: a scalar negative_slope, channel_shared=True in Linen, num_features=None in "
            "NNX."
        )
    return int(x.shape[channel_axis])


def check_slope_init(value: Any, shape: tuple[int, ...], dtype: Any) -> None:
    """Check the initial slopes of a module.

    Args:
        value: the initial slopes, a number or an array of ``shape``.
        shape: shape of the slopes.
        dtype: type of the slopes.

    Raises:
        TypeError: ``value`` is not made of real numbers, or ``dtype`` is not floating-point.
        ValueError: ``value`` is not finite, or of another shape.
    """
    with contextlib.suppress(TypeError):
        dtype = jnp.dtype(dtype)
    if not isinstance(dtype, np.dtype) or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"PReLU: param_dtype is {dtype}, expected a floating-point type.")
    if isinstance(value, jax.core.Tracer):
        return
    try:
        slopes = np.asarray(value)
        numbers = jnp.issubdtype(slopes.dtype, jnp.floating) or slopes.dtype.kind in "iu"
    except (TypeError, ValueError):
        numbers = False
    if not numbers:
        raise TypeError(f"PReLU: negative_slope_init is {value!r}, expected a number, e.g. 0.25.")
    if slopes.shape not in ((), shape):
        raise ValueError(
            f"PReLU: negative_slope_init has shape {slopes.shape}, expected a number or an array "
            f"of the slopes' shape {shape}."
        )
    if not np.isfinite(slopes.astype(np.float64)).all():
        raise ValueError(f"PReLU: negative_slope_init is {value}, expected finite numbers.")


def _check_channels(x: jax.Array, slope: jax.Array, channel_axis: int) -> None:
    channels = num_channels(x, channel_axis)
    if slope.shape != (channels,):
        raise ValueError(
            f"prelu: negative_slope has shape {slope.shape}, expected () or ({channels},), one "
            f"value per channel of x, which has shape {x.shape} with the channels on axis "
            f"{channel_axis}."
        )


def second_moment_gain(negative_slope: jax.typing.ArrayLike = 0.0) -> float:
    """Return the factor of a rectifier on a second moment, both ways: ``(1 + a²) / 2``.

    Forward, ``E[f(y)²] / E[y²]`` for symmetric ``y`` (He et al. 2015, Eq. 8 and 15). Backward,
    ``E[Δy²] / E[Δx²]`` where ``Δy = f'(y) Δx`` and ``f'(y)`` is 1 or ``a``, each half of the time
    (Eq. 12 and 15). With one slope per channel, ``a²`` is the mean of the squares, not the square
    of the mean.

    Args:
        negative_slope: ``a``, a scalar or one value per channel.

    Raises:
        ValueError: a slope is not finite, or there are no slopes.
    """
    slope = np.asarray(negative_slope, np.float64)
    if slope.size == 0 or not np.isfinite(slope).all():
        raise ValueError(
            f"second_moment_gain: negative_slope is {negative_slope}, expected finite numbers."
        )
    return float((1.0 + np.mean(np.square(slope))) / 2.0)
