"""Random numbers that belong to an example, wherever it is computed."""

import jax
import jax.numpy as jnp


def by_example(key: jax.Array, count: int, first_example: jax.typing.ArrayLike) -> jax.Array:
    """A key ``[count]`` for each example of a part of a batch, by its place in the global batch.

    However many devices share a batch, an example meets the same random numbers.

    Args:
        key: of the whole batch.
        count: examples in the part.
        first_example: the place of the part's first one in the batch.
    """
    places = jnp.arange(count) + first_example
    return jax.vmap(jax.random.fold_in, (None, 0))(key, places)
