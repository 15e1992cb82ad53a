"""The learned slopes of finished runs, read from their folders without JAX."""

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Slopes:
    """The slope behind every rectified layer over the training of one run.

    Attributes:
        seed: of the run.
        status: 'done' or 'diverged' (or 'running', if it was stopped).
        layers: the layers' names, in order of depth ``[L]``.
        steps: how many steps had been taken ``[n]``.
        values: the slopes there, means over channels ``[n, L]``.
    """

    seed: int
    status: str
    layers: tuple[str, ...]
    steps: np.ndarray
    values: np.ndarray

    def final(self) -> np.ndarray:
        """The last slopes ``[L]``; not a number for a run that diverged: it learned none."""
        return self.values[-1] if self.status == "done" else np.full(len(self.layers), np.nan)


def read(folder: Path, layers: Sequence[str]) -> Slopes:
    """The slopes of one run folder.

    Args:
        folder: of a run with PReLU.
        layers: the rectified layers' names, in order of depth.
    """
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = [record for record in records if "slope_mean" in record]
    values = [[r["slope_mean"][f"{layer}_prelu"] for layer in layers] for r in logged]
    return Slopes(
        seed=json.loads((folder / "config.json").read_text())["seed"],
        status=json.loads((folder / "status.json").read_text())["status"],
        layers=tuple(layers),
        steps=np.array([r["step"] - 1 for r in logged]),  # slopes are logged before the step
        values=np.array(values, np.float64).reshape(len(logged), len(layers)),
    )


def write_csv(slopes: Mapping[str, Sequence[Slopes]], file: Path) -> None:
    """Every slope of every run, a row each.

    Args:
        slopes: arm -> those of every seed.
        file: to write.
    """
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["rectifier", "seed", "steps_taken", "layer", "slope"])
        for arm, of_arm in slopes.items():
            for run in of_arm:
                for step, values in zip(run.steps, run.values, strict=True):
                    for layer, value in zip(run.layers, values, strict=True):
                        writer.writerow([arm, run.seed, step, layer, f"{value:.6f}"])
