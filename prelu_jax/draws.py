"""Random arrays that compile quickly."""

import math
from collections.abc import Callable, Sequence

import jax

_FLAT = 2**22  # numbers, at most, that are drawn without axes


def flat(
    draw: Callable[..., jax.Array],
    key: jax.Array,
    shape: Sequence[int],
    dtype: jax.typing.DTypeLike,
) -> jax.Array:
    """Return ``draw(key, shape, dtype)``; small arrays are drawn flat, which gives the same bits.

    For an array of several small axes XLA's CPU compiler takes two to six times as long: a second
    or two for each shape, and twenty for some. Larger ones keep their axes, along which they may be
    sharded.

    Args:
        draw: `jax.random.normal`, or another function whose numbers do not depend on their axes.
        key: for the draw.
        shape: of the array.
        dtype: a floating-point type.
    """
    size = math.prod(shape)
    return draw(key, (size,) if size <= _FLAT else tuple(shape), dtype).reshape(shape)
