import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from prelu_jax import rectifiers
from prelu_jax.rectifiers import prelu

FINITE = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)  # XLA flushes those to 0
ACTIVATIONS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=4), elements=FINITE)


@given(x=ACTIVATIONS, slope=st.sampled_from([-1.5, 0.0, 0.01, 0.25, 2.0]))
def test_prelu_is_the_two_branches_of_eq_1(x, slope):
    expected = np.where(x > 0, x, np.float32(slope) * x)
    np.testing.assert_array_equal(prelu(x, slope), expected)


@given(x=ACTIVATIONS)
def test_slope_0_is_relu_and_slope_1_the_identity(x):
    np.testing.assert_array_equal(prelu(x, 0.0), np.maximum(x, 0) + 0 * x)
    np.testing.assert_array_equal(rectifiers.relu(x), np.maximum(x, 0))
    np.testing.assert_array_equal(prelu(x, 1.0), x)


def test_channel_slopes_meet_the_last_axis():
    x = -jnp.ones((2, 3, 3, 3))
    y = prelu(x, jnp.array([0.1, 0.2, 0.3]))
    np.testing.assert_allclose(y[1, 2, 0], [-0.1, -0.2, -0.3], rtol=1e-6)


def test_derivatives_are_eq_2_and_3_with_zero_on_the_negative_branch():
    x, slope = jnp.array([[-2.0, 3.0], [0.0, -5.0]]), jnp.array([0.25, 0.5])
    cotangent = jnp.array([[1.0, 10.0], [100.0, 1000.0]])
    _, vjp = jax.vjp(prelu, x, slope)
    dx, dslope = vjp(cotangent)
    np.testing.assert_array_equal(dx, [[0.25, 10.0], [25.0, 500.0]])
    np.testing.assert_array_equal(dslope, [-2.0, -5000.0])
    _, vjp = jax.vjp(lambda a: prelu(x, a), jnp.float32(0.25))
    np.testing.assert_array_equal(vjp(cotangent)[0], -5002.0)


def test_the_slope_gradient_of_bfloat16_activations_is_summed_in_float32():
    x = -jnp.ones((64, 64, 64, 1), jnp.bfloat16)  # a bfloat16 sum of ones stops at 256
    grad = jax.grad(lambda a: prelu(x, a).astype(jnp.float32).sum())(jnp.array([0.25]))
    assert prelu(x, jnp.array([0.25])).dtype == jnp.bfloat16
    np.testing.assert_allclose(grad, [-(64.0**3)], rtol=1e-6)


@pytest.mark.parametrize("slope", [0.0, 0.25, 1.0, np.array([0.0, 0.5, -0.5])])
def test_second_moment_gain_is_what_gaussians_keep(slope):
    y = jax.random.normal(jax.random.key(0), (200_000, 3))
    per_example = np.mean(np.square(prelu(y, jnp.asarray(slope, jnp.float32))), axis=1)
    error = per_example.std() / np.sqrt(len(per_example))
    assert abs(per_example.mean() - rectifiers.second_moment_gain(slope)) < 5 * error


@pytest.mark.parametrize(
    ("x", "slope", "error", "message"),
    [
        (jnp.arange(3), 0.25, TypeError, "x has type int32"),
        (jnp.ones(3), 1, TypeError, "negative_slope has type int32"),
        (jnp.ones((2, 3)), jnp.ones(2), ValueError, r"shape \(2,\).*per channel.*\(2, 3\)"),
        (jnp.ones((2, 3)), jnp.ones(1), ValueError, r"shape \(1,\)"),
        (jnp.ones((2, 3)), jnp.ones((2, 3)), ValueError, r"shape \(2, 3\)"),
        (jnp.ones(()), jnp.ones(1), ValueError, r"shape \(1,\)"),
    ],
)
def test_bad_input_is_named(x, slope, error, message):
    with pytest.raises(error, match=message):
        prelu(x, slope)
