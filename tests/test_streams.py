import jax
import numpy as np

from prelu_jax import streams


def test_an_example_has_the_key_of_its_place_however_the_batch_is_divided():
    key = jax.random.key(3)
    whole = jax.random.key_data(streams.by_example(key, 6, 0))
    parts = [jax.random.key_data(streams.by_example(key, 2, first)) for first in (0, 2, 4)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(jax.random.key_data(jax.random.fold_in(key, 5)), whole[5])
    assert len(np.unique(whole, axis=0)) == 6
