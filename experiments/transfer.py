"""Krähenbühl et al. 2015 on few examples: does rescaling a pre-trained net help to fine-tune it?

    python -m experiments.transfer --scale=laptop

A net is trained on some classes, then fine-tuned on a few examples of each of the others. Its fully
connected layers are drawn anew and left so (plain), or rescaled on data (within: Algorithm 1), or
that and then all layers brought to one change rate (within + between: Algorithm 2). Its
convolutions are trained further or frozen. The baseline is trained on the few examples alone. All
arms of a seed share the pre-trained net, the examples and their order.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments import common, convergence, figures, results
from experiments.results import Claim, Curve
from prelu_jax.training import config as config_lib
from prelu_jax.training.config import TrainConfig

SCRATCH = "from scratch"
PLAIN, WITHIN, BOTH = "plain", "within", "within + between"
DATADEP = {PLAIN: "none", WITHIN: "within_layer", BOTH: "within_layer,between_layer"}
TRUNKS = ("trained", "frozen")
ARMS = (SCRATCH, *(f"{trunk}: {init}" for trunk in TRUNKS for init in DATADEP))

Curves = Mapping[str, Sequence[Curve]]  # arm -> its curve of every seed, in the order of the seeds


@dataclasses.dataclass
class Config(TrainConfig):
    """The fine-tuning run, the run before it, and what the claims ask for."""

    pretrain_classes: str = "0-4"
    pretrain_steps: int = 200
    classes: str = "5-9"
    fresh: str = "fc"  # all fully connected layers, as the authors of BiGAN do it
    frozen: str = "conv"  # of the arms with a frozen trunk
    reached: float = 0.2  # steps are counted to this error


def laptop() -> Config:
    """Digits at 32 pixels, ten examples a class: about five minutes on two cores."""
    return Config(
        dataset="digits",
        examples_per_class=10,
        flip=False,  # a mirrored digit is another sign
        pixel_rms=convergence.PIXEL_RMS,
        arch="small_14_reduced",
        batch_size=32,
        learning_rate=0.002,
        num_steps=100,
        plateau_patience=convergence.NEVER,
        log_every=5,
        eval_every=5,
        checkpoint_every=100,
    )


def cifar10() -> Config:
    """CIFAR-10 photos, twenty examples a class, the same network."""
    return Config(
        reached=0.5,
        pretrain_steps=2000,
        dataset="cifar10",
        examples_per_class=20,
        test_examples=3000,
        pixel_rms=convergence.PIXEL_RMS,
        arch="small_14_reduced",
        batch_size=64,
        learning_rate=0.002,
        num_steps=300,
        plateau_patience=convergence.NEVER,
        log_every=20,
        eval_every=20,
        checkpoint_every=100,
    )


def run(config: Config, workdir: Path, seeds: int) -> list[Claim]:
    """Trains every arm over the seeds, writes the table, the figure and the claims."""
    common.check_unset(config, ["pretrained", "datadep", "datadep_only"])
    runs: dict[Path, tuple[str, TrainConfig]] = {}
    arms: dict[str, list[Path]] = {arm: [] for arm in ARMS}
    for seed in range(config.seed, config.seed + seeds):
        first = workdir / "pretrained" / f"seed_{seed}"
        runs[first] = f"pre-training seed {seed}", pretraining(config, seed)
        for arm, folders in arms.items():
            folder = workdir / _slug(arm) / f"seed_{seed}"
            runs[folder] = f"{arm} seed {seed}", of_arm(config, arm, seed, first)
            folders.append(folder)
    for _, of_run in runs.values():
        config_lib.validate(of_run)  # before the first trains
    common.train_all(runs)

    curves = {arm: [results.read_curve(f, arm) for f in folders] for arm, folders in arms.items()}
    claims = judge(config, curves)
    written = figures.final_errors(curves, *_titles(config, seeds), workdir / "figure")
    table, points = workdir / "table.md", workdir / "curves.csv"
    table.write_text(markdown(config, curves))
    results.write_csv([curve for of_arm in curves.values() for curve in of_arm], points)
    print(f"\n{table.read_text()}\nWritten:", *written, table, points, *runs, sep="\n  ")
    return claims


def pretraining(config: Config, seed: int) -> TrainConfig:
    """The run on the first classes, all examples of them."""
    return common.train_config(
        config,
        seed=seed,
        classes=config.pretrain_classes,
        examples_per_class=0,
        num_steps=config.pretrain_steps,
        fresh="",
        frozen="",
    )


def of_arm(config: Config, arm: str, seed: int, pretrained: Path) -> TrainConfig:
    """The run on few examples of the other classes."""
    if arm == SCRATCH:
        return common.train_config(config, seed=seed, fresh="", frozen="")
    trunk, init = arm.split(": ")
    return common.train_config(
        config,
        seed=seed,
        pretrained=str(pretrained),
        frozen=config.frozen if trunk == "frozen" else "",
        datadep=DATADEP[init],
        datadep_only="" if init == PLAIN else config.fresh,
    )


def _slug(arm: str) -> str:
    return re.sub(r"\W+", "_", arm)


def judge(config: Config, curves: Curves) -> list[Claim]:
    """What the paper says of pre-trained nets, each as a difference between arms of a seed.

    It passes if the 95 % interval of the difference lies below 0: what seeds do not decide, fails.
    """
    plain, both = (f"trained: {init}" for init in (PLAIN, BOTH))
    return [
        _lower_error(curves, plain, SCRATCH),
        _lower_error(curves, both, plain),
        _fewer_steps(config, curves, both, plain),
        _lower_error(curves, f"frozen: {BOTH}", f"frozen: {PLAIN}"),
    ]


def _lower_error(curves: Curves, arm: str, other: str) -> Claim:
    differences = [
        a.final_error() - b.final_error() for a, b in zip(curves[arm], curves[other], strict=True)
    ]
    statement = f"[{arm}] ends at a lower error than [{other}]"
    return results.below_zero_claim(statement, differences, " points", 100)


def _fewer_steps(config: Config, curves: Curves, arm: str, other: str) -> Claim:
    # A run that does not get there counts with the steps it took: it needs more.
    differences = [
        min(a.steps_to(config.reached), config.num_steps)
        - min(b.steps_to(config.reached), config.num_steps)
        for a, b in zip(curves[arm], curves[other], strict=True)
    ]
    statement = f"[{arm}] reaches {config.reached:.0%} error in fewer steps than [{other}]"
    return results.below_zero_claim(statement, differences, " steps")


def markdown(config: Config, curves: Curves) -> str:
    """A row for each arm: means and 95 % intervals over the seeds; differences are within seeds."""
    n = len(curves[SCRATCH])
    lines = [
        f"Means and 95 % Student intervals over n = {n} seed{'s' if n > 1 else ''}.",
        "",
        "| trunk | new layers | final error, % | against plain, points "
        f"| steps to {config.reached:.0%} error |",
        "|---|---|---|---|---|",
    ]
    for arm, of_arm in curves.items():
        trunk, _, init = arm.partition(": ")
        errors = [curve.final_error() for curve in of_arm]
        against = "–"
        if init and init != PLAIN:
            plain = [curve.final_error() for curve in curves[f"{trunk}: {PLAIN}"]]
            against = results.short([a - b for a, b in zip(errors, plain, strict=True)], 100)
        steps = results.short([curve.steps_to(config.reached) for curve in of_arm])
        cells = (trunk, init or "–", results.short(errors, 100), against, steps)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _titles(config: Config, seeds: int) -> tuple[str, str]:
    last = config.seed + seeds - 1
    return (
        f"{config.dataset}: from classes {config.pretrain_classes} to "
        f"{config.examples_per_class} examples of each of {config.classes}",
        f"{config.arch}, {config.rectifier}; {config.pretrain_steps} steps, then "
        f"{config.num_steps}; SGD {config.learning_rate:g}, momentum {config.momentum:g}, batch "
        f"{config.batch_size};\ndrawn anew: {config.fresh}; seeds {config.seed} to {last}; "
        "small: each seed, large: mean and 95 % interval",
    )


if __name__ == "__main__":
    common.main("transfer", {"laptop": laptop, "cifar10": cifar10}, run, default_seeds=5)
