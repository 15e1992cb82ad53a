"""The initialiser that a parameter's numbers fit, with the probability that it is right.

Every known rule, with each distribution, is a hypothesis with a likelihood. Each distribution with
a fitted variance is a hypothesis, too, with a penalty for the fitted parameter (Schwarz 1978) and a
low prior. A rule is named if its probability is above `SURE` and a Kolmogorov–Smirnov test does not
reject it.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prelu_jax.initializers.distributions import ALL, Distribution
from prelu_jax.initializers.statistics import Statistics

SURE = 0.9999
_LAST_RESORT = -14.0  # log prior probability of a fitted variance
_CLOSE = 4.0  # difference to the greatest log-likelihood: 2.8 standard deviations of a variance
_MATRICES, _COLUMNS = 4, 64  # matrices and columns of a kernel in the test for orthogonality
_LEAST = 16  # fewer numbers fit any rule


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A variance that a rule gives, and its name.

    Attributes:
        name: the rule in words.
        variance: variance of the weights.
        fault: the mistake in the rule; '' for a right one.
        only: the only distribution to try; None for all.
        log_prior: logarithm of the prior probability, relative to that of a right rule.
        by_depth: whether it is a rule's variance divided by a number of layers.
        kind: kind of the fault, as in `audited.Finding.kind`.
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
        rule: the rule in words; 'not decided: ...' if several remain.
        confidence: probability of the rule among the known ones; nan if no rule is certain.
        distribution: distribution of the numbers; None if it is not certain or not known.
        fault: the mistake in the rule (`Candidate`).
        known: whether the variance is that of a rule, not divided by a number of layers.
        kind: kind of the fault.
    """

    rule: str
    confidence: float
    distribution: Distribution | None = None
    fault: str = ""
    known: bool = False
    kind: str = ""

    @property
    def decided(self) -> bool:
        """True if one rule is certain enough to be named."""
        return self.confidence > SURE

    def __str__(self) -> str:
        return self.rule


def best(measured: Statistics, candidates: Sequence[Candidate]) -> Fit:
    """Return the rule that numbers fit best.

    Args:
        measured: statistics of the numbers.
        candidates: variances that rules give for the parameter's shape.
    """
    if measured.nonfinite or not measured.size:
        return Fit("not finite" if measured.nonfinite else "empty", math.nan)
    if measured.is_constant:
        return Fit("zeros" if not measured.least else f"constant {measured.least:.6g}", 1.0)
    if not 1e-280 < measured.second_moment < 1e280:
        return Fit(f"no rule known here, up to {measured.largest:.3g}", math.nan)
    if measured.size < _LEAST:
        return Fit(f"not decided: {measured.size} numbers fit any rule", math.nan)
    kept = [h for h in _hypotheses(measured, candidates) if math.isfinite(h.weight)]
    top = max(hypothesis.weight for hypothesis in kept)
    total = sum(math.exp(hypothesis.weight - top) for hypothesis in kept)
    ranked = sorted(kept, key=lambda hypothesis: -hypothesis.weight)
    chances = [math.exp(hypothesis.weight - top) / total for hypothesis in ranked]
    count = next(i for i in range(len(ranked)) if sum(chances[: i + 1]) > SURE) + 1
    likely = ranked[:count]
    if all(h.distribution.rejects(measured, h.variance) for h in likely):
        return Fit(_other(measured), math.nan)
    distributions = {hypothesis.distribution for hypothesis in likely}
    distribution = likely[0].distribution if len(distributions) == 1 else None
    if count == 1:
        first = likely[0]
        return Fit(first.text, chances[0], distribution, first.fault, first.known, first.kind)
    return Fit(f"not decided: {_either(h.text for h in likely)}", math.nan, distribution)


@dataclasses.dataclass(frozen=True)
class _Hypothesis:
    """A distribution with a variance, and its log-probability up to a constant."""

    text: str
    distribution: Distribution
    variance: float
    weight: float
    fault: str = ""
    known: bool = False
    kind: str = ""


def _hypotheses(measured: Statistics, candidates: Sequence[Candidate]) -> list[_Hypothesis]:
    hypotheses = []
    for distribution in ALL:
        by_variance: dict[float, list[Candidate]] = {}
        for candidate in candidates:
            if candidate.only in (None, distribution):
                key = round(math.log(candidate.variance), 6)
                by_variance.setdefault(key, []).append(candidate)
        free, price = distribution.free(measured)
        likeliest = distribution.log_likelihood(measured, free)
        for same in by_variance.values():
            prior = max(candidate.log_prior for candidate in same)
            names = [candidate for candidate in same if candidate.log_prior == prior]
            variance = names[0].variance
            weight = distribution.log_likelihood(measured, variance) + prior
            faults = list(dict.fromkeys(candidate.fault for candidate in names))
            fault = "" if "" in faults else "; or ".join(faults)
            if fault and weight - prior < likeliest - _CLOSE:
                continue  # a wrong rule must fit almost as well as a fitted variance
            text = f"{distribution.name}, {' = '.join(dict.fromkeys(e.name for e in names))}"
            known = not names[0].by_depth
            kind = names[0].kind if fault else ""
            hypotheses.append(_Hypothesis(text, distribution, variance, weight, fault, known, kind))
        weight = likeliest - price * math.log(measured.size) + _LAST_RESORT
        text = f"{distribution.name}, std {math.sqrt(free):.3g}"
        hypotheses.append(_Hypothesis(text, distribution, free, weight))
    return hypotheses


def _either(texts: Iterable[str]) -> str:
    listed = list(texts)
    shown = " or ".join(listed[:3])
    return f"{shown} or {len(listed) - 3} more" if len(listed) > 3 else shown


def _other(measured: Statistics) -> str:
    """Describe numbers that fit none of the known distributions."""
    if measured.zeros > 0.05:
        return f"{measured.zeros:.0%} zeros, std {measured.std:.3g}"
    end = measured.largest / measured.std
    if 1.75 < end < 5 and abs(measured.mean) < 0.1 * measured.std:
        return f"cut at {end:.2g} times its std, std {measured.std:.3g}"
    return f"no rule known here, std {measured.std:.3g}"


def deviation(measured: Statistics, variance: float, kurtosis: float) -> float:
    """Return how far a variance is from another, in standard deviations of its chance error.

    By Wilson & Hilferty 1931: the cube root of a χ² variable is nearly normal, far into its tails.

    Args:
        measured: statistics of independent numbers.
        variance: variance of their distribution.
        kurtosis: mean fourth power of that distribution over its squared variance.
    """
    if measured.size < 2:
        return 0.0
    sample_variance = measured.variance * measured.size / (measured.size - 1)
    freedom = 2 * (measured.size - 1) / max(kurtosis - 1, 1e-3)
    spread = 2 / (9 * freedom)
    return float((math.cbrt(sample_variance / variance) - (1 - spread)) / math.sqrt(spread))


def orthogonal(array: NDArray[Any], outputs: Sequence[int], stacked: Sequence[int]) -> float | None:
    """Return the gain of a kernel with orthogonal columns or rows; None if it has neither.

    Args:
        array: one kernel, or a stack of kernels.
        outputs: axes of the output features, () for the last.
        stacked: axes that count kernels.
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
