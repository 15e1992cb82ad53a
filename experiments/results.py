"""What finished runs say: curves, statistics and claims, read from run folders without JAX."""

import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats


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
        """The last error; 1 for a run that diverged, whatever it reached before."""
        return float(self.errors[-1]) if self.status == "done" else 1.0

    def lowest_error(self) -> float:
        """The least error of any evaluation."""
        return float(self.errors.min())

    def steps_to(self, error: float) -> float:
        """The first step evaluated at or below an error; infinity if none was."""
        below = np.flatnonzero(self.errors <= error)
        return float(self.steps[below[0]]) if len(below) else float("inf")


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement of a paper as a check over n seeds."""

    statement: str
    passed: bool
    measured: str

    def __str__(self) -> str:
        return f"{'PASS' if self.passed else 'FAIL'}  {self.statement}\n      {self.measured}"


def read_curve(folder: Path, arm: str) -> Curve:
    """The curve of one run folder."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evaluations = [record for record in records if "test_error" in record]
    return Curve(
        arm=arm,
        seed=json.loads((folder / "config.json").read_text())["seed"],
        status=json.loads((folder / "status.json").read_text())["status"],
        steps=np.array([e["step"] for e in evaluations]),
        epochs=np.array([e["epoch"] for e in evaluations]),
        errors=np.array([e["test_error"] for e in evaluations]),
    )


def write_csv(curves: Sequence[Curve], file: Path) -> None:
    """Every evaluation of every curve, a row each."""
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["initialisation", "seed", "step", "epoch", "test_error"])
        for curve in curves:
            for row in zip(curve.steps, curve.epochs, curve.errors, strict=True):
                writer.writerow([curve.arm, curve.seed, *row])


def summary(values: Sequence[float], unit: str, scale: float = 1.0) -> str:
    """Mean, 95 % Student interval, extremes and n, for people.

    Args:
        values: one per seed; infinite for what did not happen.
        unit: after the numbers, e.g. ' %'.
        scale: from the values to the unit.
    """
    x = np.asarray(values, np.float64) * scale
    n = len(x)
    if not np.isfinite(x).all():
        reached = np.sort(x[np.isfinite(x)])
        seen = ", ".join(f"{v:.4g}{unit}" for v in reached) or "none"
        return f"reached in {len(reached)} of n = {n} seeds ({seen})"
    if n == 1:
        return f"{x[0]:.4g}{unit}, n = 1"
    half = stats.t.ppf(0.975, n - 1) * x.std(ddof=1) / np.sqrt(n)
    return (
        f"mean {x.mean():.4g}{unit}, 95 % interval ± {half:.2g}{unit}, "
        f"range {x.min():.4g} to {x.max():.4g}{unit}, n = {n} seeds"
    )
