"""The learned slopes of finished runs, read from their folders without JAX."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from experiments.harness import results

# Table 1: layer -> (channel-shared slope, mean of the channel-wise slopes).
TABLE_1 = {
    "conv1": (0.681, 0.596),
    "conv2_1": (0.103, 0.321),
    "conv2_2": (0.099, 0.204),
    "conv2_3": (0.228, 0.294),
    "conv2_4": (0.561, 0.464),
    "conv3_1": (0.126, 0.196),
    "conv3_2": (0.089, 0.152),
    "conv3_3": (0.124, 0.145),
    "conv3_4": (0.062, 0.124),
    "conv3_5": (0.008, 0.134),
    "conv3_6": (0.210, 0.198),
    "fc1": (0.063, 0.074),
    "fc2": (0.031, 0.075),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Slopes:
    """The slope after every rectified layer over the training of one run."""

    seed: int  # of the run
    status: str  # 'done' or 'diverged' (or 'running', if it was stopped)
    layers: tuple[str, ...]  # the layers' names, in order of depth ``[L]``
    steps: np.ndarray  # how many steps had been taken ``[n]``
    values: np.ndarray  # the slopes there, means over channels ``[n, L]``

    def final(self) -> np.ndarray:
        """Return the last slopes ``[L]``; not a number for a run that diverged: it learned none."""
        return self.values[-1] if self.status == "done" else np.full(len(self.layers), np.nan)


def read(folder: Path, layers: Sequence[str]) -> Slopes:
    """Return the slopes of the folder of a run with PReLU; ``layers``: names in order of depth."""
    logged = [record for record in results.read_metrics(folder) if "slope_mean" in record]
    values = [[r["slope_mean"][f"{layer}_prelu"] for layer in layers] for r in logged]
    return Slopes(
        seed=results.seed(folder),
        status=results.status(folder),
        layers=tuple(layers),
        steps=np.array([r["step"] - 1 for r in logged]),  # slopes are logged before the step
        values=np.array(values, np.float64).reshape(len(logged), len(layers)),
    )


def rows(slopes: Mapping[str, Sequence[Slopes]]) -> list[list[Any]]:
    """Return a table with a row for every slope of every run of every arm, the heads first."""
    table: list[list[Any]] = [["rectifier", "seed", "steps_taken", "layer", "slope"]]
    for arm, of_arm in slopes.items():
        for run in of_arm:
            for step, values in zip(run.steps, run.values, strict=True):
                for layer, value in zip(run.layers, values, strict=True):
                    table.append([arm, run.seed, step, layer, f"{value:.6f}"])
    return table


def paper(layers: Sequence[str], arms: Sequence[str]) -> dict[str, list[float]]:
    """Return Table 1 by arm, a slope for every layer; empty for layers that are not the table's.

    Args:
        layers: of a network.
        arms: names of the channel-shared and the channel-wise slopes.
    """
    if list(layers) != list(TABLE_1):
        return {}
    return {arm: [row[i] for row in TABLE_1.values()] for i, arm in enumerate(arms)}


def with_depth(values: Sequence[float] | np.ndarray) -> float:
    """Return Spearman's correlation of slopes ``[L]`` with depth; nan if a slope is none."""
    return float(stats.spearmanr(np.arange(len(values)), values).statistic)
