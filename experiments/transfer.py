"""Krähenbühl et al. 2015 on few examples: does rescaling a pre-trained net help to fine-tune it?

    python -m experiments.transfer --scale=laptop

A net is trained on some classes, then fine-tuned on a few examples of each of the others. Its fully
connected layers are drawn anew and left so (plain), or rescaled on data (within: Algorithm 1), or
that and then all layers brought to one change rate (within + between: Algorithm 2). Its
convolutions are trained further or frozen. Two arms have no pre-training and see the few examples
alone: one from He's random weights, one with all layers calibrated on data by both algorithms, to
tell what pre-training adds to the calibration. All arms of a seed share the pre-trained net, the
examples and their order.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments import common, convergence, figures, results
from experiments.results import Claim, Curve
from prelu_jax import files
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
    common.check_fractions(config, "reached")
    runs: dict[Path, tuple[str, TrainConfig]] = {}
    arms: dict[str, list[Path]] = {arm: [] for arm in ARMS}
    for seed in range(config.seed, config.seed + seeds):
        first = workdir / "pretrained" / f"seed_{seed}"
        runs[first] = f"pre-training seed {seed}", pretraining(config, seed)
        for arm, folders in arms.items():
            folder = workdir / _slug(arm) / f"seed_{seed}"
            runs[folder] = f"{arm} seed {seed}", of_arm(config, arm, seed, first)
            folders.append(folder)
    common.train_all(runs)

    curves = {
        arm: [_curve(folder, arm, runs[folder][1]) for folder in folders]
        for arm, folders in arms.items()
    }
    claims = judge(config, curves)
    written = figures.final_errors(curves, *_titles(config, seeds), workdir / "figure")
    table, points = workdir / "table.md", workdir / "curves.csv"
    text = markdown(config, curves)
    files.write_text(table, text)
    results.write_csv([curve for of_arm in curves.values() for curve in of_arm], points)
    print(f"\n{text}\nWritten:", *written, table, points, *runs, sep="\n  ")
    return claims


def _curve(folder: Path, arm: str, config: TrainConfig) -> Curve:
    """Return the curve of a run; of one whose pre-training diverged, which did not start, too."""
    if config.pretrained and results.diverged(Path(config.pretrained)):
        return results.diverged_curve(arm, config.seed)
    return results.read_curve(folder, arm)


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
    """Return the run on few examples of the other classes."""
    trunk, _, init = arm.partition(": ")
    if trunk == SCRATCH:  # no layer is pre-trained: a calibration is of all of them
        datadep = DATADEP[init or PLAIN]
        return common.train_config(config, seed=seed, fresh="", frozen="", datadep=datadep)
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
    """Return the paper's statements on pre-trained nets, as differences between arms of a seed.

    A claim passes if the whole interval of the difference lies below 0, and fails if none of it
    does. The last one asks what pre-training adds where calibrations are the same.
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
    differences = [
        a.final_error() - b.final_error() for a, b in zip(curves[arm], curves[other], strict=True)
    ]
    statement = f"[{arm}] ends at a lower error than [{other}]"
    return results.below_zero_claim(statement, differences, " points", 100, claims=_CLAIMS)


def _fewer_steps(config: Config, curves: Curves, arm: str, other: str) -> Claim:
    # A run that does not get there counts with the steps it took: it needs more.
    differences = [
        min(a.steps_to(config.reached), config.num_steps)
        - min(b.steps_to(config.reached), config.num_steps)
        for a, b in zip(curves[arm], curves[other], strict=True)
    ]
    statement = f"[{arm}] reaches {config.reached:.0%} error in fewer steps than [{other}]"
    of = f"difference, evaluated every {config.eval_every} steps"
    return results.below_zero_claim(statement, differences, " steps", of=of, claims=_CLAIMS)


def markdown(config: Config, curves: Curves) -> str:
    """Return a table with a row for each arm."""
    shown = results.heading(len(curves[SCRATCH]))
    lines = [
        f"{shown}; differences are within seeds. From scratch, calibrations are of all layers and "
        "plain is without one.",
        "",
        "| trunk | new layers | final error, % | against plain, points "
        f"| steps to {config.reached:.0%} error, evaluated every {config.eval_every} |",
        "|---|---|---|---|---|",
    ]
    for arm, of_arm in curves.items():
        trunk, _, init = arm.partition(": ")
        errors = [curve.final_error() for curve in of_arm]
        against = "–"
        if init not in ("", PLAIN):
            arm_plain = SCRATCH if trunk == SCRATCH else f"{trunk}: {PLAIN}"
            plain = [curve.final_error() for curve in curves[arm_plain]]
            against = results.short([a - b for a, b in zip(errors, plain, strict=True)], 100)
        steps = results.short([curve.steps_to(config.reached) for curve in of_arm])
        cells = (trunk, init or PLAIN, results.short(errors, 100), against, steps)
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
