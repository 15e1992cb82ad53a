"""Results of finished runs, read from their folders without JAX."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from prelu_jax import files

_AGAIN = "Give the experiment's command again: it repairs the run or names what it cannot."


@dataclasses.dataclass(frozen=True)
class Curve:
    """The test error of one run over its training."""

    arm: str  # name of the setting that is compared, e.g. 'He'
    seed: int  # of the run
    status: str  # 'done' or 'diverged' (or 'running', if it was stopped)
    steps: np.ndarray  # the evaluations' steps ``[n]``
    epochs: np.ndarray  # the same in passes over the training set ``[n]``
    errors: np.ndarray  # the error there, a fraction ``[n]``

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


def read_curve(folder: Path, arm: str) -> Curve:
    """Return the curve of one run folder, without a point if it diverged before the first.

    Raises:
        ValueError: a file of it is damaged.
    """
    evaluations = [record for record in read_metrics(folder) if "test_error" in record]
    if evaluations and evaluations[0]["step"] > 0:
        logging.warning(
            "%s has no test error before step %d: those records were lost. The claims and "
            "figures are wrong about earlier steps.",
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


def read_curves(folders: Mapping[str, Sequence[Path]]) -> dict[str, list[Curve]]:
    """Return the curves of all runs by arm, from the run folders by arm."""
    return {arm: [read_curve(folder, arm) for folder in runs] for arm, runs in folders.items()}


def diverged_curve(arm: str, seed: int) -> Curve:
    """Return the curve of a run that diverged before its first evaluation."""
    return Curve(arm, seed, "diverged", np.zeros(0, np.int64), np.zeros(0), np.zeros(0))


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
    written = str(_field(folder / "status.json", "status", str))
    if written not in ("running", "done", "diverged"):
        raise ValueError(f"{folder / 'status.json'} is damaged (status is {written!r}). {_AGAIN}")
    return written


def _field(file: Path, name: str, kind: type) -> Any:
    value = files.read_json(file, dict, _AGAIN).get(name)
    if type(value) is not kind:
        raise ValueError(f"{file} is damaged ({name} is {value!r}). {_AGAIN}")
    return value


def diverged(folder: Path) -> bool:
    """Return whether a run ended because its loss was not finite."""
    return status(folder) == "diverged"


def rows(*arms: Iterable[Curve]) -> list[list[Any]]:
    """Return a table with a row for every evaluation of every curve, the heads first."""
    table: list[list[Any]] = [["arm", "seed", "step", "epoch", "test_error"]]
    for curve in itertools.chain(*arms):
        evaluations = zip(curve.steps, curve.epochs, curve.errors, strict=True)
        table += [[curve.arm, curve.seed, *evaluation] for evaluation in evaluations]
    return table
