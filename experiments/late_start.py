"""Why Xavier's 30-layer net trains late: longer runs, each with one or two settings changed.

    python -m experiments.late_start --scale=laptop

The runs of `convergence_30` with Xavier's initialisation, taken further. A run ends at the first
test error below 50 %, or untrained at its last step. The figure shows the rms of gradients and
kernels by layer for the first seed: in which layers training starts, and whether the weight decay
or the gradient is larger before that.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.harness import (
    cli,
    configs,
    convergence,
    drawing,
    intervals,
    results,
    tables,
    until_trained,
)
from experiments.harness.claims import Claim
from experiments.harness.configs import every
from experiments.harness.convergence import XAVIER
from experiments.harness.experiment import Experiment, Report
from experiments.harness.plans import Plan
from prelu_jax import names

BASE, NO_BIASES, NO_DECAY, NEITHER = (
    *("as it is", "biases frozen", "no weight decay", "biases frozen, no weight decay"),
)
VARIANTS: dict[str, dict[str, Any]] = {
    BASE: {},
    NO_BIASES: {"frozen": "bias"},
    NO_DECAY: {"weight_decay": 0.0},
    NEITHER: {"frozen": "bias", "weight_decay": 0.0},
    "as many examples of each class": {"examples_per_class": 135},  # as the rarest has
    "outputs of unit gain": {"arch": "small_30_reduced_large_outputs"},
    "no dropout": {"arch": "small_30_reduced_no_dropout"},
    "batches of 256": {"batch_size": 256},
}
DRAWN = (BASE, NO_BIASES, NO_DECAY, NEITHER)


@dataclasses.dataclass
class Config(convergence.ConvergenceConfig):
    """The run that is varied, and the names of its variants.

    Attributes:
        variants: names of the variants to run.
    """

    variants: tuple[str, ...] = tuple(VARIANTS)


SCALES = {
    # Digits at 32 pixels: about two hours on two cores.
    "laptop": Config(
        **until_trained.LAPTOP,
        arch="small_30_reduced",
        learning_rate=0.002,
        num_steps=10_000,
        **every(50, 50, 500),
    )
}


def plan(config: Config, workdir: Path, seeds: Sequence[int]) -> Plan:
    """Return the runs of every variant."""
    configs.check_unset(config, ["initializer", "frozen"])
    for variant in config.variants:
        names.check("variant", variant, VARIANTS)
    return until_trained.plan(config, workdir, seeds, _cases(config))


def _cases(config: Config) -> until_trained.Cases:
    initializer = {"initializer": config.xavier_initializer}
    return {(XAVIER, variant): {**initializer, **VARIANTS[variant]} for variant in config.variants}


def report(config: Config, workdir: Path, seeds: Sequence[int]) -> Report:
    """Return the table, the figure and the claims."""
    curves = until_trained.read(workdir, seeds, _cases(config))
    needed = {v: until_trained.steps(config, of_variant) for (_, v), of_variant in curves.items()}
    folders = {
        variant: until_trained.folder(workdir, (XAVIER, variant), seeds[0])
        for variant in DRAWN
        if variant in config.variants
    }
    return Report(
        judge(needed),
        markdown(config, curves),
        until_trained.tables(config, curves),
        {"figure": draw(config, folders)} if folders else {},
    )


def judge(needed: Mapping[str, Sequence[float]]) -> list[Claim]:
    """Judge whether frozen biases prevent training, and whether the weight decay is the reason."""
    if not {NO_BIASES, NEITHER} <= set(needed):
        return []
    return [
        Claim(
            "With frozen biases no run trains",
            not np.isfinite(needed[NO_BIASES]).any(),
            f"trained: {_count(needed[NO_BIASES])}",
        ),
        Claim(
            "With frozen biases and no weight decay every run trains: the decay held it",
            bool(np.isfinite(needed[NEITHER]).all()),
            f"trained: {_count(needed[NEITHER])}",
        ),
    ]


def _count(steps: Sequence[float]) -> str:
    return f"{int(np.isfinite(steps).sum())} of {len(steps)}"


def markdown(config: Config, curves: until_trained.Curves) -> str:
    """Return the table: a row for each variant, with every seed."""
    rows = [(v, until_trained.cell(config, curves[XAVIER, v])) for v in config.variants]
    table = tables.markdown(("changed", "steps"), rows)
    return tables.document(until_trained.explain(config, f"{config.num_steps:,} steps"), table)


def draw(config: Config, folders: Mapping[str, Path]) -> Any:
    """Draw root mean squares of gradients and kernels by layer over the steps of one run each."""
    size = (4.0 * len(folders), 7.0)
    figure, grid = drawing.subplots(2, len(folders), size, sharey="row", sharex=True)
    for column, (variant, folder) in zip(grid.T, folders.items(), strict=True):
        records = [r for r in results.read_metrics(folder) if "grad_rms" in r]
        for axes, quantity in zip(column, ("grad_rms", "param_rms"), strict=True):
            _draw_layers(axes, records, quantity)
        column[0].set_title(variant.replace(", ", ",\n"), fontsize=14)
        column[1].set_xlabel("Steps", fontsize=14)
    grid[0, 0].set_ylabel("Gradient of a kernel, rms", fontsize=14)
    grid[1, 0].set_ylabel("Kernel, rms", fontsize=14)
    caption = (
        f"{config.dataset}, {config.arch}, {config.xavier_initializer}; SGD "
        f"{config.learning_rate:g}; {intervals.seeds([config.seed])}; "
        "dark: first layers, light: last"
    )
    drawing.caption(figure, caption)
    return figure


def _draw_layers(axes: Any, records: Sequence[Mapping[str, Any]], quantity: str) -> None:
    kernels = [name for name in records[0][quantity] if name.endswith("/kernel")] if records else []
    colours = drawing.shades(len(kernels))
    steps = [record["step"] for record in records]
    for name, colour in zip(sorted(kernels, key=_place), colours, strict=True):
        axes.plot(steps, [r[quantity][name] for r in records], color=colour, lw=1.2)
    axes.set_yscale("log")
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=12)


def _place(kernel: str) -> tuple[int, str, int]:
    """Return the sort key of a kernel by depth: fully connected layers last."""
    layer = kernel.removesuffix("/kernel")
    stage, _, number = layer.partition("_")
    return layer.startswith("fc"), stage, int(number or 0)


EXPERIMENT = Experiment("late_start", SCALES, report, plan)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
