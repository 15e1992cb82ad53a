"""Rectified activations as pure functions, and the second moments they keep.

Symbols follow He et al. 2015 (arXiv:1502.01852): the negative slope is ``a``, ``E[.]`` an
expectation over examples, positions and random weights.
"""

import jax
import jax.numpy as jnp
import numpy as np


def relu(x: jax.Array) -> jax.Array:
    """``max(0, x)``: `prelu` with slope 0 (He et al. 2015, Eq. 1)."""
    return jax.nn.relu(x)


def leaky_relu(x: jax.Array, negative_slope: float = 0.01) -> jax.Array:
    """`prelu` with a fixed slope, 0.01 as in Maas et al. 2013."""
    return prelu(x, negative_slope)


def prelu(
    x: jax.Array, negative_slope: jax.typing.ArrayLike, *, channel_axis: int = -1
) -> jax.Array:
    """Parametric rectifier: ``x`` where ``x > 0``, ``negative_slope * x`` elsewhere.

    Eq. 1 puts ``x = 0`` on the negative branch, so the derivative there is the slope (Eq. 3).
    The product, and with it the sum that is the slope's gradient (Eq. 2), is computed in float32
    or wider, whatever the types of ``x`` and the slope.

    Args:
        x: floating-point activations, ``[..., channels]`` by default.
        negative_slope: a scalar (channel-shared), or ``[channels]`` (channel-wise).
        channel_axis: the axis of ``x`` that channel-wise slopes lie along.

    Returns:
        An array of the shape and type of ``x``.

    Raises:
        TypeError: ``x`` or the slope is not floating-point.
        ValueError: the slope is neither a scalar nor one value per channel of ``x``.
    """
    x, slope = jnp.asarray(x), jnp.asarray(negative_slope)
    _check(x, slope, channel_axis)
    with jax.numpy_dtype_promotion("standard"):  # the one place that promotes, on purpose
        wide = jnp.promote_types(jnp.promote_types(x.dtype, slope.dtype), jnp.float32)
    wide_x, wide_slope = x.astype(wide), slope.astype(wide)
    if slope.ndim:
        # Rank by rank: left to NumPy's rules, slopes would meet the last axis whatever it means.
        wide_slope = jax.lax.broadcast_in_dim(wide_slope, x.shape, (channel_axis % x.ndim,))
    return jnp.where(x > 0, wide_x, wide_slope * wide_x).astype(x.dtype)


def _check(x: jax.Array, slope: jax.Array, channel_axis: int) -> None:
    for name, array in (("x", x), ("negative_slope", slope)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(
                f"prelu: {name} has type {array.dtype}, expected a floating-point type; "
                f"convert it first, e.g. {name}.astype(jnp.float32)."
            )
    if slope.ndim == 0:
        return
    if not -x.ndim <= channel_axis < x.ndim:
        raise ValueError(
            f"prelu: channel_axis is {channel_axis}, but x has shape {x.shape}; expected an axis "
            f"of x, or a scalar negative_slope instead of one of shape {slope.shape}."
        )
    if slope.shape != (x.shape[channel_axis],):
        raise ValueError(
            f"prelu: negative_slope has shape {slope.shape}, expected () or "
            f"({x.shape[channel_axis]},), one value per channel of x, which has shape {x.shape} "
            f"with the channels on axis {channel_axis}."
        )


def second_moment_gain(negative_slope: jax.typing.ArrayLike = 0.0) -> float:
    """What a rectifier keeps of a second moment, forward and backward: ``(1 + a²) / 2``.

    Forward, ``E[f(y)²] / E[y²]`` for symmetric ``y`` (He et al. 2015, Eq. 8 and 15). Backward,
    ``E[Δy²] / E[Δx²]`` where ``Δy = f'(y) Δx`` and ``f'(y)`` is 1 or ``a``, each half of the time
    (Eq. 12 and 15). For one slope per channel the mean of ``a²`` counts, not the square of the
    mean.

    Args:
        negative_slope: ``a``, a scalar or one value per channel.

    Raises:
        ValueError: a slope is not finite, or there is none.
    """
    slope = np.asarray(negative_slope, np.float64)
    if slope.size == 0 or not np.isfinite(slope).all():
        raise ValueError(
            f"second_moment_gain: negative_slope is {negative_slope}, expected finite numbers."
        )
    return float((1.0 + np.mean(np.square(slope))) / 2.0)
