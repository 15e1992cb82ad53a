"""Krähenbühl et al. 2015, Mishkin & Matas 2015: which initialisation trains a deep net?

    python -m experiments.data_dependent --scale=laptop

Random initialisations against those computed from a batch, which begin with He's. Each is measured
by its error over training, the spread of the change rates C̃ over layers at step 0, the seconds it
takes, and the highest learning rate of a ladder at which a short run learns. The whole grid:

    --config.archs="('small_14_reduced','small_30_reduced')" --config.rectifiers="('relu','prelu')"
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.harness import (
    claims,
    cli,
    configs,
    figures,
    intervals,
    profile_figures,
    short_runs,
    tables,
)
from experiments.harness.claims import Claim
from experiments.harness.configs import CIFAR10, DIGITS, every
from experiments.harness.experiment import Experiment, Report
from experiments.harness.results import Curve
from prelu_jax import names
from prelu_jax.datadep.report import BetweenStage
from prelu_jax.training.config import TrainConfig

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
    """The runs, the grid, the ladder of learning rates, and the limits in the claims.

    Attributes:
        archs: the networks; with rectifiers and paddings they make the grid.
        rectifiers: the rectifiers of the grid.
        paddings: the paddings of the grid.
        methods: the initialisations; the claims need He, LSUV, within and within + between.
        ladder: learning rates that short runs try.
        ladder_steps: steps of a short run, at most num_steps.
        reached: steps are counted to this error; a run that ends at or below it trains.
        stalled: a run that is never below this error has stayed at chance.
        equal: claim: spread of log C̃ under the loss that between-layer evens it for.
    """

    archs: tuple[str, ...] = ("small_30_reduced",)
    rectifiers: tuple[str, ...] = ("relu",)
    paddings: tuple[str, ...] = (SAME, "alternating")
    methods: tuple[str, ...] = tuple(METHODS)
    ladder: tuple[float, ...] = (0.001, 0.004, 0.016)
    ladder_steps: int = 20
    reached: float = 0.5
    stalled: float = 0.8
    equal: float = 0.05


SCALES = {
    # Digits at 32 pixels, 30 layers, both paddings.
    "laptop": Config(**DIGITS, learning_rate=0.002, num_steps=250, **every(25, 25, 100)),
    "cifar10": Config(
        reached=0.75, **CIFAR10, learning_rate=0.002, num_steps=1000, ladder_steps=60
    ),
}


@dataclasses.dataclass(frozen=True)
class Condition:
    """A setting in which the methods are compared."""

    arch: str
    rectifier: str
    padding: str

    def __str__(self) -> str:
        return f"{self.arch}, {self.rectifier}, padding {self.padding}"


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """One run of one method."""

    curve: Curve  # of the training
    change_rates: np.ndarray  # C̃ of every layer at step 0 ``[L]``, under a random loss of its own
    spread: float  # the standard deviation of their logarithms
    spread_after: float  # the same after between-layer, under its own loss; nan without it
    seconds: float  # of the calibration, see `short_runs.Start`
    first_call_seconds: float  # of the calibration, see `short_runs.Start`
    highest_rate: float  # of the ladder, at which a short run learns; 0 for none


Grid = Mapping[Condition, Mapping[str, Sequence[Trial]]]  # method -> its runs, by seed


def report(config: Config, workdir: Path, seeds: Sequence[int]) -> Iterator[Report]:
    """Train every method in every condition; yield the report after each seed."""
    configs.check_unset(config, OF_ARM, "config.archs, config.rectifiers, config.paddings")
    configs.check_limits(config, ["reached"], ["stalled"])
    for method in config.methods:
        names.check("method", method, METHODS)
    if missing := set(JUDGED) - set(config.methods):
        raise ValueError(f"config.methods lacks {sorted(missing)}, which the claims need.")
    product = itertools.product(config.archs, config.rectifiers, config.paddings)
    conditions = [Condition(*values) for values in product]
    runs = [
        (condition, method, of_run(config, condition, method, seed))
        for seed in seeds
        for condition in conditions
        for method in config.methods
    ]
    parallel = short_runs.check([run for _, _, run in runs])
    if not short_runs.LAST < config.ladder_steps <= config.num_steps:
        raise ValueError(
            f"config.ladder_steps is {config.ladder_steps}, expected {short_runs.LAST + 1} to "
            f"config.num_steps, {config.num_steps}."
        )
    grid: dict[Condition, dict[str, list[Trial]]] = {
        condition: {method: [] for method in config.methods} for condition in conditions
    }
    for condition, method, run in (bar := tqdm(runs, unit="run")):
        bar.set_description(f"{condition}, {method}, seed {run.seed}")
        grid[condition][method].append(_trial(config, short_runs.begin(run, parallel), method))
        if (condition, method) == runs[-1][:2]:
            yield _report(config, grid)


def of_run(config: Config, condition: Condition, method: str, seed: int) -> TrainConfig:
    """Return the configuration of one run."""
    initializer, datadep = METHODS[method]
    fields = {"initializer": initializer, "datadep": datadep, "seed": seed}
    return configs.train_config(config, **dataclasses.asdict(condition), **fields)


def _trial(config: Config, start: short_runs.Start, method: str) -> Trial:
    """Return the result of a method: at step 0, of short runs and of the whole run."""
    rates = sorted(config.ladder, reverse=True)
    learned = (rate for rate in rates if start.learns(rate, config.ladder_steps))
    stages = [stage for calibration in start.reports for stage in calibration.stages]
    evened = (stage.spread_after for stage in stages if isinstance(stage, BetweenStage))
    return Trial(
        curve=start.train(method),
        change_rates=start.change_rates,
        spread=start.spread,
        spread_after=next(evened, math.nan),
        seconds=start.seconds,
        first_call_seconds=start.first_call_seconds,
        highest_rate=next(learned, 0.0),
    )


def _report(config: Config, grid: Grid) -> Report:
    seeds = [trial.curve.seed for trial in grid[next(iter(grid))][HE]]
    caption = (
        f"{config.dataset}; SGD {config.learning_rate:g}, momentum {config.momentum:g}, batch "
        f"{config.batch_size}; {intervals.seeds(seeds)}"
    )
    curves = {
        str(condition): {m: [trial.curve for trial in trials] for m, trials in by.items()}
        for condition, by in grid.items()
    }
    rates = {
        str(condition): {m: np.stack([t.change_rates for t in trials]) for m, trials in by.items()}
        for condition, by in grid.items()
    }
    return Report(
        judge(config, grid),
        markdown(config, grid),
        {"runs.csv": rows(grid)},
        {
            "errors": figures.method_errors(curves, caption),
            "rates": profile_figures.change_rates(rates, caption),
        },
    )


def judge(config: Config, grid: Grid) -> list[Claim]:
    """Judge the spread in all conditions, and training in one, with padding 'same'.

    That is with the last arch and the first rectifier. With 'same' the borders lose signal in
    every layer, which He's derivation leaves out.
    """
    after = [trial.spread_after for by in grid.values() for trial in by[BOTH]]
    spreads = [
        {method: float(np.mean([trial.spread for trial in runs])) for method, runs in by.items()}
        for by in grid.values()
    ]
    of_spread = [
        Claim(
            f"[{BOTH}] leaves a spread of log C̃ of at most {config.equal} under the loss it works "
            "with",
            all(value <= config.equal for value in after),  # False for nan
            f"at most {max(after):.2g} in {len(after)} runs",
        ),
        Claim(
            f"[{BOTH}] has the smallest spread of all methods under a new random loss",
            all(min(by, key=by.__getitem__) == BOTH for by in spreads),
            "; ".join(
                f"{by[BOTH]:.2g}, the next {min(v for m, v in by.items() if m != BOTH):.2g}"
                for by in spreads
            ),
        ),
    ]
    judged = grid.get(Condition(config.archs[-1], config.rectifiers[0], SAME))
    if judged is None:
        return of_spread
    by_method = {m: [trial.curve for trial in trials] for m, trials in judged.items()}
    he = f"With padding 'same' He stays at chance for {config.num_steps:,} steps"
    trains = "With padding 'same' [{}] trains"
    return [
        claims.stalled(he, by_method[HE], config.stalled),
        *(claims.converged(trains.format(m), by_method[m], config.reached) for m in (WITHIN, LSUV)),
        *of_spread,
    ]


def markdown(config: Config, grid: Grid) -> str:
    """Return a table for each condition, a row for each method."""
    shown = intervals.heading(len(next(iter(grid.values()))[HE]))
    columns: dict[str, Callable[[Trial], float]] = {
        f"steps to {config.reached:.0%} error, evaluated every {config.eval_every}": lambda trial: (
            trial.curve.steps_to(config.reached)
        ),
        "final error, %": lambda trial: 100 * trial.curve.final_error(),
        "spread of log C̃": lambda trial: trial.spread,
        "init., s": lambda trial: trial.seconds,
        "highest rate that learns × 1000": lambda trial: 1000 * trial.highest_rate,
    }
    blocks = [
        f"{shown}. Steps: in how many seeds, if not in all. A run that diverged ends at 100 %."
    ]
    for condition, by_method in grid.items():
        cells = []
        for method, trials in by_method.items():
            values = ([value(trial) for trial in trials] for value in columns.values())
            cells.append([method, *(intervals.short(v, digits=3, form="g") for v in values)])
        blocks += [f"{condition}:", tables.markdown(["method", *columns], cells)]
    return tables.document(*blocks)


def rows(grid: Grid) -> list[list[Any]]:
    """Return a table with a row for each run; change rates in one cell, in the order of layers."""
    own = ("spread", "spread_after", "seconds", "first_call_seconds", "highest_rate")
    known = ["arch", "rectifier", "padding", "method", "seed", "status"]
    table: list[list[Any]] = [[*known, "steps", "errors", *own, "change_rates"]]
    for condition, by_method in grid.items():
        for method, trials in by_method.items():
            for trial in trials:
                c = trial.curve
                steps, errors, rates = (
                    " ".join(f"{v:.6g}" for v in values)
                    for values in (c.steps, c.errors, trial.change_rates)
                )
                numbers = (f"{getattr(trial, name):.6g}" for name in own)
                setting = (*dataclasses.astuple(condition), method, c.seed, c.status)
                table.append([*setting, steps, errors, *numbers, rates])
    return table


EXPERIMENT = Experiment("data_dependent", SCALES, report, default_seeds=2)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
