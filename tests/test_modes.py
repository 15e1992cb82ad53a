"""Tests that float64, 64-bit types and a run without compilation give the same numbers.

`make modes` runs the whole suite with JAX_ENABLE_X64=1 and, with JAX_DISABLE_JIT=1, the tests that
conftest.py does not skip.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.training import Case
from experiments.harness import machine
from prelu_jax import models
from prelu_jax.arch import Arch, Conv, Dense, Logits, MaxPool, SpatialPyramid
from prelu_jax.datadep.filters import KINDS, filters
from prelu_jax.datadep.symmetries import find
from prelu_jax.training import step
from tests.training.conftest import TINY, make_batch, make_state


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

    (_, scores), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return scores, gradient


def test_a_network_in_float64_is_that_in_float32_to_its_rounding():
    narrow = scores_and_gradient(jnp.float32)
    with jax.enable_x64(True):
        wide = scores_and_gradient(jnp.float64)
        assert {leaf.dtype for leaf in jax.tree.leaves(wide[1])} == {np.dtype(np.float64)}
    for a, b in zip(jax.tree.leaves(narrow), jax.tree.leaves(wide), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


def test_with_64_bit_types_a_step_draws_the_same_numbers_and_keeps_its_types():
    def after(seed):  # seed of the draws in the step: mirroring, colours, dropout
        state = make_state().replace(colour=0.1, seed=jnp.uint32(seed))
        return jax.jit(step.train_step)(state, make_batch())

    narrow, other = after(0), after(1)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        wide = after(0)
    for a, b in zip(jax.tree.leaves(narrow), jax.tree.leaves(wide), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert abs(float(other[1]["loss"]) / float(narrow[1]["loss"]) - 1) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_with_64_bit_types_filters_are_the_same(kind):
    patches = np.random.default_rng(0).standard_normal((1, 60, 8), np.float32)
    narrow, _ = filters(kind, jnp.asarray(patches), 12, jax.random.key(0))
    with jax.enable_x64(True):
        wide, _ = filters(kind, jnp.asarray(patches), 12, jax.random.key(0))
    assert wide.dtype == np.float32
    np.testing.assert_allclose(narrow, wide, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rectifier", ["relu", "prelu"])
def test_a_step_without_compilation_is_the_compiled_one(rectifier):
    layers = (
        Conv("conv1", 4, 3, padding=(1, 1)),
        MaxPool("pool1", 2),
        SpatialPyramid("spp", (1,)),
        Dense("fc1", 16, stddev=0.2),
        Logits("fc2", stddev=0.1),
    )
    case = Case(Arch("net", 8, layers), 4, rectifier)
    state, batch = case.state(), case.batch()
    compiled = jax.jit(step.train_step)(state, batch)
    with jax.disable_jit():
        plain = step.train_step(state, batch)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(compiled), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_filters_without_compilation_are_the_compiled_ones(kind):
    patches = jnp.asarray(np.random.default_rng(0).standard_normal((1, 60, 8), np.float32))
    compiled, _ = jax.jit(lambda key: filters(kind, patches, 12, key))(jax.random.key(0))
    with jax.disable_jit():
        plain, _ = filters(kind, patches, 12, jax.random.key(0))
    np.testing.assert_allclose(plain, compiled, rtol=1e-3, atol=1e-4)


def test_what_leaves_a_loop_as_it_is_is_read_without_compilation_too():
    def powers(p):
        return jax.lax.scan(lambda x, row: (x * row, x), p["a"][0], p["b"])[0]

    parameters = {"a": jnp.ones((2, 3)), "b": jnp.ones((4, 3))}
    compiled = find(powers, parameters)
    with jax.disable_jit():
        plain = find(powers, parameters)
    np.testing.assert_array_equal(plain.constraints, compiled.constraints)


def test_without_compilation_experiments_take_one_cpu_device(monkeypatch):
    updates = []
    monkeypatch.setattr(jax.config, "update", lambda name, value: updates.append(name))
    for variable in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES"):
        monkeypatch.delenv(variable, raising=False)
    with jax.disable_jit(False):
        machine.use_every_core(64)
    assert updates == ["jax_num_cpu_devices"]
    with jax.disable_jit():
        machine.use_every_core(64)
    assert len(updates) == 1
