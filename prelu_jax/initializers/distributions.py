"""Distributions of freshly drawn weights, as hypotheses about a parameter's numbers."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import special

from prelu_jax.initializers.statistics import Statistics

_KOLMOGOROV = 3.5  # times 1/√n: largest distance of distributions; exceeded by chance in 1 of 2e10
_RARE = 1e-10  # a Gaussian is rejected if its extreme has a lower probability
CUT = 2.0  # standard deviations at which JAX cuts a Gaussian


def std_after_cut(cut: float) -> float:
    """Return the standard deviation of a standard Gaussian truncated at ±``cut``."""
    density = math.exp(-(cut**2) / 2) / math.sqrt(2 * math.pi)
    return math.sqrt(1 - 2 * cut * density / math.erf(cut / math.sqrt(2)))


_CUT_MASS = math.erf(CUT / math.sqrt(2))
_CUT_STD = std_after_cut(CUT)
_CUT_LOST = 1 - _CUT_STD**2  # of the variance
_CUT_KURTOSIS = (3 - _CUT_LOST * (CUT**2 + 3)) / _CUT_STD**4


@dataclasses.dataclass(frozen=True)
class Distribution:
    """A distribution of mean 0.

    Attributes:
        name: one of `DISTRIBUTIONS`, in words.
        kurtosis: mean fourth power over the squared variance.
        end: largest value over the standard deviation.
        log_density: function from a variance and the mean square of numbers to the mean logarithm
            of their densities.
        cumulative: cumulative distribution of values over the standard deviation.
        free: function from statistics to the likeliest variance, and the penalty for fitting it,
            over the logarithm of the number of values.
    """

    name: str
    kurtosis: float
    end: float
    log_density: Callable[[float, float], float]
    cumulative: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    free: Callable[[Statistics], tuple[float, float]]

    def log_likelihood(self, measured: Statistics, variance: float) -> float:
        """Return the logarithm of the density of all numbers, given the variance."""
        rounding = 1 + 2.0**-7 if measured.dtype in ("bfloat16", "float16") else 1 + 1e-6
        if measured.largest > self.end * math.sqrt(variance) * rounding:
            return -math.inf
        return measured.size * self.log_density(variance, measured.second_moment)

    def rejects(self, measured: Statistics, variance: float) -> bool:
        """Return whether a test rejects the numbers for this variance (Kolmogorov–Smirnov)."""
        std = math.sqrt(variance)
        count = len(measured.sample)
        expected = self.cumulative(measured.sample / std)
        above = np.arange(1, count + 1) / count - expected
        below = expected - np.arange(count) / count
        if max(above.max(), below.max()) * math.sqrt(count) > _KOLMOGOROV:
            return True
        if not math.isinf(self.end):
            return False
        # The extreme may be too large, or too small, for this number of draws.
        outside = math.erfc(measured.largest / std / math.sqrt(2))
        return measured.size * outside < _RARE or (1 - outside) ** measured.size < _RARE


def _normal_cumulative(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(special.ndtr(x), np.float64)


def _cut_cumulative(x: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = (_normal_cumulative(np.clip(x * _CUT_STD, -CUT, CUT)) - 0.5) / _CUT_MASS + 0.5
    return np.clip(inside, 0, 1)


NORMAL = Distribution(
    "normal",
    3.0,
    math.inf,
    lambda variance, square: -(math.log(2 * math.pi * variance) + square / variance) / 2,
    _normal_cumulative,
    lambda measured: (measured.second_moment, 0.5),
)
TRUNCATED = Distribution(
    "truncated normal",
    _CUT_KURTOSIS,
    CUT / _CUT_STD,
    lambda variance, square: (
        -(math.log(2 * math.pi * variance / _CUT_STD**2) + square * _CUT_STD**2 / variance) / 2
        - math.log(_CUT_MASS)
    ),
    _cut_cumulative,
    lambda measured: ((measured.largest * _CUT_STD / CUT) ** 2, 1.0),
)
UNIFORM = Distribution(
    "uniform",
    1.8,
    math.sqrt(3),
    lambda variance, square: -math.log(12 * variance) / 2,
    lambda x: np.clip(x / math.sqrt(12) + 0.5, 0, 1),
    lambda measured: (measured.largest**2 / 3, 1.0),
)
ALL = (NORMAL, TRUNCATED, UNIFORM)
