"""Tests that numbers fit the rule that drew them, or are not decided."""

import jax
import numpy as np
import pytest

from prelu_jax import initializers
from prelu_jax.initializers import candidates, fit, statistics
from prelu_jax.initializers.parameters import Parameter

SHAPES = {64: (4, 16), 1024: (16, 64), 2**14: (64, 256), 2**20: (724, 1448)}
FANS = ("fan_in", "fan_out", "fan_avg")


def fitted(array, depth=1):
    shape = array.shape
    fan_in, fan_out = initializers.fans(shape)
    parameter = Parameter("kernel", shape, "kernel", fan_in, fan_out)
    return fit.best(statistics.measure(array), candidates.possible(parameter, depth))


def is_right(result, gain, fan, distribution, shape):
    """Return whether the decided rule has the right distribution and variance."""
    variance = initializers.VarianceScaling(gain, fan).variance(shape)
    named = result.rule.split(", ", 1)[1]
    same = [
        candidate.name
        for candidate in candidates.possible(
            Parameter("kernel", shape, "kernel", *initializers.fans(shape))
        )
        if abs(candidate.variance / variance - 1) < 1e-6
    ]
    words = distribution.replace("_", " ")
    return result.distribution.name == words and any(name in named for name in same)


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("distribution", initializers.DISTRIBUTIONS)
@pytest.mark.parametrize("gain", [1.0, 2.0])
def test_decided_rules_are_right(size, gain, distribution):
    shape = SHAPES[size]
    decided = total = 0
    for seed in range(40 if size < 2**20 else 2):
        for fan in FANS:
            rule = initializers.VarianceScaling(gain, fan, distribution)
            result = fitted(np.asarray(rule(jax.random.key(seed), shape)))
            total += 1
            if result.decided:
                decided += 1
                assert is_right(result, gain, fan, distribution, shape), (fan, result)
    if size > 64:  # with 64 weights few are decided
        assert decided / total > {1024: 0.3, 2**14: 0.9, 2**20: 0.99}[size]


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (initializers.Orthogonal(2.0), "orthogonal, gain 2"),
        (initializers.constant(0.3), "constant 0.3"),
        (initializers.zeros(), "zeros"),
        (initializers.gaussian(0.02), "normal, std 0.02"),
        (initializers.gaussian(0.0333), "normal, std 0.033"),
    ],
)
def test_other_rules(rule, text):
    array = np.asarray(rule(jax.random.key(0), (200, 300)))
    gain = fit.orthogonal(array, (1,), ())
    result = f"orthogonal, gain {gain:.4g}" if gain else fitted(array).rule
    assert result.startswith(text)


@pytest.mark.parametrize(
    ("draw", "text"),
    [
        (lambda rng: rng.laplace(size=(200, 200)), "no rule known here"),
        (lambda rng: rng.normal(size=(200, 200)) * (rng.random((200, 200)) < 0.5), "50% zeros"),
        (lambda rng: np.clip(rng.normal(size=(200, 200)), -3, 3), "cut at 3"),
        (lambda rng: rng.uniform(size=(200, 200)), "no rule known here"),
        (lambda rng: rng.normal(size=(3, 4)), "not decided: 12 numbers"),
    ],
)
def test_numbers_that_no_rule_draws_are_not_named(draw, text):
    result = fitted(draw(np.random.default_rng(0)).astype(np.float32))
    assert not result.decided
    assert result.rule.startswith(text)


def test_a_deviation_is_a_standard_normal():
    """Compare Wilson & Hilferty's approximation with simulation, into the tails."""
    rng = np.random.default_rng(0)
    for size in (8, 100):
        squares = rng.standard_normal((200_000, size))
        deviations = [fit.deviation(statistics.measure(row), 1.0, 3.0) for row in squares[:4000]]
        assert abs(np.mean(deviations)) < 4 / np.sqrt(4000)
        assert abs(np.std(deviations) - 1) < 4 / np.sqrt(2 * 4000)
        assert np.max(np.abs(deviations)) < 5


def test_statistics_are_those_of_numpy():
    array = np.random.default_rng(1).normal(2.0, 3.0, (1500, 1000)).astype(np.float32)
    result = statistics.measure(array)
    precise = array.astype(np.float64)
    assert result.mean == pytest.approx(precise.mean(), rel=1e-12)
    assert result.variance == pytest.approx(precise.var(), rel=1e-10)
    assert result.fourth_moment == pytest.approx((precise**4).mean(), rel=1e-12)
    assert (result.least, result.greatest) == (precise.min(), precise.max())
    tiny = statistics.measure((array * 1e-25).astype(np.float64))
    assert tiny.fourth_moment == pytest.approx(result.fourth_moment * 1e-100, rel=1e-5)
