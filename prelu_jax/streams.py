"""Random keys for single examples, independent of how devices share a batch."""

import jax
import jax.numpy as jnp


def by_example(key: jax.Array, count: int, first_example: jax.typing.ArrayLike) -> jax.Array:
    """Return one random key per example of a part of a batch, ``[count]``.

    The key depends on the example's index in the global batch. An example therefore gets the same
    random numbers for any number of devices.

    Args:
        key: key of the whole batch.
        count: number of examples in the part.
        first_example: index of the part's first example in the global batch.
    """
    places = jnp.arange(count) + first_example
    return jax.vmap(jax.random.fold_in, (None, 0))(key, places)
