"""The same numbers in float64, and step by step without compilation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.training import Case
from prelu_jax import models
from prelu_jax.training import step
from tests.training.conftest import TINY


def scores_and_gradient(dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((4, TINY.image_size, TINY.image_size, 3)), dtype)
    net = models.build(TINY, 10, "prelu", dtype=dtype)
    params = jax.tree.map(
        lambda p: jnp.asarray(rng.standard_normal(p.shape) / 4, dtype),
        jax.eval_shape(net.init, jax.random.key(0), x)["params"],
    )

    def loss(params):
        scores = net.apply({"params": params}, x)
        return step.mean_loss(scores, jnp.arange(4)), scores

    (_, scores), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return scores, gradient


def test_a_network_in_float64_is_that_in_float32_to_its_rounding():
    narrow = scores_and_gradient(jnp.float32)
    with jax.enable_x64(True):
        wide = scores_and_gradient(jnp.float64)
        assert {leaf.dtype for leaf in jax.tree.leaves(wide[1])} == {np.dtype(np.float64)}
    for a, b in zip(jax.tree.leaves(narrow), jax.tree.leaves(wide), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("rectifier", ["relu", "prelu"])
def test_a_step_without_compilation_is_the_compiled_one(rectifier):
    case = Case(TINY, 4, rectifier)
    state, batch = case.state(), case.batch()
    compiled = jax.jit(step.train_step)(state, batch)
    with jax.disable_jit():
        plain = step.train_step(state, batch)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(compiled), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
