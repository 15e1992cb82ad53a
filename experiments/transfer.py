"""Krähenbühl et al. 2015 on few examples: does rescaling a pre-trained net help to fine-tune it?

    python -m experiments.transfer --scale=laptop

A net is trained on some classes, then fine-tuned on a few examples of each of the others. Its fully
connected layers are drawn again and left so (plain), or rescaled on data (within: Algorithm 1), or
that and then all layers brought to one change rate (within + between: Algorithm 2). Its
convolutions are trained further or frozen. Two arms have no pre-training and see the few examples
alone: one from He's random weights, one with all layers calibrated on data by both algorithms.
All arms of a seed share the pre-trained net, the examples and their order.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.harness import claims, cli, configs, figures, intervals, plans, results, tables
from experiments.harness.claims import Claim
from experiments.harness.configs import CIFAR10, DIGITS, NEVER, every
from experiments.harness.experiment import Experiment, Report
from experiments.harness.plans import Plan, Run
from experiments.harness.results import Curve
from prelu_jax.training.config import TrainConfig

SCRATCH = "from scratch"
PLAIN, WITHIN, BOTH = "plain", "within", "within + between"
DATADEP = {PLAIN: "none", WITHIN: "within_layer", BOTH: "within_layer,between_layer"}
TRUNKS = ("trained", "frozen")
SCRATCH_BOTH = f"{SCRATCH}: {BOTH}"
ARMS = (SCRATCH, SCRATCH_BOTH, *(f"{trunk}: {init}" for trunk in TRUNKS for init in DATADEP))
_CLAIMS = 5  # that intervals decide

Curves = Mapping[str, Sequence[Curve]]  # arm -> its curve of every seed, in the order of the seeds


@dataclasses.dataclass
class Config(TrainConfig):
    """The fine-tuning run, the run before it, and the limit in the claims.

    Attributes:
        pretrain_classes: labels of the pre-training run.
        pretrain_steps: steps of the pre-training run.
        reinit: parameters that every fine-tuning run initialises again: all fully connected layers.
        frozen: parameters that the arms with a frozen trunk do not train.
        reached: steps are counted to this error.
    """

    pretrain_classes: str = "0-4"
    pretrain_steps: int = 200
    classes: str = "5-9"
    reinit: str = "fc"
    frozen: str = "conv"
    reached: float = 0.2


_REDUCED: dict[str, Any] = {
    "arch": "small_14_reduced",
    "learning_rate": 0.002,
    "plateau_patience": NEVER,
}
SCALES = {
    # Digits at 32 pixels, ten examples a class: about five minutes on two cores.
    "laptop": Config(
        **{**DIGITS, **_REDUCED, "batch_size": 32},
        examples_per_class=10,
        num_steps=100,
        **every(5, 5, 100),
    ),
    "cifar10": Config(
        reached=0.5,
        pretrain_steps=2000,
        **CIFAR10,
        **_REDUCED,
        examples_per_class=20,
        num_steps=300,
        **every(20, 20, 100),
    ),
}


def plan(config: Config, workdir: Path, seeds: Sequence[int]) -> Plan:
    """Return the pre-training of every seed, and the runs of all arms that start from it."""
    configs.check_unset(config, ["pretrained", "datadep", "datadep_only"])
    configs.check_fractions(config, "reached")
    runs = {}
    for seed in seeds:
        first = plans.folder(workdir, "pretrained", seed)
        runs[first] = Run(f"pre-training seed {seed}", pretraining(config, seed))
        for arm in ARMS:
            run = Run(f"{arm} seed {seed}", of_arm(config, arm, seed, first))
            runs[_folder(workdir, arm, seed)] = run
    return runs


def _folder(workdir: Path, arm: str, seed: int) -> Path:
    return plans.folder(workdir, re.sub(r"\W+", "_", arm), seed)


def report(config: Config, workdir: Path, seeds: Sequence[int]) -> Report:
    """Return the table, the figure and the claims."""
    curves = {arm: [_curve(workdir, arm, seed) for seed in seeds] for arm in ARMS}
    return Report(
        judge(config, curves),
        markdown(config, curves),
        {"curves.csv": results.rows(*curves.values())},
        {"figure": figures.final_errors(curves, *_titles(config, seeds))},
    )


def _curve(workdir: Path, arm: str, seed: int) -> Curve:
    """Return the curve of a run; it did not start if its pre-training diverged."""
    first = plans.folder(workdir, "pretrained", seed)
    if not arm.startswith(SCRATCH) and results.diverged(first):
        return results.diverged_curve(arm, seed)
    return results.read_curve(_folder(workdir, arm, seed), arm)


def pretraining(config: Config, seed: int) -> TrainConfig:
    """Return the run on all examples of the first classes."""
    return configs.train_config(
        config,
        seed=seed,
        classes=config.pretrain_classes,
        examples_per_class=0,
        num_steps=config.pretrain_steps,
        reinit="",
        frozen="",
    )


def of_arm(config: Config, arm: str, seed: int, pretrained: Path) -> TrainConfig:
    """Return the run on few examples of the other classes."""
    trunk, _, init = arm.partition(": ")
    if trunk == SCRATCH:  # no layer is pre-trained: a calibration is of all of them
        datadep = DATADEP[init or PLAIN]
        return configs.train_config(config, seed=seed, reinit="", frozen="", datadep=datadep)
    return configs.train_config(
        config,
        seed=seed,
        pretrained=str(pretrained),
        frozen=config.frozen if trunk == "frozen" else "",
        datadep=DATADEP[init],
        datadep_only="" if init == PLAIN else config.reinit,
    )


def judge(config: Config, curves: Curves) -> list[Claim]:
    """Return the paper's statements on pre-trained nets, as differences between arms of a seed.

    A claim passes if the whole interval of the difference lies below 0, and fails if none of it
    does. The last one compares calibrated nets: within-layer calibrates all layers of a net from
    scratch, and only the new layers on a pre-trained trunk.
    """
    plain, both = (f"trained: {init}" for init in (PLAIN, BOTH))
    return [
        _lower_error(curves, plain, SCRATCH),
        _lower_error(curves, both, plain),
        _fewer_steps(config, curves, both, plain),
        _lower_error(curves, f"frozen: {BOTH}", f"frozen: {PLAIN}"),
        _lower_error(curves, both, SCRATCH_BOTH),
    ]


def _lower_error(curves: Curves, arm: str, other: str) -> Claim:
    own, others = ([curve.final_error() for curve in curves[name]] for name in (arm, other))
    statement = f"[{arm}] ends at a lower error than [{other}]"
    return claims.lower_error_claim(statement, own, others, _CLAIMS)


def _fewer_steps(config: Config, curves: Curves, arm: str, other: str) -> Claim:
    # A run that does not get there counts with the steps it took: it needs more.
    differences = [
        min(a.steps_to(config.reached), config.num_steps)
        - min(b.steps_to(config.reached), config.num_steps)
        for a, b in zip(curves[arm], curves[other], strict=True)
    ]
    statement = f"[{arm}] reaches {config.reached:.0%} error in fewer steps than [{other}]"
    quantity = f"difference, evaluated every {config.eval_every} steps"
    return claims.below_zero_claim(
        statement, differences, " steps", quantity=quantity, claims=_CLAIMS
    )


def markdown(config: Config, curves: Curves) -> str:
    """Return a table with a row for each arm."""
    steps = f"steps to {config.reached:.0%} error, evaluated every {config.eval_every}"
    heads = ("trunk", "new layers", "final error, %", "against plain, points", steps)
    return tables.document(
        f"{intervals.heading(len(curves[SCRATCH]))}; differences are within seeds. From scratch, "
        "calibrations are of all layers and plain is without one.",
        tables.markdown(heads, (_row(config, curves, arm) for arm in curves)),
    )


def _row(config: Config, curves: Curves, arm: str) -> Sequence[str]:
    trunk, _, init = arm.partition(": ")
    errors = [curve.final_error() for curve in curves[arm]]
    against = "–"
    if init not in ("", PLAIN):
        arm_plain = SCRATCH if trunk == SCRATCH else f"{trunk}: {PLAIN}"
        plain = [curve.final_error() for curve in curves[arm_plain]]
        against = intervals.short([a - b for a, b in zip(errors, plain, strict=True)], 100)
    steps = intervals.short([curve.steps_to(config.reached) for curve in curves[arm]])
    return trunk, init or PLAIN, intervals.short(errors, 100), against, steps


def _titles(config: Config, seeds: Sequence[int]) -> tuple[str, str]:
    return (
        f"{config.dataset}: from classes {config.pretrain_classes} to "
        f"{config.examples_per_class} examples of each of {config.classes}",
        f"{config.arch}, {config.rectifier}; {config.pretrain_steps} steps, then "
        f"{config.num_steps}; SGD {config.learning_rate:g}, momentum {config.momentum:g}, batch "
        f"{config.batch_size};\ninitialised again: {config.reinit}; {intervals.seeds(seeds)}; "
        "small: each seed, large: mean and 95 % interval",
    )


EXPERIMENT = Experiment("transfer", SCALES, report, plan, default_seeds=5)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
