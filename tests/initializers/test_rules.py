import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from prelu_jax import draws, initializers
from prelu_jax.initializers import Layout
from tests.initializers.layers import CASES

RULES = {  # name -> (the gain of its rule written a second time, its law)
    "he_normal": (2.0, "normal"),
    "he_uniform": (2.0, "uniform"),
    "xavier_normal": (1.0, "normal"),
    "xavier_uniform": (1.0, "uniform"),
    "he": (2.0, "truncated_normal"),
    "lecun": (1.0, "truncated_normal"),
}
LAWS = {  # of unit variance
    "normal": stats.norm(),
    "uniform": stats.uniform(-math.sqrt(3), 2 * math.sqrt(3)),
    "truncated_normal": stats.truncnorm(-2, 2, scale=1 / stats.truncnorm(-2, 2).std()),
}
KEYS = jax.random.split(jax.random.key(1), 12)


def draw(initializer, shape, dtype):
    return np.asarray(
        jax.vmap(lambda key: initializer(key, shape, dtype))(KEYS).astype(jnp.float32), np.float64
    )


def expected_fan(case, mode):
    """Return the fan as counted by hand in `layers`, which `test_fans` checks."""
    fan_in, fan_out = case.layout.fans(case.kernel_shape())
    means = {"fan_avg": (fan_in + fan_out) / 2, "fan_geo_avg": math.sqrt(fan_in * fan_out)}
    return {"fan_in": fan_in, "fan_out": fan_out, **means}[mode]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("mode", initializers.MODES)
@pytest.mark.parametrize("name", RULES)
def test_weights_have_the_variance_and_the_law_of_the_rule(name, mode, case):
    gain, law_name = RULES[name]
    law = LAWS[law_name]
    truncated = {"distribution": law_name} if law_name == "truncated_normal" else {}
    initializer = initializers.get(name, mode=mode, layout=case.layout, **truncated)
    variance = gain / expected_fan(case, mode)
    assert initializer.variance(case.kernel_shape()) == pytest.approx(variance, rel=1e-12)
    kurtosis = float(law.stats(moments="k")) + 3
    for dtype in (jnp.float32, jnp.bfloat16):
        weights = draw(initializer, case.kernel_shape(), dtype).ravel() / math.sqrt(variance)
        n = len(weights)
        # Var[w²] = E[w⁴] - 1 for weights of unit variance: σ²√(2/n) for a Gaussian.
        z = (np.mean(np.square(weights)) - 1) / math.sqrt((kurtosis - 1) / n)
        assert abs(z) < 5, (dtype, z)
        assert abs(weights.mean()) < 5 / math.sqrt(n)
        assert stats.kstest(weights, law.cdf).pvalue > 1e-6, dtype


def test_a_gaussian_of_fixed_std_is_untruncated_in_every_type():
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        weights = draw(initializers.gaussian(0.01), (300, 100), dtype).ravel()
        assert abs(weights.std() / 0.01 - 1) < 5 / math.sqrt(2 * len(weights))
        assert abs(weights).max() > 0.04  # a normal truncated at two std would stop at 0.02
        assert stats.kstest(weights / 0.01, LAWS["normal"].cdf).pvalue > 1e-6


@pytest.mark.parametrize("name", ["he_normal", "he_uniform", "he", "orthogonal", "gaussian"])
def test_small_kernels_are_drawn_flat_and_large_ones_not_to_the_same_bits(name, monkeypatch):
    initializer = initializers.get(name, **({"stddev": 0.1} if name == "gaussian" else {}))
    key, shape = jax.random.key(0), (128, 64)

    def drawn_shape():
        return str(jax.make_jaxpr(lambda key: initializer(key, shape))(key))

    small = initializer(key, shape)
    assert "shape=(8192,)" in drawn_shape()
    monkeypatch.setattr(draws, "_LARGEST_FLAT", 0)
    assert "shape=(8192,)" not in drawn_shape()
    np.testing.assert_array_equal(small, initializer(key, shape))


def test_jax_draws_no_gaussian_in_bfloat16():
    """This is the reason why half-precision weights are drawn in float32."""
    jax_normal = jax.nn.initializers.normal(1.0)
    theirs = draw(lambda *a: jax_normal(*a), (400, 400), jnp.bfloat16)
    ours = draw(initializers.gaussian(1.0), (400, 400), jnp.bfloat16)
    assert abs(theirs).max() < 3.0 < 4.5 < abs(ours).max()


def matrices(kernel, layout):
    """Return a batched, grouped layer's kernel as matrices [stack, rows, filters], by hand."""
    batch, inputs, outputs, window = layout.axes(kernel.shape)
    rows = [i for i in range(kernel.ndim) if i in (*window, *inputs)]
    flat = kernel.transpose(*batch, *rows, *outputs).reshape(
        math.prod(kernel.shape[i] for i in batch), math.prod(kernel.shape[i] for i in rows), -1
    )
    groups = np.split(flat, layout.feature_group_count, axis=-1)
    return np.concatenate(groups)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("slope", [1.0, 0.0])
def test_filters_are_orthogonal_in_every_group_and_stacked_layer(case, slope):
    initializer = initializers.orthogonal(slope, layout=case.layout)
    gain = 2 / (1 + slope**2)
    for kernel in draw(initializer, case.kernel_shape(), jnp.float32)[:3]:
        for matrix in matrices(kernel, case.layout):
            rows, columns = matrix.shape
            product = matrix.T @ matrix if rows >= columns else matrix @ matrix.T
            np.testing.assert_allclose(product, gain * np.eye(min(rows, columns)), atol=1e-5)
        variance = initializer.variance(kernel.shape)
        np.testing.assert_allclose(np.mean(np.square(kernel)), variance, rtol=1e-5)


@pytest.mark.parametrize("name", ["conv1d", "conv2d", "depthwise"])
def test_delta_orthogonal_kernels_keep_every_map(name):
    layout, shape = CASES[name].layout, CASES[name].kernel_shape()
    initializer = initializers.delta_orthogonal(layout=layout)
    for kernel in draw(initializer, shape, jnp.float32)[:3]:
        centre = tuple((k - 1) // 2 for k in shape[:-2])
        assert np.count_nonzero(kernel) == np.count_nonzero(kernel[centre])
        for matrix in matrices(kernel[centre], layout):
            np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(matrix)), atol=1e-5)
        np.testing.assert_allclose(np.mean(kernel**2), initializer.variance(shape), rtol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("inputs", "outputs"), [(4, 4), (4, 6), (6, 4)])
def test_a_dirac_convolution_passes_its_input_on(inputs, outputs, groups):
    initializer = initializers.dirac(0.5, layout=Layout(feature_group_count=groups))
    shape = (3, 3, inputs // groups, outputs)
    kernel = initializer(jax.random.key(0), shape)
    x = jax.random.normal(jax.random.key(1), (2, 5, 5, inputs))
    y = jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    gain = 2 / (1 + 0.5**2)  # of the rectifier before
    read, written = inputs // groups, outputs // groups
    kept = min(read, written)
    expected = np.zeros(y.shape)
    for group in range(groups):
        passed = x[..., group * read : group * read + kept]
        expected[..., group * written : group * written + kept] = np.sqrt(gain) * passed
    np.testing.assert_allclose(y, expected, atol=1e-6)
    np.testing.assert_allclose(np.mean(kernel**2), initializer.variance(shape), rtol=1e-5)
    assert initializer.describe() == "Dirac, variance 1.6 / max(fan_in, fan_out)"


def test_rules_are_values():
    a, b = initializers.he_normal("fan_out"), initializers.he_normal("fan_out")
    assert a == b
    assert hash(a) == hash(b)
    assert a != initializers.he_normal("fan_in")
    assert initializers.dirac() != initializers.delta_orthogonal()
    assert a != initializers.he_normal("fan_out", layout=Layout(feature_group_count=2))


@pytest.mark.parametrize("name", initializers.REGISTRY)
def test_every_registered_initializer_draws_from_its_key_in_the_type_asked(name):
    initializer = initializers.get(name)
    shape = (3, 4, 4)
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        weights = initializer(jax.random.key(0), shape, dtype)
        assert (weights.shape, weights.dtype) == (shape, dtype)
        assert (weights == initializer(jax.random.key(0), shape, dtype)).all()
        if name not in ("zeros", "dirac"):
            assert (weights != initializer(jax.random.key(1), shape, dtype)).any()
    assert np.isfinite(initializer.variance(shape))
    assert initializer.describe()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: initializers.he_normal("fan_inn"), ValueError, "Did you mean 'fan_in'"),
        (lambda: initializers.he(distribution="gauss"), ValueError, "Unknown distribution 'gauss'"),
        (lambda: initializers.he_normal().variance((3,)), ValueError, r"\(3,\) has no fans"),
        (lambda: initializers.gaussian(-1.0), ValueError, "stddev is -1.0"),
        (lambda: initializers.he_normal(input_scale=0.0), ValueError, "input_scale is 0.0"),
        (lambda: initializers.he_normal(negative_slope=[]), ValueError, r"negative_slope is \[\]"),
        (
            lambda: initializers.he_normal(negative_slope=math.nan),
            ValueError,
            "negative_slope is nan",
        ),
        (
            lambda: initializers.he_normal()(jax.random.key(0), (2, 2), jnp.int32),
            TypeError,
            "int32, expected a floating-point type",
        ),
        (
            lambda: initializers.delta_orthogonal().variance((3, 3, 4, 2)),
            ValueError,
            "4 input features and 2 output features",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
