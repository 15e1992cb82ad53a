import json

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.test_util import check_grads

from prelu_jax import rectifiers
from prelu_jax.rectifiers import prelu
from tests.conftest import GOLDEN

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


def test_derivatives_are_eq_2_and_3_with_zero_on_the_negative_branch():
    x, slope = jnp.array([[-2.0, 3.0], [0.0, -5.0]]), jnp.array([0.25, 0.5])
    cotangent = jnp.array([[1.0, 10.0], [100.0, 1000.0]])
    _, vjp = jax.vjp(prelu, x, slope)
    dx, dslope = vjp(cotangent)
    np.testing.assert_array_equal(dx, [[0.25, 10.0], [25.0, 500.0]])
    np.testing.assert_array_equal(dslope, [-2.0, -5000.0])
    _, vjp = jax.vjp(lambda a: prelu(x, a), jnp.float32(0.25))
    np.testing.assert_array_equal(vjp(cotangent)[0], -5002.0)


SLOPES = st.floats(-2, 2, width=32, allow_subnormal=False)


@given(x=ACTIVATIONS, slope=SLOPES, power=st.integers(-8, 8))
def test_prelu_is_positively_homogeneous(x, slope, power):
    scale = np.float32(2.0**power)  # exact, so that the equality is
    np.testing.assert_array_equal(prelu(scale * x, slope), scale * prelu(x, slope))


def test_relu_in_bfloat16_is_right_where_two_products_share_its_zero():
    # 512 rows: jaxlib 0.11 compares with uninitialised memory from 208 on
    # (docs/findings/numerics.md).
    @jax.jit
    def chain(x, w):
        y = rectifiers.relu(rectifiers.relu(x) @ w) @ w
        return y.astype(jnp.float32).sum(axis=1)

    x, w = (jax.random.normal(jax.random.key(i), (n, 64)) for i, n in enumerate((512, 64)))
    bfloat16 = [array.astype(jnp.bfloat16) for array in (x, w)]
    exact = chain(*(array.astype(jnp.float32) for array in bfloat16))
    for _ in range(3):  # uninitialised memory differs between calls
        difference = chain(*bfloat16) - exact
        assert jnp.abs(difference).max() < 0.05 * exact.std()  # nan is not below


def test_relu_in_bfloat16_is_jax_nn_relu_with_its_derivative():
    x = jnp.array([-jnp.inf, -2, -0.0, 0, 3, jnp.inf, jnp.nan], jnp.bfloat16)
    results = []
    for function in (rectifiers.relu, jax.nn.relu):
        y, vjp = jax.vjp(function, x)
        results.append((y, *vjp(jnp.full_like(x, 7))))
    for actual, expected in zip(*results, strict=True):
        assert actual.dtype == jnp.bfloat16
        np.testing.assert_array_equal(actual.astype(jnp.float32), expected.astype(jnp.float32))


@pytest.mark.compiled("the compiled program")
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_relu_in_bfloat16_goes_to_accelerators_without_float32(platform):
    x = jax.ShapeDtypeStruct((4, 8), jnp.bfloat16)
    gradient = jax.grad(lambda x: rectifiers.relu(x).sum(dtype=jnp.bfloat16))
    for function in (rectifiers.relu, gradient):
        program = jax.export.export(jax.jit(function), platforms=[platform])(x).mlir_module()
        assert "xbf16>" in program
        assert "xf32>" not in program


AWAY_FROM_ZERO = st.floats(0.125, 4, width=32).flatmap(lambda m: st.sampled_from([m, -m]))


# Few shapes, because each compiles dozens of programs.
@given(data=st.data(), shape=st.sampled_from([(3,), (2, 4), (3, 1, 2), (2, 3, 1, 4)]))
def test_every_derivative_is_that_of_finite_differences_away_from_zero(data, shape):
    x = jnp.asarray(data.draw(hnp.arrays(np.float32, shape, elements=AWAY_FROM_ZERO)))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    slope_shape = data.draw(st.sampled_from([(), (shape[axis],)]))
    slope = jnp.asarray(data.draw(hnp.arrays(np.float32, slope_shape, elements=SLOPES)))
    # The only nonlinear term is the product of x and the slope, so second differences are exact.
    check_grads(
        lambda x, a: prelu(x, a, channel_axis=axis),
        (x, slope),
        order=2,
        eps=1e-2,
        rtol=2e-2,
        atol=2e-2,
    )


@pytest.mark.parametrize("slope", [0.25, np.array([0.25, 0.5, 0.1, 0.25], np.float32)])
@pytest.mark.parametrize("x_type", ["float32", "bfloat16"])
@pytest.mark.parametrize("jitted", [False, True])
def test_derivatives_of_the_branch_not_taken_are_zero_at_infinity(jitted, x_type, slope):
    x = jnp.array([[np.inf, 2.0, -np.inf, -3.0], [1.0, np.inf, -1.0, np.inf]], x_type)
    slope = jnp.asarray(slope)
    pull = lambda x, a, g: jax.vjp(prelu, x, a)[1](g)  # noqa: E731
    dx, dslope = (jax.jit(pull) if jitted else pull)(x, slope, jnp.full_like(x, 2))
    np.testing.assert_array_equal(dx, jnp.where(x > 0, 2, 2 * slope).astype(x_type))
    negative = [0, 0, -np.inf, -6]  # Σ 2 x over x <= 0, as in torch
    np.testing.assert_array_equal(dslope, negative if slope.ndim else -np.inf)
    _, tangent = jax.jvp(lambda x: rectifiers.leaky_relu(x, 0.25), (x,), (jnp.ones_like(x),))
    np.testing.assert_array_equal(tangent, jnp.where(x > 0, 1, 0.25).astype(x_type))
    wide = np.asarray(x, np.float32)
    expected = jnp.where(wide > 0, wide, slope * wide).astype(x_type)
    np.testing.assert_array_equal(prelu(x, slope), expected)


def test_nan_is_on_the_negative_branch_and_an_infinite_cotangent_stays_on_its_own():
    x = jnp.array([np.nan, 1.0, -1.0])
    y, vjp = jax.vjp(prelu, x, jnp.full(3, 0.5))
    np.testing.assert_array_equal(y, [np.nan, 1, -0.5])
    dx, dslope = vjp(jnp.array([1.0, np.inf, 1.0]))
    np.testing.assert_array_equal(dx, [0.5, np.inf, 0.5])
    np.testing.assert_array_equal(dslope, [np.nan, 0, -1])


def test_hessian_vector_products_are_the_mixed_derivative():
    x, slope = jnp.array([[-2.0, 3.0], [4.0, -5.0]]), jnp.array([0.25, 0.5])
    loss = lambda x, a: jnp.sum(prelu(x, a) ** 2)  # noqa: E731
    of_slope = jax.grad(loss, argnums=1)
    _, hvp = jax.jvp(lambda a: of_slope(x, a), (slope,), (jnp.ones(2),))
    np.testing.assert_allclose(hvp, [2 * 4.0, 2 * 25.0])  # Σ 2 y² over y <= 0


def test_vmap_over_examples_and_over_slopes():
    x = jax.random.normal(jax.random.key(0), (4, 5, 3))
    slopes = jnp.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    np.testing.assert_array_equal(jax.vmap(prelu, (0, None))(x, slopes[0]), prelu(x, slopes[0]))
    both = jax.jit(jax.vmap(prelu, (None, 0)))(x, slopes)
    np.testing.assert_array_equal(both, jnp.stack([prelu(x, slope) for slope in slopes]))


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_channel_slopes_lie_along_the_axis_asked(axis):
    x = -jnp.ones((3, 3, 3))  # any axis would broadcast
    slope = jnp.array([0.1, 0.2, 0.3])
    moved = jnp.moveaxis(prelu(x, slope, channel_axis=axis), axis, -1)
    np.testing.assert_array_equal(moved, jnp.broadcast_to(-slope, (3, 3, 3)))


@pytest.mark.parametrize("case", json.loads((GOLDEN / "torch.json").read_text())["prelu"])
def test_torch_computes_the_same_forward_and_backward(case):
    case = {name: jnp.asarray(value, jnp.float32) for name, value in case.items()}
    slope = case["slope"] if len(case["slope"]) > 1 else case["slope"][0]
    y, vjp = jax.vjp(lambda x, a: prelu(x, a, channel_axis=1), case["x"], slope)
    dx, dslope = vjp(case["cotangent"])
    np.testing.assert_array_equal(y, case["y"])
    # At zero torch takes the negative branch, as Eq. 3 does.
    np.testing.assert_array_equal(dx, case["dx"])
    np.testing.assert_allclose(jnp.ravel(dslope), case["dslope"], rtol=1e-6)


@pytest.mark.parametrize("x_type", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("slope_type", ["bfloat16", "float32"])
def test_the_slope_gradient_is_summed_in_float32_whatever_the_types(x_type, slope_type):
    x = -jnp.ones((64, 64, 64, 1), x_type)  # a bfloat16 sum of ones stops at 256
    slope = jnp.array([0.25], slope_type)
    y, vjp = jax.vjp(prelu, x, slope)
    _, dslope = vjp(jnp.ones_like(y))
    assert (y.dtype, dslope.dtype) == (x.dtype, slope.dtype)
    np.testing.assert_array_equal(dslope, [-(64.0**3)])


def test_the_slope_gradient_of_a_large_bfloat16_layer_is_that_of_float64():
    """Over 64 images of 56×56, 200,000 products a channel; fewer channels than a net would have."""
    rng = np.random.default_rng(0)
    shape = (64, 56, 56, 8)
    x = jnp.asarray(rng.standard_normal(shape, np.float32), jnp.bfloat16)
    g = jnp.asarray(rng.standard_normal(shape, np.float32) + 0.5, jnp.bfloat16)
    x64, g64 = np.asarray(x, np.float64), np.asarray(g, np.float64)
    by_channel = np.sum(np.where(x64 > 0, 0, x64 * g64), axis=(0, 1, 2))
    pull = jax.jit(lambda x, a, g: jax.vjp(lambda a: prelu(x, a), a)[1](g)[0])
    gradient = pull(x, jnp.full(shape[-1:], 0.25), g)
    np.testing.assert_allclose(np.asarray(gradient, np.float64), by_channel, rtol=1e-3)


@pytest.mark.parametrize("slope", [0.0, 0.25, 1.0, np.array([0.0, 0.5, -0.5])])
def test_second_moment_gain_is_the_share_that_gaussians_keep(slope):
    y = jax.random.normal(jax.random.key(0), (200_000, 3))
    per_example = np.mean(np.square(prelu(y, jnp.asarray(slope, jnp.float32))), axis=1)
    error = per_example.std() / np.sqrt(len(per_example))
    assert abs(per_example.mean() - rectifiers.second_moment_gain(slope)) < 5 * error


@pytest.mark.parametrize(
    ("x", "slope", "error", "message"),
    [
        (jnp.arange(3, dtype=jnp.int32), 0.25, TypeError, "x has type int32"),
        (jnp.ones(3), jnp.int32(1), TypeError, "negative_slope has type int32"),
        (jnp.ones((2, 3)), jnp.ones(2), ValueError, r"shape \(2,\).*\(3,\).*\(2, 3\).*axis -1"),
        (jnp.ones((2, 3)), jnp.ones(1), ValueError, r"shape \(1,\)"),
        (jnp.ones((2, 3)), jnp.ones((2, 3)), ValueError, r"shape \(2, 3\)"),
        (jnp.ones(()), jnp.ones(1), ValueError, r"x has shape \(\)"),
        (jnp.ones(3), jnp.complex64(1j), TypeError, "negative_slope has type complex64"),
        (jnp.ones(3, complex), 0.25, TypeError, "x has type complex64.*no order"),
        (jnp.ones(3, bool), 0.25, TypeError, "x has type bool.*convert it first"),
        (None, 0.25, TypeError, "x is of type NoneType, expected a floating-point array"),
        ("x", 0.25, TypeError, "x is of type str"),
        (jnp.ones(3), None, TypeError, "negative_slope is of type NoneType"),
        (jnp.ones(3), "0.25", TypeError, "negative_slope is of type str"),
        (jnp.ones(()), jnp.ones(3), ValueError, r"x has shape \(\); expected an axis of x, or one"),
    ],
)
def test_bad_input_is_named(x, slope, error, message):
    with pytest.raises(error, match=message):
        prelu(x, slope)


def test_slopes_for_an_axis_that_is_not_there_or_of_another_length_are_refused():
    x = jnp.ones((2, 3, 4, 3))  # the last axis would fit
    with pytest.raises(ValueError, match=r"shape \(3,\), expected \(\) or \(4,\).*on axis 2"):
        prelu(x, jnp.ones(3), channel_axis=2)
    with pytest.raises(ValueError, match=r"channel_axis is 4, but x has shape \(2, 3, 4, 3\)"):
        prelu(x, jnp.ones(3), channel_axis=4)
    with pytest.raises(ValueError, match=r"channel_axis is -5.*expected an axis of x, from -4 to"):
        prelu(x, jnp.ones(3), channel_axis=-5)
    for axis in ("last", 1.0, None, (1,), True):
        with pytest.raises(TypeError, match="channel_axis is .*, expected an integer"):
            prelu(x, jnp.ones(3), channel_axis=axis)
