"""Krähenbühl et al. 2015 and Mishkin & Matas 2015 from scratch: which start trains a deep net?

    python -m experiments.data_dependent --scale=laptop

Random initialisations against those that look at a batch, which start from He's. Of each: the error
over training, the spread of the change rates C̃ over layers at step 0, the seconds it takes, and the
highest learning rate of a ladder at which a short run learns. The whole grid:

    --config.archs="('small_14_reduced','small_30_reduced')" --config.rectifiers="('relu','prelu')"
"""

import csv
import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments import common, convergence, figures, machine, profile_figures, results, starts
from experiments.results import Claim, Curve
from prelu_jax import files, names
from prelu_jax.datadep.report import BetweenStage
from prelu_jax.training.batches import Batches
from prelu_jax.training.config import TrainConfig
from prelu_jax.training.parallel import Parallel
from prelu_jax.training.recipe import resolve

HE, LSUV, WITHIN, BOTH = "He", "LSUV", "within", "within + between"
METHODS = {  # -> initializer of the convolutions, datadep
    HE: ("he_normal", "none"),
    "Xavier": ("xavier_normal", "none"),
    "Gaussian 0.01": ("gaussian", "none"),
    "orthogonal": ("orthogonal", "none"),
    LSUV: ("he_normal", "lsuv"),
    WITHIN: ("he_normal", "within_layer"),
    BOTH: ("he_normal", "within_layer,between_layer"),
    "PCA": ("he_normal", "pca"),
    "k-means": ("he_normal", "kmeans"),
}
JUDGED = (HE, LSUV, WITHIN, BOTH)
SAME = "same"
OF_ARM = ("arch", "rectifier", "padding", "initializer", "datadep")


@dataclasses.dataclass
class Config(TrainConfig):
    """The runs, the grid, the ladder of learning rates, and what the claims ask for."""

    archs: tuple[str, ...] = ("small_30_reduced",)
    rectifiers: tuple[str, ...] = ("relu",)
    paddings: tuple[str, ...] = (SAME, "alternating")
    methods: tuple[str, ...] = tuple(METHODS)  # the claims need those of `JUDGED`
    ladder: tuple[float, ...] = (0.001, 0.004, 0.016)
    ladder_steps: int = 20  # at most num_steps
    reached: float = 0.5  # steps are counted to this error; what ends at or below it trains
    stalled: float = 0.8  # a run that is never below this error has stayed at chance
    equal: float = 0.05  # spread of log C̃ under the loss that between-layer evens it for


def laptop() -> Config:
    """Digits at 32 pixels, 30 layers, both paddings."""
    return Config(
        dataset="digits",
        flip=False,  # a mirrored digit is another sign
        pixel_rms=convergence.PIXEL_RMS,
        batch_size=64,
        learning_rate=0.002,
        num_steps=250,
        eval_every=25,
        log_every=25,
        checkpoint_every=100,
    )


def cifar10() -> Config:
    """CIFAR-10 photos, the same networks."""
    return Config(
        reached=0.75,
        dataset="cifar10",
        pixel_rms=convergence.PIXEL_RMS,
        test_examples=3000,
        batch_size=64,
        learning_rate=0.002,
        num_steps=1000,
        ladder_steps=60,
    )


@dataclasses.dataclass(frozen=True)
class Condition:
    """What methods are compared in."""

    arch: str
    rectifier: str
    padding: str

    def __str__(self) -> str:
        return f"{self.arch}, {self.rectifier}, padding {self.padding}"


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """One run of one method.

    Attributes:
        curve: of the training.
        change_rates: C̃ of every layer at step 0 ``[L]``, under a random loss of its own.
        spread: the standard deviation of their logarithms.
        left: the same as between-layer leaves it, under the loss it works with; nan without.
        seconds, first_call_seconds: of the calibration, see `starts.Start`.
        highest_rate: of the ladder, at which a short run learns; 0 for none.
    """

    curve: Curve
    change_rates: np.ndarray
    spread: float
    left: float
    seconds: float
    first_call_seconds: float
    highest_rate: float


Grid = Mapping[Condition, Mapping[str, Sequence[Found]]]  # method -> its runs, by seed


def run(config: Config, workdir: Path, seeds: int) -> list[Claim]:
    """Trains every method in every condition; writes the table, two figures and the claims."""
    common.check_unset(config, OF_ARM, "config.archs, config.rectifiers, config.paddings")
    common.check_fractions(config, "reached", "stalled")
    starts.check(config)
    for method in config.methods:
        names.check("method", method, METHODS)
    if missing := set(JUDGED) - set(config.methods):
        raise ValueError(f"config.methods lacks {sorted(missing)}, which the claims speak of.")
    grid = itertools.product(config.archs, config.rectifiers, config.paddings)
    conditions = [Condition(*each) for each in grid]
    runs = [
        (condition, method, of_run(config, condition, method, seed))
        for seed in range(config.seed, config.seed + seeds)
        for condition in conditions
        for method in config.methods
    ]
    for _, _, each in runs:
        resolve(each)  # before the first trains
    if config.ladder_steps > config.num_steps:
        raise ValueError(f"config.ladder_steps is over config.num_steps, {config.num_steps}.")
    parallel = machine.devices(config.batch_size)
    parallel.check_batch_size(config.batch_size)
    found: dict[Condition, dict[str, list[Found]]] = {
        condition: {method: [] for method in config.methods} for condition in conditions
    }
    workdir.mkdir(parents=True, exist_ok=True)
    for condition, method, each in (bar := tqdm(runs, unit="run")):
        bar.set_description(f"{condition}, {method}, seed {each.seed}")
        found[condition][method].append(_run(config, each, method, parallel))
        if (condition, method) == runs[-1][:2]:
            claims = _write(config, found, workdir)  # of the seeds so far
    return claims


def of_run(config: Config, condition: Condition, method: str, seed: int) -> TrainConfig:
    """The configuration of one run."""
    initializer, datadep = METHODS[method]
    fields = {"initializer": initializer, "datadep": datadep, "seed": seed}
    return common.train_config(config, **dataclasses.asdict(condition), **fields)


def _run(config: Config, of: TrainConfig, method: str, parallel: Parallel) -> Found:
    recipe = resolve(of)
    data = Batches(recipe)
    begun = starts.begin(recipe, data, parallel)
    learned = (
        rate
        for rate in sorted(config.ladder, reverse=True)
        if starts.learns(recipe, begun, data, parallel, rate, config.ladder_steps)
    )
    stages = [stage for report in begun.reports for stage in report.stages]
    evened = (stage.spread_after for stage in stages if isinstance(stage, BetweenStage))
    return Found(
        curve=starts.train(recipe, begun, data, parallel, method),
        change_rates=begun.change_rates,
        spread=begun.spread,
        left=next(evened, math.nan),
        seconds=begun.seconds,
        first_call_seconds=begun.first_call_seconds,
        highest_rate=next(learned, 0.0),
    )


def _write(config: Config, found: Grid, workdir: Path) -> list[Claim]:
    claims = judge(config, found)
    seeds = len(found[next(iter(found))][HE])
    caption = (
        f"{config.dataset}; SGD {config.learning_rate:g}, momentum {config.momentum:g}, batch "
        f"{config.batch_size}; seeds from {config.seed} on, n = {seeds}"
    )
    curves = {
        str(condition): {method: [each.curve for each in runs] for method, runs in by.items()}
        for condition, by in found.items()
    }
    rates = {
        str(condition): {m: np.stack([r.change_rates for r in runs]) for m, runs in by.items()}
        for condition, by in found.items()
    }
    written = [
        *figures.method_errors(curves, caption, workdir / "errors"),
        *profile_figures.change_rates(rates, caption, workdir / "rates"),
    ]
    table, rows = workdir / "table.md", workdir / "runs.csv"
    text = markdown(config, found)
    files.write_text(table, text)
    write_csv(found, rows)
    print(f"\n{text}\nWritten:", *written, table, rows, sep="\n  ")
    return claims


def judge(config: Config, found: Grid) -> list[Claim]:
    """What is expected of the last arch and the first rectifier, with padding 'same'; any spread.

    With 'same' the borders lose signal in every layer, which He's derivation does not know of.
    """
    left = [each.left for by in found.values() for each in by[BOTH]]
    spreads = [
        {method: float(np.mean([each.spread for each in runs])) for method, runs in by.items()}
        for by in found.values()
    ]
    claims = [
        Claim(
            f"[{BOTH}] leaves a spread of log C̃ of at most {config.equal} under the loss it works "
            "with",
            all(value <= config.equal for value in left),  # False for nan
            f"at most {max(left):.2g} in {len(left)} runs",
        ),
        Claim(
            f"[{BOTH}] has the smallest spread of all methods under a loss drawn anew",
            all(min(by, key=by.__getitem__) == BOTH for by in spreads),
            "; ".join(
                f"{by[BOTH]:.2g}, the next {min(v for m, v in by.items() if m != BOTH):.2g}"
                for by in spreads
            ),
        ),
    ]
    judged = found.get(Condition(config.archs[-1], config.rectifiers[0], SAME))
    if judged is None:
        return claims
    lowest = [each.curve.lowest_error() for each in judged[HE]]
    return [
        Claim(
            f"With padding 'same' He stays at chance for {config.num_steps:,} steps: "
            f"error never below {config.stalled:.0%} in any seed",
            results.all_above([each.curve for each in judged[HE]], config.stalled),
            f"lowest error of each run: {results.summary(lowest, ' %', 100)}",
        ),
        *(_trains(config, method, judged[method]) for method in (WITHIN, LSUV)),
        *claims,
    ]


def _trains(config: Config, method: str, runs: Sequence[Found]) -> Claim:
    errors = [each.curve.final_error() for each in runs]
    return Claim(
        f"With padding 'same' [{method}] trains: final error at most {config.reached:.0%} in every "
        "seed",
        max(errors) <= config.reached,
        results.summary(errors, " %", 100),
    )


def markdown(config: Config, found: Grid) -> str:
    """Return a table for each condition, a row for each method."""
    shown = results.heading(len(next(iter(found.values()))[HE]))
    columns: dict[str, Callable[[Found], float]] = {
        f"steps to {config.reached:.0%} error, evaluated every {config.eval_every}": lambda each: (
            each.curve.steps_to(config.reached)
        ),
        "final error, %": lambda each: 100 * each.curve.final_error(),
        "spread of log C̃": lambda each: each.spread,
        "init., s": lambda each: each.seconds,
        "highest rate that learns × 1000": lambda each: 1000 * each.highest_rate,
    }
    lines = [
        f"{shown}. Steps: in how many seeds, if not in all. A run that diverged ends at 100 %.",
    ]
    for condition, by_method in found.items():
        lines += ["", f"{condition}:", "", f"| method | {' | '.join(columns)} |"]
        lines.append("|---" * (1 + len(columns)) + "|")
        for method, runs in by_method.items():
            values = ([value(run) for run in runs] for value in columns.values())
            cells = [results.short(column, digits=3, form="g") for column in values]
            lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_csv(found: Grid, file: Path) -> None:
    """A row for each run; change rates in one cell, in the order of layers."""
    own = ("spread", "left", "seconds", "first_call_seconds", "highest_rate")
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        known: list[Any] = ["arch", "rectifier", "padding", "method", "seed", "status"]
        writer.writerow([*known, "steps", "errors", *own, "change_rates"])
        for condition, by_method in found.items():
            for method, runs in by_method.items():
                for each in runs:
                    c = each.curve
                    known = [*dataclasses.astuple(condition), method, c.seed, c.status]
                    lists = [
                        " ".join(f"{v:.6g}" for v in of)
                        for of in (c.steps, c.errors, each.change_rates)
                    ]
                    numbers = [f"{getattr(each, name):.6g}" for name in own]
                    writer.writerow([*known, *lists[:2], *numbers, lists[2]])


if __name__ == "__main__":
    common.main(
        "data_dependent", {"laptop": laptop, "cifar10": cifar10}, run, default_seeds=2, alone=True
    )
