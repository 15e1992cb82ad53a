"""What finished runs say: curves, statistics and claims, read from run folders without JAX."""

import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import special


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
class Factor:
    """A predicted factor, and the measured one with its interval."""

    predicted: float
    measured: float
    low: float
    high: float

    @property
    def agrees(self) -> bool:
        """Whether the prediction lies in the interval."""
        return self.low <= self.predicted <= self.high

    def __str__(self) -> str:
        return (
            f"predicted {self.predicted:.4f}, measured {self.measured:.4f} "
            f"({self.low:.4f} to {self.high:.4f})"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Profile:
    """Second moments of a network at initialisation, layer by layer.

    Attributes:
        net: the network's name.
        arm: its initialisation.
        direction: 'forward', E[y²], or 'backward', E[Δy²].
        layers: the layers' names ``[L]``.
        predicted: logs of the moments by theory ``[L]``.
        measured: logs of the moments of each seed ``[n, L]``.
    """

    net: str
    arm: str
    direction: str
    layers: tuple[str, ...]
    predicted: np.ndarray
    measured: np.ndarray

    def interval(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """The log of the mean over the seeds ``[L]``, and half its interval ``[L]``."""
        return log_normal_mean(self.measured, level)

    def factor_per_layer(self, stage: Sequence[str], level: float) -> Factor:
        """From the first to the last layer of a stage, or backward, a geometric mean per layer."""
        ends = [self.layers.index(stage[i]) for i in (0, -1)]
        first, last = ends if self.direction == "forward" else reversed(ends)
        steps = abs(last - first)
        predicted = self.predicted[last] - self.predicted[first]
        log, half = log_normal_mean(self.measured[:, last] - self.measured[:, first], level)
        return Factor(*(float(np.exp(v / steps)) for v in (predicted, log, log - half, log + half)))


def log_normal_mean(logs: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """The log of the mean of a log-normal variable from n draws ``[n, ...]``, ± half an interval.

    A product of many random layers is nearly log-normal, and so skewed that the plain mean of any
    affordable number of draws lies far below its expectation: E = exp(mean + variance / 2).
    """
    n = len(logs)
    variance = logs.var(axis=0, ddof=1)
    error = np.sqrt(variance / n + variance**2 / (2 * (n - 1)))
    half = special.stdtrit(n - 1, (1 + level) / 2) * error
    return logs.mean(axis=0) + variance / 2, half


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


def diverged(folder: Path) -> bool:
    """Whether a run ended because its loss was not finite."""
    return bool(json.loads((folder / "status.json").read_text())["status"] == "diverged")


def write_csv(curves: Sequence[Curve], file: Path) -> None:
    """Every evaluation of every curve, a row each."""
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["arm", "seed", "step", "epoch", "test_error"])
        for curve in curves:
            for row in zip(curve.steps, curve.epochs, curve.errors, strict=True):
                writer.writerow([curve.arm, curve.seed, *row])


def write_profiles(profiles: Sequence[Profile], file: Path) -> None:
    """Every layer of every profile, a row each; moments as decimal logarithms."""
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(
            [
                *("net", "initialisation", "direction", "layer", "seeds"),
                *("log10_predicted", "log10_measured", "log10_low", "log10_high"),
            ]
        )
        for p in profiles:
            log, half = p.interval()
            numbers = np.stack([p.predicted, log, log - half, log + half], axis=1) / np.log(10)
            for layer, row in zip(p.layers, numbers, strict=True):
                known = [p.net, p.arm, p.direction, layer, len(p.measured)]
                writer.writerow([*known, *(f"{value:.4f}" for value in row)])


def student(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The mean and half its 95 % Student interval, which is infinite for one value."""
    x = np.asarray(values, np.float64)
    if len(x) == 1:
        return float(x[0]), float("inf")
    half = special.stdtrit(len(x) - 1, 0.975) * x.std(ddof=1) / np.sqrt(len(x))
    return float(x.mean()), float(half)


def below_zero(values: Sequence[float]) -> bool:
    """Whether the whole 95 % interval of the mean lies below 0."""
    mean, half = student(values)
    return mean + half < 0


def short(values: Sequence[float], scale: float = 1.0, digits: int = 1) -> str:
    """A cell of a table: mean ± half the 95 % interval, or in how many seeds it happened."""
    x = np.asarray(values, np.float64) * scale
    reached = np.isfinite(x).sum()
    if reached < len(x):
        return f"in {reached} of {len(x)}"
    mean, half = student(x)
    shown = f"{mean:.{digits}f}"
    return f"{shown} ± {half:.{digits}f}" if np.isfinite(half) else shown


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
    mean, half = student(x)
    return (
        f"mean {mean:.4g}{unit}, 95 % interval ± {half:.2g}{unit}, "
        f"range {x.min():.4g} to {x.max():.4g}{unit}, n = {n} seeds"
    )


def below_zero_claim(
    statement: str,
    values: Sequence[float],
    unit: str,
    scale: float = 1.0,
    of: str = "difference",
) -> Claim:
    """That the mean of what the seeds say lies below 0, which its 95 % interval decides.

    Args:
        statement: of the claim.
        values: one per seed; not finite for what did not happen.
        unit, scale: as `summary` takes them.
        of: what the values are, for people.
    """
    measured = f"{of}: {summary(values, unit, scale)}"
    if len(values) == 1:
        measured += "; not decided: one seed has no interval"
    return Claim(statement, below_zero(values), measured)
