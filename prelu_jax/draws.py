"""Random arrays that compile quickly."""

import math
from collections.abc import Callable, Sequence

import jax

_LARGEST_FLAT = 2**22  # entries of the largest array that is drawn flat


def flat(
    draw: Callable[..., jax.Array],
    key: jax.Array,
    shape: Sequence[int],
    dtype: jax.typing.DTypeLike,
) -> jax.Array:
    """Return ``draw(key, shape, dtype)``; small arrays are drawn flat, which gives the same bits.

    XLA's CPU compiler takes two to six times as long for an array of several small axes: a second
    or two for each shape, and twenty for some. Larger arrays keep their axes, so that they can be
    sharded along them.

    Args:
        draw: `jax.random.normal`, or another function whose values depend on the number of entries
            and not on the shape.
        key: for the draw.
        shape: of the array.
        dtype: a floating-point type.
    """
    size = math.prod(shape)
    return draw(key, (size,) if size <= _LARGEST_FLAT else tuple(shape), dtype).reshape(shape)
