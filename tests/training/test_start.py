"""The state that a run starts from."""

import jax
import numpy as np

from prelu_jax import arch, models
from prelu_jax.training import start, state
from prelu_jax.training.recipe import resolve
from tests.training.conftest import make_state, tiny_config


def test_compiled_in_a_hurry_the_numbers_are_the_same(tiny_arch):
    pixels = make_state().pixels
    for initializer in ("he_normal", "xavier_uniform"):
        config = tiny_config(initializer=initializer, seed=3)
        recipe = resolve(config)
        quick = start.initial_state(recipe, pixels)
        slow = state.create(recipe.net, quick.optimizer, pixels, 3)
        jax.tree.map(np.testing.assert_array_equal, quick.params, slow.params)


def test_of_a_deep_net_too():
    net = models.build(arch.with_width(arch.SMALL_14_REDUCED, 0.5), 10, "prelu")
    fresh = make_state()
    given = (net, fresh.optimizer, fresh.pixels, 0)
    quick = start._quickly_compiled_create("cpu")(*given)
    slow = state.create(*given)
    jax.tree.map(np.testing.assert_array_equal, quick.params, slow.params)
