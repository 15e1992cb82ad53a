import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from prelu_jax import initializers

SHAPES = {"dense": (300, 200), "conv": (3, 3, 32, 64), "even": (2, 2, 64, 32)}
SCALED = ["he_normal", "he_uniform", "xavier_normal", "xavier_uniform"]


def expected_variance(name, mode, shape):
    """The rule written a second time, from the papers."""
    k2 = math.prod(shape[:-2])
    n = {
        "fan_in": k2 * shape[-2],
        "fan_out": k2 * shape[-1],
        "fan_avg": k2 * (shape[-2] + shape[-1]) / 2,
    }[mode]
    return (2 if name.startswith("he") else 1) / n


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("mode", initializers.MODES)
@pytest.mark.parametrize("name", SCALED)
def test_weights_have_the_papers_variance_and_shape(name, mode, shape):
    initializer = initializers.get(name, mode=mode)
    expected = expected_variance(name, mode, shape)
    assert initializer.variance(shape) == pytest.approx(expected, rel=1e-12)
    keys = jax.random.split(jax.random.key(1), 8)
    weights = np.concatenate([np.ravel(initializer(key, shape)) for key in keys])
    n = len(weights)
    # The standard error of a variance: σ²√(2/n) for a Gaussian, σ²√(0.8/n) for a uniform.
    error = expected * math.sqrt((2 if name.endswith("normal") else 0.8) / n)
    assert abs(weights.var() - expected) < 5 * error
    assert abs(weights.mean()) < 5 * math.sqrt(expected / n)
    half_width = math.sqrt(3 * expected)
    uniform = stats.uniform(-half_width, 2 * half_width)
    law = stats.norm(0, math.sqrt(expected)) if name.endswith("normal") else uniform
    assert stats.kstest(weights[:20_000], law.cdf).pvalue > 1e-6


def test_gaussian_is_untruncated_with_its_std():
    weights = np.ravel(initializers.gaussian(0.01)(jax.random.key(0), (500, 500)))
    assert abs(weights.std() / 0.01 - 1) < 5 / math.sqrt(2 * len(weights))
    assert abs(weights).max() > 0.04  # a normal truncated at two std would stop at 0.02


def test_fans_count_connections():
    k, c, d, size = 3, 2, 5, 9
    ones = jnp.ones((k, k, c, d))

    def conv(x):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, ones, (1, 1), "SAME", dimension_numbers=dimensions)

    middle = (0, size // 2, size // 2, 0)
    x = jnp.zeros((1, size, size, c))
    inputs_of_one_output = jnp.count_nonzero(jax.grad(lambda x: conv(x)[middle])(x))
    outputs_of_one_input = jnp.count_nonzero(conv(x.at[middle].set(1.0)))
    assert initializers.fans(ones.shape) == (inputs_of_one_output, outputs_of_one_input)


def test_the_numbers_of_the_paper():
    stds = [
        math.sqrt(initializers.he_normal("fan_out").variance((3, 3, 1, d)))
        for d in (64, 128, 256, 512)
    ]
    assert [round(std, 3) for std in stds] == [0.059, 0.042, 0.029, 0.021]  # §2.2
    # VGG model B: the gradient from conv10 to conv2 with std 0.01 against ours, 1 / (1.7·10⁴).
    ratio = math.prod((std / 0.01) ** n for std, n in zip(stds, (1, 2, 2, 4), strict=True))
    assert round(ratio / 1e4, 1) == 1.7
    gain = initializers.he_normal(negative_slope=0.25).gain  # Eq. 15
    assert gain == pytest.approx(1.882353, abs=1e-6)
    slopes = np.array([0.0, 0.5])  # the mean of the squares counts
    assert initializers.he_normal(negative_slope=slopes).gain == pytest.approx(2 / 1.125)


def test_rules_are_values():
    a, b = initializers.he_normal("fan_out"), initializers.he_normal("fan_out")
    assert a == b
    assert hash(a) == hash(b)
    assert a != initializers.he_normal("fan_in")
    assert a.describe() == "normal, variance 2 / fan_out"
    assert initializers.gaussian(0.01).describe() == "normal, std 0.01"


@pytest.mark.parametrize("name", initializers.REGISTRY)
def test_every_registered_initializer_draws_from_its_key_in_the_type_asked(name):
    initializer = initializers.get(name)
    draw = initializer(jax.random.key(0), (4, 3), jnp.bfloat16)
    assert draw.shape == (4, 3)
    assert draw.dtype == jnp.bfloat16
    assert (draw == initializer(jax.random.key(0), (4, 3), jnp.bfloat16)).all()
    assert (draw != initializer(jax.random.key(1), (4, 3), jnp.bfloat16)).any()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: initializers.get("he_norml"), ValueError, "Did you mean 'he_normal'.*gaussian"),
        (
            lambda: initializers.get("gaussian", mode="fan_in"),
            TypeError,
            "no option 'mode'.*stddev",
        ),
        (lambda: initializers.he_normal("fan_inn"), ValueError, "Did you mean 'fan_in'"),
        (lambda: initializers.he_normal().variance((3,)), ValueError, r"\(3,\) has no fans"),
        (lambda: initializers.gaussian(-1.0), ValueError, "stddev is -1.0"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
