"""Xavier's 30-layer net taken further, with one thing changed at a time.

    python -m experiments.late_start --scale=laptop

The runs of `convergence_30` with Xavier's start, taken further. A run ends at the first test error
below 50 %, or untrained at its last step. The figure shows gradients and kernels by layer, of one
seed: where training starts, and whether the decay of the weights or their gradient is larger
before.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import common, convergence, figures, results, until_trained
from experiments.convergence import XAVIER
from experiments.results import Claim
from prelu_jax import files, names

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
    """The run that is varied, and the names of its variants."""

    variants: tuple[str, ...] = tuple(VARIANTS)


def laptop() -> Config:
    """Digits at 32 pixels: about two hours on two cores."""
    return Config(
        **until_trained.LAPTOP,
        arch="small_30_reduced",
        learning_rate=0.002,
        num_steps=10_000,
        log_every=50,
        eval_every=50,
    )


def run(config: Config, workdir: Path, seeds: int) -> list[Claim]:
    """Train every variant, write the table and the figure, and judge the claims."""
    common.check_unset(config, ["initializer", "frozen"])
    for variant in config.variants:
        names.check("config.variants", variant, VARIANTS)
    initializer = config.xavier_initializer
    cases = {
        (XAVIER, variant): {"initializer": initializer, **VARIANTS[variant]}
        for variant in config.variants
    }
    curves = until_trained.train(config, workdir, seeds, cases)
    needed = {variant: until_trained.steps(config, of) for (_, variant), of in curves.items()}
    folders = {
        variant: until_trained.folder(workdir, (XAVIER, variant), config.seed)
        for variant in DRAWN
        if variant in config.variants
    }
    written = draw(config, folders, workdir / "figure")
    text = markdown(config, curves)
    files.write_text(workdir / "table.md", text)
    tables = ("table.md", "steps.csv", "curves.csv")
    print(f"\n{text}\nWritten:", *written, *map(workdir.joinpath, tables), sep="\n  ")
    return judge(needed)


def judge(needed: Mapping[str, Sequence[float]]) -> list[Claim]:
    """Judge whether biases let the net out, and whether the decay of the weights holds it."""
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
    lines = [until_trained.explain(config), "", "| changed | steps |", "|---|---|"]
    lines += [
        f"| {variant} | {until_trained.cell(config, curves[XAVIER, variant])} |"
        for variant in config.variants
    ]
    return "\n".join(lines) + "\n"


def draw(config: Config, folders: Mapping[str, Path], stem: Path) -> list[Path]:
    """Draw root mean squares of gradients and kernels by layer over the steps of one run each."""
    size = {"figsize": (4 * len(folders), 7), "layout": "constrained"}
    shared = {"sharey": "row", "sharex": "col", "squeeze": False}
    figure, grid = figures.pyplot().subplots(2, len(folders), **size, **shared)
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
        f"{config.learning_rate:g}; seed {config.seed}; dark: first layers, light: last"
    )
    figure.supxlabel(caption, fontsize=11, color="0.35")
    return figures.save(figure, stem)


def _draw_layers(axes: Any, records: Sequence[Mapping[str, Any]], quantity: str) -> None:
    kernels = [name for name in records[0][quantity] if name.endswith("/kernel")] if records else []
    colours = figures.pyplot().get_cmap("viridis")(np.linspace(0, 0.9, len(kernels)))
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


if __name__ == "__main__":
    common.main("late_start", {"laptop": laptop}, run, default_seeds=3)
