"""What finished runs say: curves, statistics and claims, read from run folders without JAX."""

import csv
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from scipy import special

from prelu_jax import files

OUTCOMES = ("PASS", "FAIL", "UNDECIDED")
LEVEL = 0.95  # of intervals, and of all claims together that are judged on the same runs
_FEW = 5  # seeds: with fewer, every value is shown in place of the mean and its interval

_AGAIN = "Give the experiment's command again: it repairs the run or names what it cannot."


@dataclasses.dataclass(frozen=True)
class Curve:
    """The test error of one run over its training.

    Attributes:
        arm: what is compared, e.g. 'He'.
        seed: of the run.
        status: 'done' or 'diverged' (or 'running', if it was stopped).
        steps: the evaluations' steps ``[n]``.
        epochs: the same in passes over the training set ``[n]``.
        errors: the error there, a fraction ``[n]``.
    """

    arm: str
    seed: int
    status: str
    steps: np.ndarray
    epochs: np.ndarray
    errors: np.ndarray

    def final_error(self) -> float:
        """Return the last error; 1 for a run that diverged, whatever it reached before."""
        return float(self.errors[-1]) if self.status == "done" and len(self.errors) else 1.0

    def lowest_error(self) -> float:
        """Return the least error of any evaluation; 1 for a run that diverged before the first."""
        return float(self.errors.min(initial=1.0))

    def steps_to(self, error: float) -> float:
        """Return the first evaluated step at or below an error; infinity if there is none."""
        below = np.flatnonzero(self.errors <= error)
        return float(self.steps[below[0]]) if len(below) else float("inf")


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement of a paper as a check over n seeds.

    Attributes:
        statement: what is claimed.
        passed: False if the measurement refutes it, None if it decides neither.
        measured: the numbers that decide, for people.
    """

    statement: str
    passed: bool | None
    measured: str

    def __post_init__(self) -> None:
        if isinstance(self.passed, np.bool):  # of a comparison of NumPy's numbers: not for JSON
            object.__setattr__(self, "passed", bool(self.passed))

    @property
    def outcome(self) -> str:
        """Return the verdict in a word, one of `OUTCOMES`."""
        return OUTCOMES[(True, False, None).index(self.passed)]

    def __str__(self) -> str:
        return f"{self.outcome}  {self.statement}\n      {self.measured}"


def read_curve(folder: Path, arm: str) -> Curve:
    """Return the curve of one run folder, without a point if it diverged before the first.

    Raises:
        ValueError: a file of it is damaged.
    """
    evaluations = [record for record in read_metrics(folder) if "test_error" in record]
    if evaluations and evaluations[0]["step"] > 0:
        logging.warning(
            "%s has no test error before step %d: those records were lost. What the claims and "
            "figures say of earlier steps is wrong.",
            *(folder / "metrics.jsonl", evaluations[0]["step"]),
        )
    ended = status(folder)
    if ended == "done" and not evaluations:
        raise ValueError(
            f"{folder / 'metrics.jsonl'} has no test error: its records were lost. Remove the "
            "run folder and give the experiment's command again."
        )
    return Curve(
        arm=arm,
        seed=seed(folder),
        status=ended,
        steps=np.array([e["step"] for e in evaluations], np.int64),
        epochs=np.array([e["epoch"] for e in evaluations], np.float64),
        errors=np.array([e["test_error"] for e in evaluations], np.float64),
    )


def diverged_curve(arm: str, seed: int) -> Curve:
    """Return the curve of a run that diverged before its first evaluation."""
    return Curve(arm, seed, "diverged", np.zeros(0, np.int64), np.zeros(0), np.zeros(0))


def all_above(curves: Sequence[Curve], error: float) -> bool:
    """Return whether every run came to its end and was never below an error.

    A run that diverged did not stay there.
    """
    return all(curve.status == "done" and curve.lowest_error() >= error for curve in curves)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a run's metrics.jsonl.

    Raises:
        ValueError: a line of it is damaged.
    """
    records, damaged = files.read_records(folder / "metrics.jsonl")
    if damaged:
        raise ValueError(f"{folder / 'metrics.jsonl'} is damaged at line {damaged[0]}. {_AGAIN}")
    return records


def seed(folder: Path) -> int:
    """Return the seed of a run, from its config.json."""
    return int(_field(folder / "config.json", "seed", int))


def status(folder: Path) -> str:
    """Return 'running', 'done' or 'diverged', from a run's status.json."""
    found = str(_field(folder / "status.json", "status", str))
    if found not in ("running", "done", "diverged"):
        raise ValueError(f"{folder / 'status.json'} is damaged (status is {found!r}). {_AGAIN}")
    return found


def _field(file: Path, name: str, kind: type) -> Any:
    value = files.read_json(file, dict, _AGAIN).get(name)
    if type(value) is not kind:
        raise ValueError(f"{file} is damaged ({name} is {value!r}). {_AGAIN}")
    return value


def diverged(folder: Path) -> bool:
    """Return whether a run ended because its loss was not finite."""
    return status(folder) == "diverged"


def write_csv(curves: Sequence[Curve], file: Path) -> None:
    """Every evaluation of every curve, a row each."""
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["arm", "seed", "step", "epoch", "test_error"])
        for curve in curves:
            for row in zip(curve.steps, curve.epochs, curve.errors, strict=True):
                writer.writerow([curve.arm, curve.seed, *row])


def confidence(claims: int = 1) -> float:
    """Return the level of the interval that decides one of several claims on the same runs.

    Each of k claims takes 1/k of the 5 % that all of them together may be wrong (Bonferroni).
    """
    return 1 - (1 - LEVEL) / claims


def student(values: Sequence[float] | np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Return the mean and half its Student interval, which is infinite for one value."""
    x = np.asarray(values, np.float64)
    if len(x) == 1:
        return float(x[0]), float("inf")
    quantile = special.stdtrit(len(x) - 1, (1 + level) / 2)
    return float(x.mean()), float(quantile * x.std(ddof=1) / np.sqrt(len(x)))


def below_zero(values: Sequence[float], claims: int = 1) -> bool | None:
    """Return whether the mean lies below 0; None if its interval holds values on both sides.

    Args:
        values: one per seed. If one of them is not finite, the mean does not lie below 0.
        claims: how many are judged on the same runs; see `confidence`.
    """
    if not np.isfinite(values).all():
        return False
    mean, half = student(values, confidence(claims))
    return is_below(0, mean - half, mean + half)


def is_below(limit: float, low: float, high: float) -> bool | None:
    """Return whether a quantity is below a limit, by its interval; None if that holds both."""
    if high < limit:
        return True
    return False if low >= limit else None  # None for nan


def line(x: np.ndarray, y: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Return the slope of the least-squares line through points, and half its interval.

    Args:
        x, y: coordinates ``[n]``, n of 3 or more.
        level: of the interval, Student's with n - 2 degrees of freedom.
    """
    centred = x - x.mean()
    spread = (centred**2).sum()
    slope = (centred * y).sum() / spread
    residuals = y - y.mean() - slope * centred
    error = np.sqrt((residuals**2).sum() / (len(x) - 2) / spread)
    return float(slope), float(special.stdtrit(len(x) - 2, (1 + level) / 2) * error)


def short(values: Sequence[float], scale: float = 1.0, digits: int = 1, form: str = "f") -> str:
    """Return a cell of a table; `heading` describes it.

    Args:
        values: one per seed; not finite where something did not happen: the cell counts the others.
        scale: from the values to the numbers shown.
        digits, form: of a number, as in its format '.1f'.
    """
    x = np.asarray(values, np.float64) * scale
    reached = np.isfinite(x).sum()
    if reached < len(x):
        return f"in {reached} of {len(x)}"
    shown = x if len(x) < _FEW else student(x)
    return (", " if len(x) < _FEW else " ± ").join(f"{value:z.{digits}{form}}" for value in shown)


def heading(n: int) -> str:
    """Return the beginning of a sentence on a table whose cells are of `short`."""
    if n == 1:
        return "Values of n = 1 seed"
    if n < _FEW:
        return f"Values of every seed, in order, n = {n} seeds"
    return f"Means and {100 * LEVEL:g} % Student intervals over n = {n} seeds"


def summary(values: Sequence[float], unit: str, scale: float = 1.0, level: float = LEVEL) -> str:
    """Return the values of a few seeds, or else mean, Student interval, extremes and n.

    Args:
        values: one per seed; infinite for what did not happen.
        unit: after the numbers, e.g. ' %'.
        scale: from the values to the unit.
        level: of the interval.
    """
    x = np.asarray(values, np.float64) * scale
    n = len(x)
    if not np.isfinite(x).all():
        reached = np.sort(x[np.isfinite(x)])
        seen = ", ".join(f"{v:.4g}{unit}" for v in reached) or "none"
        return f"reached in {len(reached)} of n = {n} seeds ({seen})"
    if n < _FEW:
        return f"{_listed(x)}{unit}, n = {n}{' seeds' if n > 1 else ''}"
    return (
        f"{_interval(x, unit, level)}, range {x.min():z.4g} to {x.max():z.4g}{unit}, n = {n} seeds"
    )


def _listed(x: np.ndarray) -> str:
    """Return numbers with as many decimals as four digits of the largest need."""
    largest = np.abs(x).max()
    decimals = max(0, 3 - math.floor(math.log10(largest))) if largest else 0
    needed = (len(f"{v:z.{decimals}f}".rstrip("0").partition(".")[2]) for v in x)
    decimals = max(needed) if decimals else 0
    return ", ".join(f"{v:z.{decimals}f}" for v in x)


def _interval(x: np.ndarray, unit: str, level: float) -> str:
    mean, half = student(x, level)
    mean = 0.0 if abs(mean) < 1e-12 * np.abs(x).max() else mean  # a sum's rounding
    return f"mean {mean:z.4g}{unit}, {100 * level:.4g} % interval ± {half:.2g}{unit}"


def below_zero_claim(
    statement: str,
    values: Sequence[float],
    unit: str,
    scale: float = 1.0,
    of: str = "difference",
    claims: int = 1,
) -> Claim:
    """Claim that the mean over seeds lies below 0, which its interval decides.

    It passes if the whole interval lies below 0, and fails if none of it does. One seed has no
    interval. Values that are not finite, as of runs that diverged, refute the claim.

    Args:
        statement: of the claim.
        values: one per seed; not finite for what did not happen.
        unit, scale: as `summary` takes them.
        of: what the values are, for people.
        claims: how many are judged by intervals on the same runs; see `confidence`.
    """
    level = confidence(claims)
    measured = f"{of}: {summary(values, unit, scale, level)}"
    if np.isfinite(values).all():
        if len(values) == 1:
            measured += "; not decided: one seed has no interval"
        elif len(values) < _FEW:
            measured += f"; {_interval(np.asarray(values) * scale, unit, level)}"
        if claims > 1:
            measured += f"; {claims} claims are judged on these runs"
    return Claim(statement, below_zero(values, claims), measured)
