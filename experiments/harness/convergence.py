"""He against Xavier on one network: the common part of Figures 2 and 3 of He et al. 2015."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.harness import configs, figures, intervals, plans, results
from experiments.harness.claims import Claim
from experiments.harness.configs import NEVER
from experiments.harness.experiment import Experiment, Report
from experiments.harness.plans import Arm, Plan
from experiments.harness.results import Curve
from prelu_jax.training.config import TrainConfig

HE, XAVIER = "He", "Xavier"

Judge = Callable[[Any, Sequence[Curve], Sequence[Curve]], list[Claim]]


@dataclasses.dataclass
class ConvergenceConfig(TrainConfig):
    """A `TrainConfig` in which each arm sets the initialiser.

    Attributes:
        he_initializer: initialiser of the arm "He": variance 2 / fan_out (Eq. 14).
        xavier_initializer: initialiser of the arm "Xavier": variance 1 / fan_out, as the figures'
            legends.
        initializer: set for each arm; leave it empty.
    """

    he_initializer: str = "he_normal"
    xavier_initializer: str = "xavier_normal"
    initializer: str = ""
    plateau_patience: int = NEVER


def arms(config: ConvergenceConfig) -> tuple[Arm, Arm]:
    """Return both initialisations."""
    return (
        Arm(HE, "he", {"initializer": config.he_initializer}),
        Arm(XAVIER, "xavier", {"initializer": config.xavier_initializer}),
    )


def steps_to_stop(config: ConvergenceConfig, curve: Curve) -> float:
    """Return the first evaluated step below ``stop_error``, where training stops, at least 1."""
    return max(1.0, curve.steps_to(math.nextafter(config.stop_error, 0)))


def experiment(
    name: str,
    scales: Mapping[str, Any],
    judge: Judge,
    title: str,
    trained: Sequence[str],
    stalled: Sequence[str] = (),
) -> Experiment:
    """Return the experiment that trains both arms over the seeds.

    Args:
        name: of its module.
        scales: name -> `ConvergenceConfig`.
        judge: returns the claims from the configuration, He's curves and Xavier's.
        title: of the figure.
        trained, stalled: fields of the configuration, as in `configs.check_limits`.
    """

    def plan(config: ConvergenceConfig, workdir: Path, seeds: Sequence[int]) -> Plan:
        configs.check_limits(config, trained, stalled)
        instead = "config.he_initializer, config.xavier_initializer"
        configs.check_unset(config, ["initializer"], instead)
        return plans.of_arms(config, workdir, seeds, arms(config))

    def report(config: ConvergenceConfig, workdir: Path, seeds: Sequence[int]) -> Report:
        he, xavier = results.read_curves(plans.folders(workdir, seeds, arms(config))).values()
        curves = [curve for pair in zip(he, xavier, strict=True) for curve in pair]
        return Report(
            judge(config, he, xavier),
            tables={"curves.csv": results.rows(curves)},
            figures={"figure": figures.error_curves(curves, title, _caption(config, seeds))},
        )

    return Experiment(name, scales, report, plan)


def _caption(config: ConvergenceConfig, seeds: Sequence[int]) -> str:
    frozen = f"; frozen: {config.frozen}" if config.frozen else ""
    return (
        f"{config.arch}, {config.rectifier}, {config.dataset}; SGD {config.learning_rate:g}, "
        f"momentum {config.momentum:g}, batch {config.batch_size}; {config.he_initializer} against "
        f"{config.xavier_initializer}, {config.mode};\npadding {config.padding}{frozen}; "
        f"{intervals.seeds(seeds)}; thin: each seed, bold: median"
    )
