import jax
import numpy as np

from prelu_jax.training import state
from tests.training.conftest import make_state


def test_streams_differ_by_seed_name_and_step():
    keys = [
        state.stream(seed, name, step)
        for seed in (0, 1)
        for name in ("params", "dropout")
        for step in (0, 1)
    ]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == len(keys)


def test_the_seed_draws_the_parameters():
    same, other = make_state(seed=3), make_state(seed=4)
    np.testing.assert_array_equal(
        make_state(seed=3).params["conv1"]["kernel"], same.params["conv1"]["kernel"]
    )
    assert (other.params["conv1"]["kernel"] != same.params["conv1"]["kernel"]).any()
    assert int(same.step) == 0
    assert int(same.seed) == 3
