"""Claims: statements of the papers as checks over seeds."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments.harness import intervals
from experiments.harness.intervals import confidence
from experiments.harness.results import Curve

OUTCOMES = ("PASS", "FAIL", "UNDECIDED")


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement of a paper as a check over n seeds."""

    statement: str  # the claim itself
    passed: bool | None  # False if the measurement refutes it, None if it decides neither
    measured: str  # the numbers that decide, for people

    def __post_init__(self) -> None:
        if isinstance(self.passed, np.bool):  # of a comparison of NumPy's numbers: not for JSON
            object.__setattr__(self, "passed", bool(self.passed))

    @property
    def outcome(self) -> str:
        """Return the verdict in a word, one of `OUTCOMES`."""
        return OUTCOMES[(True, False, None).index(self.passed)]

    def __str__(self) -> str:
        return f"{self.outcome}  {self.statement}\n      {self.measured}"


def all_above(curves: Sequence[Curve], error: float) -> bool:
    """Return whether every run came to its end and was never below an error.

    A run that diverged did not stay there.
    """
    return all(curve.status == "done" and curve.lowest_error() >= error for curve in curves)


def converged(subject: str, curves: Sequence[Curve], limit: float) -> Claim:
    """Claim that the final error of every run is at most a limit."""
    errors = [curve.final_error() for curve in curves]
    statement = f"{subject}: final error at most {limit:.0%} in every seed"
    return Claim(statement, max(errors) <= limit, intervals.summary(errors, " %", 100))


def stalled(subject: str, curves: Sequence[Curve], limit: float) -> Claim:
    """Claim that no run has an error below a limit at any time."""
    errors = [curve.lowest_error() for curve in curves]
    lost = sum(curve.status == "diverged" for curve in curves)
    return Claim(
        f"{subject}: error never below {limit:.0%} in any seed",
        all_above(curves, limit),
        f"lowest error of each run: {intervals.summary(errors, ' %', 100)}"
        + (f"; {lost} diverged" if lost else ""),
    )


def below_zero(values: Sequence[float], claims: int = 1) -> bool | None:
    """Return whether the mean lies below 0; None if its interval holds values on both sides.

    Args:
        values: one per seed. If one of them is not finite, the mean does not lie below 0.
        claims: how many are judged on the same runs; see `intervals.confidence`.
    """
    if not np.isfinite(values).all():
        return False
    mean, half = intervals.student(values, confidence(claims))
    return is_below(0, mean - half, mean + half)


def is_below(limit: float, low: float, high: float) -> bool | None:
    """Return whether a quantity is below a limit, by its interval; None if that holds both."""
    if high < limit:
        return True
    return False if low >= limit else None  # None for nan


def below_zero_claim(
    statement: str,
    values: Sequence[float],
    unit: str,
    scale: float = 1.0,
    quantity: str = "difference",
    claims: int = 1,
) -> Claim:
    """Claim that the mean over seeds lies below 0, which its interval decides.

    It passes if the whole interval lies below 0, and fails if none of it does. One seed has no
    interval. Values that are not finite, as of runs that diverged, refute the claim.

    Args:
        statement: of the claim.
        values: one per seed; not finite where something did not happen.
        unit, scale: as `intervals.summary` takes them.
        quantity: name of the values, for people.
        claims: how many are judged by intervals on the same runs; see `intervals.confidence`.
    """
    level = confidence(claims)
    measured = f"{quantity}: {intervals.summary(values, unit, scale, level)}"
    if np.isfinite(values).all():
        if len(values) == 1:
            measured += "; not decided: one seed has no interval"
        elif len(values) < intervals.FEW:
            measured += f"; {intervals.interval(np.asarray(values) * scale, unit, level)}"
        if claims > 1:
            measured += f"; {claims} claims are judged on these runs"
    return Claim(statement, below_zero(values, claims), measured)


def lower_error_claim(
    statement: str, errors: Sequence[float], others: Sequence[float], claims: int
) -> Claim:
    """Claim that errors lie below others on average, by the differences within seeds."""
    differences = [a - b for a, b in zip(errors, others, strict=True)]
    return below_zero_claim(statement, differences, " points", 100, claims=claims)
