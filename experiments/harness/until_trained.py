"""Runs that end when they train: the steps of each until its test error is below a limit.

Shared by `takeoff`, `rates` and `late_start`. A run that is above ``stop_error`` at its last step,
or diverges, needs infinitely many.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.harness import configs, plans, results
from experiments.harness.configs import DIGITS
from experiments.harness.convergence import ConvergenceConfig, steps_to_stop
from experiments.harness.experiment import Rows
from experiments.harness.plans import Arm, Plan
from experiments.harness.results import Curve

# Fields of every run at the scale `laptop`.
CHECKPOINTS: dict[str, Any] = {"keep_last": 1, "keep_best": 0}
LAPTOP: dict[str, Any] = {**DIGITS, **CHECKPOINTS, "stop_error": 0.5}

Case = tuple[str, str]  # (arm, name of the setting)
Cases = Mapping[Case, Mapping[str, Any]]  # the fields that a case sets
Curves = Mapping[Case, Sequence[Curve]]  # the curve of every seed


def plan(config: ConvergenceConfig, workdir: Path, seeds: Sequence[int], cases: Cases) -> Plan:
    """Return the runs of every case.

    Raises:
        ValueError: no error ends a run.
    """
    if not config.stop_error:
        raise ValueError(
            "config.stop_error is 0, expected the error below which a run has trained."
        )
    configs.check_limits(config, trained=["stop_error"])
    return plans.of_arms(config, workdir, seeds, [_arm(case, cases[case]) for case in cases])


def folder(workdir: Path, case: Case, seed: int) -> Path:
    """Return the folder of a run."""
    return plans.folder(workdir, _arm(case, {}).folder, seed)


def _arm(case: Case, fields: Mapping[str, Any]) -> Arm:
    path = "/".join(re.sub(r"[^\w.]+", "_", name.lower()) for name in case)
    return Arm(", ".join(case), path, fields)


def read(workdir: Path, seeds: Sequence[int], cases: Cases) -> dict[Case, list[Curve]]:
    """Return the curves of every case."""
    by_name = results.read_curves(plans.folders(workdir, seeds, [_arm(c, {}) for c in cases]))
    return dict(zip(cases, by_name.values(), strict=True))


def steps(config: ConvergenceConfig, curves: Sequence[Curve]) -> list[float]:
    """Return the steps that each run needs; inf for one that does not train."""
    return [
        steps_to_stop(config, curve) if curve.status == "done" else math.inf for curve in curves
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


def explain(config: ConvergenceConfig, limit: str) -> str:
    """Return the sentences above a table of such cells; ``limit``: when an untrained run ends."""
    return (
        f"Steps until the test error is below {config.stop_error:.0%}, evaluated every "
        f"{config.eval_every}: every seed, fewest first. '–': not within {limit}; '×': the "
        "loss is no longer finite."
    )


def tables(config: ConvergenceConfig, curves: Curves) -> dict[str, Rows]:
    """Return the rows of steps.csv, one for each run, and of curves.csv."""
    heads = ["arm", "case", "seed", "steps", "status", "last_step", "lowest_error"]
    rows: list[Sequence[Any]] = [heads]
    for case, of_case in curves.items():
        for needed, curve in zip(steps(config, of_case), of_case, strict=True):
            shown = int(needed) if math.isfinite(needed) else ""
            last = int(curve.steps[-1]) if len(curve.steps) else ""
            lowest = f"{curve.lowest_error():.4f}"
            rows.append([*case, curve.seed, shown, curve.status, last, lowest])
    return {"steps.csv": rows, "curves.csv": results.rows(*curves.values())}
