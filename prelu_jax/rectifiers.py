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


def prelu(x: jax.Array, negative_slope: jax.typing.ArrayLike) -> jax.Array:
    """Parametric rectifier: ``x`` where ``x > 0``, ``negative_slope * x`` elsewhere.

    Eq. 1 puts ``x = 0`` on the negative branch, so the derivative there is the slope (Eq. 3).
    The product, and with it the slope's gradient (Eq. 2), is computed in the wider of the two
    types: with float32 slopes a bfloat16 network still sums the gradient in float32.

    Args:
        x: floating-point activations ``[..., channels]``.
        negative_slope: a scalar (channel-shared), or ``[channels]`` (channel-wise).

    Returns:
        An array of the shape and type of ``x``.

    Raises:
        TypeError: ``x`` or the slope is not floating-point.
        ValueError: the slope is neither a scalar nor one value per channel of ``x``.
    """
    x, slope = jnp.asarray(x), jnp.asarray(negative_slope)
    for name, array in (("x", x), ("negative_slope", slope)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(
                f"prelu: {name} has type {array.dtype}, expected a floating-point type; "
                f"convert it first, e.g. {name}.astype(jnp.float32)."
            )
    if slope.ndim > 1 or (slope.ndim == 1 and (x.ndim == 0 or slope.shape[0] != x.shape[-1])):
        raise ValueError(
            f"prelu: negative_slope has shape {slope.shape}, expected () or one value per "
            f"channel of x, which has shape {x.shape} with the channels on its last axis."
        )
    with jax.numpy_dtype_promotion("standard"):  # the one place that promotes, on purpose
        wide = jnp.promote_types(x.dtype, slope.dtype)
    wide_x = x.astype(wide)
    wide_slope = jnp.broadcast_to(slope.astype(wide), x.shape)
    return jnp.where(x > 0, wide_x, wide_slope * wide_x).astype(x.dtype)


def second_moment_gain(negative_slope: jax.typing.ArrayLike = 0.0) -> float:
    """``E[f(y)²] / E[y²]`` for symmetric ``y``: ``(1 + a²) / 2`` (He et al. 2015, Eq. 8 and 15).

    The same factor holds backward, ``E[f'(y)²] = (1 + a²) / 2`` (Eq. 12). For one slope per
    channel the mean of ``a²`` counts, not the square of the mean.
    """
    return float((1.0 + np.mean(np.square(np.asarray(negative_slope)))) / 2.0)
