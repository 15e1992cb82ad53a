"""Which initialiser a parameter's numbers fit, and how sure that is.

Every known rule, with each distribution, is a hypothesis with a likelihood. So is each
distribution with a variance of its own, which pays for the fitted parameter (Schwarz 1978) and has
a low prior. A rule is named if its probability is above `SURE` and a Kolmogorov–Smirnov test does
not reject it.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from prelu_jax.initializers.statistics import Statistics

SURE = 0.9999
_KOLMOGOROV = 3.5  # times 1/√n: a distribution is further off by chance once in 2e10 times
_LAST_RESORT = -14.0  # the logarithm of how likely a variance without a name is beforehand
_RARE = 1e-10  # the probability of an extreme that rejects a Gaussian
_CLOSE = 4.0  # of a log-likelihood to the greatest: 2.8 standard deviations of a variance
_MATRICES, _COLUMNS = 4, 64  # of a kernel, that are looked at for being orthogonal
_LEAST = 16  # numbers: fewer fit anything
CUT = 2.0  # where JAX cuts a Gaussian, in its standard deviations before it is cut


def std_after_cut(cut: float) -> float:
    """Return the standard deviation of a standard Gaussian that is cut at ± this."""
    density = math.exp(-(cut**2) / 2) / math.sqrt(2 * math.pi)
    return math.sqrt(1 - 2 * cut * density / math.erf(cut / math.sqrt(2)))


_CUT_MASS = math.erf(CUT / math.sqrt(2))
_CUT_STD = std_after_cut(CUT)


@dataclasses.dataclass(frozen=True)
class Distribution:
    """A distribution of mean 0.

    Attributes:
        name: as `DISTRIBUTIONS`, in words.
        kurtosis: the mean fourth power over the squared variance.
        end: the largest value over the standard deviation.
        log_density: from a variance and the mean square of numbers to the mean logarithm of their
            densities.
        cumulative: of values over the standard deviation.
        free: from statistics to the likeliest variance, and the price of having chosen it over the
            logarithm of the number of values.
    """

    name: str
    kurtosis: float
    end: float
    log_density: Callable[[float, float], float]
    cumulative: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    free: Callable[[Statistics], tuple[float, float]]

    def log_likelihood(self, found: Statistics, variance: float) -> float:
        """Return the logarithm of the density of all values, if the variance is this."""
        rounding = 1 + 2.0**-7 if found.dtype in ("bfloat16", "float16") else 1 + 1e-6
        if found.largest > self.end * math.sqrt(variance) * rounding:
            return -math.inf
        return found.size * self.log_density(variance, found.second_moment)

    def rejects(self, found: Statistics, variance: float) -> bool:
        """Return whether values of this variance would look otherwise (Kolmogorov–Smirnov)."""
        std = math.sqrt(variance)
        count = len(found.sample)
        expected = self.cumulative(found.sample / std)
        above = np.arange(1, count + 1) / count - expected
        below = expected - np.arange(count) / count
        if max(above.max(), below.max()) * math.sqrt(count) > _KOLMOGOROV:
            return True
        if not math.isinf(self.end):
            return False
        # The largest may be too far out for so many numbers, or not far enough.
        outside = math.erfc(found.largest / std / math.sqrt(2))
        return found.size * outside < _RARE or (1 - outside) ** found.size < _RARE


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
    lambda found: (found.second_moment, 0.5),
)
TRUNCATED = Distribution(
    "truncated normal",
    2.3684,
    CUT / _CUT_STD,
    lambda variance, square: (
        -(math.log(2 * math.pi * variance / _CUT_STD**2) + square * _CUT_STD**2 / variance) / 2
        - math.log(_CUT_MASS)
    ),
    _cut_cumulative,
    lambda found: ((found.largest * _CUT_STD / CUT) ** 2, 1.0),
)
UNIFORM = Distribution(
    "uniform",
    1.8,
    math.sqrt(3),
    lambda variance, square: -math.log(12 * variance) / 2,
    lambda x: np.clip(x / math.sqrt(12) + 0.5, 0, 1),
    lambda found: (found.largest**2 / 3, 1.0),
)
ALL = (NORMAL, TRUNCATED, UNIFORM)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A variance that a rule gives, and its name.

    Attributes:
        name: in words.
        variance: of the weights.
        fault: the mistake in the rule; '' for a right one.
        only: the distribution that the name is for; None for all.
        log_prior: the logarithm of how likely it is beforehand.
        by_depth: whether it is a rule's variance divided by a number of layers.
        kind: of the fault, as `findings.Finding.kind`.
    """

    name: str
    variance: float
    fault: str = ""
    only: Distribution | None = None
    log_prior: float = 0.0
    by_depth: bool = False
    kind: str = "wrong fan"


@dataclasses.dataclass(frozen=True)
class Fit:
    """The rule that a parameter's numbers fit.

    Attributes:
        rule: in words; 'not decided: ...' where several are left.
        confidence: the probability of the rule among those that are known; nan if none is named.
        distribution: of them; None if it is not decided, or none of those known here.
        fault: the mistake in the rule (`Candidate`).
        known: whether the variance is that of a rule, not divided by a number of layers.
        kind: of the fault.
    """

    rule: str
    confidence: float
    distribution: Distribution | None = None
    fault: str = ""
    known: bool = False
    kind: str = ""

    @property
    def decided(self) -> bool:
        """Whether one rule is named."""
        return self.confidence > SURE

    def __str__(self) -> str:
        return self.rule


def of(found: Statistics, candidates: Sequence[Candidate]) -> Fit:
    """Return the rule that numbers fit.

    Args:
        found: their statistics.
        candidates: the variances that are known for their shape.
    """
    if found.nonfinite or not found.size:
        return Fit("not finite" if found.nonfinite else "empty", math.nan)
    if found.is_constant:
        return Fit("zeros" if not found.least else f"constant {found.least:.6g}", 1.0)
    if not 1e-280 < found.second_moment < 1e280:
        return Fit(f"no rule known here, up to {found.largest:.3g}", math.nan)
    if found.size < _LEAST:
        return Fit(f"not decided: {found.size} numbers fit anything", math.nan)
    kept = [each for each in _hypotheses(found, candidates) if math.isfinite(each.weight)]
    top = max(each.weight for each in kept)
    total = sum(math.exp(each.weight - top) for each in kept)
    ranked = sorted(kept, key=lambda each: -each.weight)
    chances = [math.exp(each.weight - top) / total for each in ranked]
    left = next(i for i in range(len(ranked)) if sum(chances[: i + 1]) > SURE) + 1
    likely = ranked[:left]
    if all(each.distribution.rejects(found, each.variance) for each in likely):
        return Fit(_other(found), math.nan)
    distributions = {each.distribution for each in likely}
    distribution = likely[0].distribution if len(distributions) == 1 else None
    if left == 1:
        best = likely[0]
        return Fit(best.text, chances[0], distribution, best.fault, best.known, best.kind)
    return Fit(f"not decided: {_either(each.text for each in likely)}", math.nan, distribution)


@dataclasses.dataclass(frozen=True)
class _Hypothesis:
    """A distribution with a variance, and the logarithm of its probability but for a constant."""

    text: str
    distribution: Distribution
    variance: float
    weight: float
    fault: str = ""
    known: bool = False
    kind: str = ""


def _hypotheses(found: Statistics, candidates: Sequence[Candidate]) -> list[_Hypothesis]:
    every = []
    for distribution in ALL:
        by_variance: dict[float, list[Candidate]] = {}
        for each in candidates:
            if each.only in (None, distribution):
                by_variance.setdefault(round(math.log(each.variance), 6), []).append(each)
        free, price = distribution.free(found)
        likeliest = distribution.log_likelihood(found, free)
        for same in by_variance.values():
            best = max(each.log_prior for each in same)
            names = [each for each in same if each.log_prior == best]
            variance = names[0].variance
            weight = distribution.log_likelihood(found, variance) + best
            faults = list(dict.fromkeys(each.fault for each in names))
            fault = "" if "" in faults else "; or ".join(faults)
            if fault and weight - best < likeliest - _CLOSE:
                continue  # a wrong rule has to fit as well as any
            text = f"{distribution.name}, {' = '.join(dict.fromkeys(e.name for e in names))}"
            known = not names[0].by_depth
            kind = names[0].kind if fault else ""
            every.append(_Hypothesis(text, distribution, variance, weight, fault, known, kind))
        weight = likeliest - price * math.log(found.size) + _LAST_RESORT
        text = f"{distribution.name}, std {math.sqrt(free):.3g}"
        every.append(_Hypothesis(text, distribution, free, weight))
    return every


def _either(texts: Iterable[str]) -> str:
    listed = list(texts)
    shown = " or ".join(listed[:3])
    return f"{shown} or {len(listed) - 3} more" if len(listed) > 3 else shown


def _other(found: Statistics) -> str:
    """Describe numbers of a distribution that is none of those known here."""
    if found.zeros > 0.05:
        return f"{found.zeros:.0%} zeros, std {found.std:.3g}"
    end = found.largest / found.std
    if 1.75 < end < 5 and abs(found.mean) < 0.1 * found.std:
        return f"cut at {end:.2g} of its std, std {found.std:.3g}"
    return f"no rule known here, std {found.std:.3g}"


def deviation(found: Statistics, variance: float, kurtosis: float) -> float:
    """Return how far the variance is from another, in standard deviations of its chance error.

    Wilson & Hilferty 1931: the cube root of a χ² variable is nearly normal, far into its tails.

    Args:
        found: statistics of independent numbers.
        variance: of their distribution.
        kurtosis: its mean fourth power over the squared variance.
    """
    if found.size < 2:
        return 0.0
    measured = found.variance * found.size / (found.size - 1)
    freedom = 2 * (found.size - 1) / max(kurtosis - 1, 1e-3)
    spread = 2 / (9 * freedom)
    return float((math.cbrt(measured / variance) - (1 - spread)) / math.sqrt(spread))


def orthogonal(array: NDArray[Any], outputs: Sequence[int], stacked: Sequence[int]) -> float | None:
    """Return the gain of an orthogonal kernel: of its columns, or of its rows; None if it is none.

    Args:
        array: the kernel, or several.
        outputs: the axes of the output features, () for the last.
        stacked: the axes that count kernels.
    """
    if array.ndim < 2:
        return None
    outputs = outputs or (array.ndim - 1,)
    rest = [axis for axis in range(array.ndim) if axis not in (*outputs, *stacked)]
    order = [*stacked, *rest, *outputs]
    columns = math.prod(array.shape[axis] for axis in outputs)
    rows = math.prod(array.shape[axis] for axis in rest)
    if min(rows, columns) < 2:
        return None
    matrices = array.transpose(order).reshape(-1, rows, columns)
    if columns > rows:
        matrices = matrices.swapaxes(1, 2)
    tolerance = 0.03 if array.dtype.itemsize < 4 else 1e-3
    gains = []
    for matrix in matrices[:_MATRICES]:
        part = matrix[:, :_COLUMNS].astype(np.float64)
        products = part.T @ part
        gain = float(np.trace(products)) / len(products)
        if not gain or np.abs(products / gain - np.eye(len(products))).max() > tolerance:
            return None
        gains.append(gain)
    return float(np.mean(gains))
