"""Runs that end when they train: how many steps each needs until its test error is below a limit.

Shared by `takeoff`, `rates` and `late_start`. A run that is above ``stop_error`` at its last step,
or diverges, needs infinitely many.
"""

import csv
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import common, convergence, results
from experiments.convergence import ConvergenceConfig
from experiments.results import Curve

# Fields of every run at the scale `laptop`.
LAPTOP: dict[str, Any] = {
    "dataset": "digits",
    "flip": False,  # a mirrored digit is another sign
    "pixel_rms": convergence.PIXEL_RMS,
    "batch_size": 64,
    "stop_error": 0.5,
    "plateau_patience": convergence.NEVER,
    "checkpoint_every": 500,
    "keep_last": 1,
    "keep_best": 0,
}

Case = tuple[str, str]  # (arm, name of the setting)
Curves = Mapping[Case, Sequence[Curve]]  # the curve of every seed


def train(
    config: ConvergenceConfig, workdir: Path, seeds: int, cases: Mapping[Case, Mapping[str, Any]]
) -> dict[Case, list[Curve]]:
    """Train every case over the seeds and write ``curves.csv`` and ``steps.csv``.

    Args:
        config: of every run, but for its seed and the fields of its case.
        workdir: holds a folder for each run.
        seeds: how many, from ``config.seed`` on.
        cases: case -> the fields that it sets.
    """
    common.check_fractions(config, "stop_error")
    if not config.stop_error:
        raise ValueError(
            "config.stop_error is 0, expected the error below which a run has trained."
        )
    runs = {}
    for case, fields in cases.items():
        for seed in range(config.seed, config.seed + seeds):
            of_run = common.train_config(config, **{**fields, "seed": seed})
            runs[folder(workdir, case, seed)] = f"{', '.join(case)}, seed {seed}", of_run
    common.train_all(runs)
    curves = {
        case: [
            results.read_curve(folder(workdir, case, seed), ", ".join(case))
            for seed in range(config.seed, config.seed + seeds)
        ]
        for case in cases
    }
    every = [curve for of_case in curves.values() for curve in of_case]
    results.write_csv(every, workdir / "curves.csv")
    _write_steps(config, curves, workdir / "steps.csv")
    return curves


def folder(workdir: Path, case: Case, seed: int) -> Path:
    """Return the folder of a run."""
    return workdir.joinpath(
        *(re.sub(r"[^\w.]+", "_", name.lower()) for name in case), f"seed_{seed}"
    )


def steps(config: ConvergenceConfig, curves: Sequence[Curve]) -> list[float]:
    """Return the steps that each run needs; inf for one that does not train."""
    return [
        curve.steps_to(config.stop_error) if curve.status == "done" else math.inf
        for curve in curves
    ]


def cell(config: ConvergenceConfig, curves: Sequence[Curve]) -> str:
    """Return a cell of a table: the steps of every seed, fewest first.

    '–' is a run that does not train, × one that diverges.
    """
    needed = sorted(zip(steps(config, curves), curves, strict=True), key=lambda pair: pair[0])
    return ", ".join(
        f"{n:,.0f}" if math.isfinite(n) else "×" if curve.status == "diverged" else "–"
        for n, curve in needed
    )


def explain(config: ConvergenceConfig) -> str:
    """Return the sentences above a table of such cells."""
    return (
        f"Steps until the test error is below {config.stop_error:.0%}, evaluated every "
        f"{config.eval_every}: every seed, fewest first. '–': not within {config.num_steps:,} "
        "steps; '×': the loss is no longer finite."
    )


def _write_steps(config: ConvergenceConfig, curves: Curves, file: Path) -> None:
    """Write a row for each run; steps are empty where it did not train."""
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["arm", "case", "seed", "steps", "status", "last_step", "lowest_error"])
        for case, of_case in curves.items():
            for needed, curve in zip(steps(config, of_case), of_case, strict=True):
                shown = int(needed) if math.isfinite(needed) else ""
                last = int(curve.steps[-1]) if len(curve.steps) else ""
                row = [*case, curve.seed, shown, curve.status, last, f"{curve.lowest_error():.4f}"]
                writer.writerow(row)
