"""Tests of JAX's and Flax's initialisers: rules in words, and stds of draws."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax.nnx import bridge

from prelu_jax import initializers
from prelu_jax.initializers import foreign

init = nn.initializers
SHAPE = (3, 3, 20, 30)

RULES = {
    "he_normal": (init.he_normal(), "truncated normal, variance 2 / fan_in"),
    "glorot_uniform": (init.glorot_uniform(), "uniform, variance 1 / fan_avg"),
    "geometric mean": (
        init.variance_scaling(np.float32(1), "fan_geo_avg", "normal"),
        "normal, variance 1 / fan_geo_avg",
    ),
    "normal": (init.normal(0.02), "normal, std 0.02"),
    "normal of a type": (init.normal(0.02, jnp.bfloat16), "normal, std 0.02"),
    "normal of a type alone": (init.normal(dtype=jnp.float32), "normal, std 0.01"),
    "normal, a JAX scalar": (init.normal(jnp.float32(0.5)), "normal, std 0.5"),
    "normal, negative": (init.normal(-0.5), "normal, std 0.5"),
    "truncated_normal": (
        init.truncated_normal(0.02),
        "truncated normal in [-0.04, 0.04], std 0.0176",
    ),
    "truncated_normal, one side": (
        init.truncated_normal(0.5, lower=-1.0, upper=3.0),
        "truncated normal in [-0.5, 1.5], std 0.392",
    ),
    "truncated_normal, open": (
        init.truncated_normal(0.5, lower=0.0, upper=np.inf),
        "truncated normal in [0, inf], std 0.301",
    ),
    "uniform": (init.uniform(0.1), "uniform in [0, 0.1), std 0.0289"),
    "uniform, negative": (init.uniform(-2), "uniform in [-2, 0), std 0.577"),
    "orthogonal": (init.orthogonal(2.0), "orthogonal, variance 4 / max(fan_in, filters)"),
    "orthogonal, other axis": (
        init.orthogonal(column_axis=0),
        "orthogonal along axis 0, variance 1 / max(rows, columns)",
    ),
    "delta_orthogonal": (init.delta_orthogonal(), "delta-orthogonal, variance 1 / fan_out"),
    "zeros": (init.zeros, "zeros"),
    "zeros_init": (nnx.initializers.zeros_init(), "zeros"),
    "ones_init": (init.ones_init(), "constant 1"),
    "constant": (init.constant(0.5), "constant 0.5"),
    "constant array": (init.constant(np.arange(30.0)), "constant array of shape (30,)"),
    "of variance 0": (init.variance_scaling(0.0, "fan_in", "normal"), "zeros"),
    "of std 0": (init.truncated_normal(0.0), "zeros"),
    "ours": (initializers.gaussian(0.01), "normal, std 0.01"),
}


@pytest.mark.parametrize(("initializer", "text"), RULES.values(), ids=RULES)
def test_a_rule_has_its_name_and_the_std_that_is_drawn(initializer, text):
    assert initializers.describe(initializer) == text
    kernel = np.asarray(initializer(jax.random.key(0), SHAPE, jnp.float32), np.float64)
    # No rule here has a kurtosis above 3, but the half Gaussian with 3.9 and the delta kernel, of
    # which one entry in nine is a uniformly distributed one: 9 · 3.
    kurtosis = 27 if "delta" in text else 4
    error = math.sqrt((kurtosis - 1) / kernel.size) / 2
    expected = math.sqrt(foreign.known(initializer).variance(SHAPE))
    assert abs(kernel.std() - expected) <= 5 * error * expected + 1e-9


WRAPPERS = {
    "with_partitioning": lambda f: nn.with_partitioning(f, (None, "model")),
    "with_logical_partitioning": lambda f: nn.with_logical_partitioning(f, (None, "model")),
    "NNX": lambda f: nnx.with_partitioning(f, (None, "model")),
    "NNX metadata": lambda f: nnx.with_metadata(f, note="x"),
    "bridge": lambda f: bridge.with_partitioning(f, (None, "model")),
    "jit": jax.jit,
    "partial": lambda f: functools.partial(f, dtype=jnp.bfloat16),
}
WRAPPERS["several"] = lambda f: functools.reduce(
    lambda f, name: WRAPPERS[name](f), ["partial", "NNX", "with_partitioning", "partial"], f
)


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_that_keep_the_values_are_seen_through(wrap):
    assert initializers.describe(wrap(init.zeros)) == "zeros"
    assert initializers.describe(wrap(init.orthogonal())).startswith("orthogonal, variance 1 /")
    ours = initializers.he_normal("fan_out")
    if wrap is not jax.jit:  # takes no shape
        assert initializers.describe(wrap(ours)) == ours.describe()


@functools.wraps(init.zeros)
def not_zeros(*args):
    return init.zeros(*args) + 1


def zeros(key, shape, dtype):
    return jnp.ones(shape, dtype)


@pytest.mark.parametrize(
    ("initializer", "text"),
    [
        (not_zeros, "unknown (a wrapper of jax.nn.initializers.zeros)"),
        (nn.with_partitioning(not_zeros, (None,)), "unknown (a wrapper of jax.nn.initializers.z"),
        (functools.partial(init.normal, 0.02), "unknown (functools.partial)"),
        (functools.partial(init.zeros, shape=(2,)), "unknown (functools.partial)"),
        (zeros, "unknown (tests.initializers.test_foreign.zeros)"),
        (jnp.zeros, "unknown (jax.numpy.zeros)"),
        (init.normal(math.nan), "unknown (jax._src.nn.initializers.normal"),
        (init.variance_scaling(1.0, "fan_sum", "normal"), "unknown (jax._src.nn.initializers.vari"),
        (init.variance_scaling(-1.0, "fan_in", "normal"), "unknown (jax._src.nn.initializers.vari"),
        (init.truncated_normal(1.0, lower=9.0, upper=9.5), "unknown (jax._src.nn.initializers.tr"),
    ],
)
def test_arbitrary_callables_are_unknown_and_named(initializer, text):
    assert initializers.describe(initializer).startswith(text)


def test_an_orthogonal_rule_has_no_std_where_jax_draws_nothing():
    for rule in map(foreign.known, (init.orthogonal(), init.orthogonal(column_axis=3))):
        with pytest.raises(ValueError, match="of shape"):
            rule.variance((5,))
