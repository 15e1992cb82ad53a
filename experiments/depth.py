"""How deep a plain net can be trained, by initialisation and rectifier.

    python -m experiments.depth --scale=laptop

Plain nets of several depths, without normalisation or shortcuts, with five initialisations and four
rectifiers. Each takes the learning rate of a ladder with the lowest error on held-out training
examples, averaged over the seeds. Measured: the test error after a fixed number of steps, the
highest depth that trains, and the cosine between examples at the last hidden layer.

With depth the cosine of two examples approaches 1 (activations.cosine_at_depth): a ReLU net maps
all images to one direction. A tailored slope is one at which the cosine ends at 0.9 (Zhang, Botev &
Martens 2022). Every cell has a folder for its runs; a cell whose folder holds them is only read.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.harness import (
    cli,
    configs,
    depth_cells,
    depth_figures,
    intervals,
    machine,
    plain_nets,
    tables,
)
from experiments.harness.claims import Claim
from experiments.harness.depth_cells import (
    HE,
    INITIALIZERS,
    ORTHOGONAL,
    PRELU,
    RECTIFIERS,
    RELU,
    TAILORED,
    XAVIER,
    Cell,
    CellConfig,
    Runs,
)
from experiments.harness.experiment import Experiment, Report
from experiments.harness.plain_nets import Outcome
from prelu_jax import names


@dataclasses.dataclass
class Config(CellConfig):
    """The grid, the training of its cells, and the limits in the claims.

    Attributes:
        data_dir: folder of TFDS; empty for its default.
        depths: numbers of weighted layers.
        initializers: names of the initialisations.
        rectifiers: names of the rectifiers.
        seed: the first seed.
        trained: claims: a net trains if the test error of every seed is below this.
        relu_trains: claim: He with ReLU trains at this depth, where the cosine of examples is
            0.972.
        relu_fails: claim: it does not at this depth, where the cosine is 0.996.
        times_deeper: claim: the tailored slope trains this many times as deep as ReLU.
    """

    data_dir: str = ""
    depths: tuple[int, ...] = (14, 30, 60, 100, 200)
    initializers: tuple[str, ...] = tuple(INITIALIZERS)
    rectifiers: tuple[str, ...] = tuple(RECTIFIERS)
    seed: int = 0
    # The claims were set before the first run of three seeds; one seed of each depth, with another
    # num_steps, had been tried.
    trained: float = 0.5
    relu_trains: int = 30
    relu_fails: int = 100
    times_deeper: float = 2.0


SCALES = {
    # Digits at 8 pixels, dense nets of width 64: half an hour on two cores.
    "laptop": Config(),
    # For a GPU.
    "cifar10": Config(
        dataset="cifar10",
        side=16,
        held_out=5000,
        test_examples=3000,
        kernel_size=3,
        width=32,
        num_steps=2000,
        batch_size=64,
    ),
}

Grid = Mapping[Cell, Runs]


def report(config: Config, workdir: Path, seeds: Sequence[int]) -> Report:
    """Train the runs that are missing; return the tables, the figures and the claims."""
    cells = check(config)
    machine.cache_compilations()
    machine.use_every_core(config.batch_size)
    data = None
    grid: dict[Cell, Runs] = {}
    for cell in (bar := tqdm(cells, unit="net")):
        bar.set_description(str(cell))
        runs = depth_cells.read(cell, config, workdir, seeds)
        if runs is None:
            data = data or plain_nets.load(
                config.dataset, config.test_split, config.data_dir,
                config.side, config.held_out, config.test_examples,
            )  # fmt: skip
            runs = depth_cells.train(cell, config, seeds, data)
            depth_cells.write(runs, cell, config, workdir, seeds)
        grid[cell] = runs
    caption = (
        f"{config.dataset} at {config.side} pixels, width {config.width}; SGD, momentum "
        f"{config.momentum:g}, {config.num_steps} steps of {config.batch_size}, the best of the "
        f"rates {', '.join(f'{rate:g}' for rate in config.rates)}; {intervals.seeds(seeds)}"
    )
    errors = {dataclasses.astuple(cell): runs.shown_errors for cell, runs in grid.items()}
    return Report(
        judge(config, grid),
        markdown(config, grid, seeds),
        {"depth.csv": rows(grid, seeds)},
        {
            "figure": depth_figures.error_over_depth(errors, config.trained, caption),
            "heat_map": depth_figures.heat_map(errors, caption),
        },
    )


def check(config: Config) -> list[Cell]:
    """Return the cells of the grid.

    Raises:
        ValueError: a field has an unknown name or a number out of range.
    """
    for kind, chosen, known in (
        ("initialisation", config.initializers, INITIALIZERS),
        ("rectifier", config.rectifiers, RECTIFIERS),
    ):
        for name in chosen:
            names.check(kind, name, known)
    positive = dict.fromkeys(("side", "held_out", "width", "batch_size", "num_steps"), 1)
    for field, least in {**positive, "calibration_examples": 2}.items():
        if getattr(config, field) < least:
            raise ValueError(
                f"config.{field} is {getattr(config, field)}, expected at least {least}."
            )
    if shallow := [depth for depth in config.depths if depth < 3]:
        raise ValueError(f"config.depths holds {shallow[0]}, expected at least 3 layers.")
    if not all(isinstance(rate, float) and rate > 0 for rate in config.rates):
        raise ValueError(f"config.rates is {config.rates}, expected rates above 0.")
    if not config.momentum < 1:
        raise ValueError(f"config.momentum is {config.momentum}, expected a number below 1.")
    configs.check_fractions(config, "trained")
    product = itertools.product(config.depths, config.rectifiers, config.initializers)
    cells = [Cell(depth, initializer, rectifier) for depth, rectifier, initializer in product]
    for cell in cells:
        depth_cells.initial_slope(cell)  # raises where the net is too shallow
    return cells


def judge(config: Config, grid: Grid) -> list[Claim]:
    """Judge the claims whose nets are in the grid."""
    return [
        claim
        for claim in (
            _relu_between(config, grid),
            *(_deeper(config, grid, initializer) for initializer in (HE, ORTHOGONAL)),
            _prelu(config, grid),
            _xavier(config, grid),
        )
        if claim
    ]


def _relu_between(config: Config, grid: Grid) -> Claim | None:
    shallow, deep = (
        grid.get(Cell(depth, HE, RELU)) for depth in (config.relu_trains, config.relu_fails)
    )
    if not (shallow and deep):
        return None
    return Claim(
        f"He with ReLU trains at {config.relu_trains} layers in every seed, at "
        f"{config.relu_fails} in none",
        shallow.trains(config.trained) and min(deep.errors) >= config.trained,
        "; ".join(
            f"{depth} layers: {intervals.summary(runs.errors, ' %', 100)}"
            for depth, runs in ((config.relu_trains, shallow), (config.relu_fails, deep))
        ),
    )


def deepest(config: Config, grid: Grid, initializer: str, rectifier: str) -> int | None:
    """Return the highest depth that trains, 0 for none; None if none was tried."""
    runs = {
        cell.depth: runs
        for cell, runs in grid.items()
        if (cell.initializer, cell.rectifier) == (initializer, rectifier)
    }
    trained = [depth for depth, of_depth in runs.items() if of_depth.trains(config.trained)]
    return max(trained, default=0) if runs else None


def _deeper(config: Config, grid: Grid, initializer: str) -> Claim | None:
    relu, tailored = (deepest(config, grid, initializer, name) for name in (RELU, TAILORED))
    if relu is None or tailored is None:
        return None
    times = f"{config.times_deeper:g} times"
    tried = ", ".join(map(str, config.depths))
    return Claim(
        f"{initializer}: the tailored slope trains at least {times} as deep as ReLU",
        tailored > 0 and tailored >= config.times_deeper * relu,
        f"tailored up to {tailored} layers, ReLU up to {relu}, of {tried}",
    )


def _prelu(config: Config, grid: Grid) -> Claim | None:
    pairs = {}
    for initializer in config.initializers:
        prelu, relu = (deepest(config, grid, initializer, name) for name in (PRELU, RELU))
        if prelu is None or relu is None:
            return None
        pairs[initializer] = (prelu, relu)
    return Claim(
        "With every initialisation PReLU with slopes of 0.25 trains at least as deep as ReLU",
        all(prelu >= relu for prelu, relu in pairs.values()),
        "; ".join(
            f"{initializer}: {prelu} and {relu}" for initializer, (prelu, relu) in pairs.items()
        ),
    )


def _xavier(config: Config, grid: Grid) -> Claim | None:
    depth = config.relu_trains
    runs = grid.get(Cell(depth, XAVIER, RELU))
    if runs is None:
        return None
    return Claim(
        f"Xavier with ReLU trains in no seed at {depth} layers",
        min(runs.errors) >= config.trained,
        intervals.summary(runs.errors, " %", 100),
    )


def markdown(config: Config, grid: Grid, seeds: Sequence[int]) -> str:
    """Return the test errors, the deepest nets that train, and the cosines."""
    nets = list(itertools.product(config.initializers, config.rectifiers))

    def table(content: Callable[[Cell], str]) -> str:
        heads = ("initialisation, rectifier", *(f"{depth} layers" for depth in config.depths))
        lines = [
            [
                f"{initializer}, {rectifier}",
                *(content(Cell(d, initializer, rectifier)) for d in config.depths),
            ]
            for initializer, rectifier in nets
        ]
        return tables.markdown(heads, lines)

    def error(cell: Cell) -> str:
        runs = grid[cell]
        return f"{intervals.short(runs.errors, 100)} at {runs.rates[runs.best]:g}"

    def cosines(cell: Cell) -> str:
        before, after = (
            part[grid[cell].best].mean()
            for part in (grid[cell].outcome.cosine_before, grid[cell].outcome.cosine_after)
        )
        return f"{before:.3f}, {after:.3f}" if math.isfinite(after) else f"{before:.3f}, ×"

    deepest_rows = [
        [
            rectifier,
            *(
                str(deepest(config, grid, initializer, rectifier))
                for initializer in config.initializers
            ),
        ]
        for rectifier in config.rectifiers
    ]
    one = (
        f"`--config.depths={config.depths[-1]} "
        f'--config.initializers="{(config.initializers[-1],)}" '
        f'--config.rectifiers="{(config.rectifiers[-1],)}"`'
    )
    return tables.document(
        f"Test error in %. {intervals.heading(len(seeds))}, and the rate that the held-out "
        "examples chose. A run that diverged counts 100 %.",
        table(error),
        f"Highest depth at which every seed ends below {config.trained:.0%}, 0 for none:",
        tables.markdown(("", *config.initializers), deepest_rows),
        "Mean cosine between different test images at the last hidden layer, before and after "
        "training; × where a run diverged:",
        table(cosines),
        f"One cell alone, with the same numbers: the command with {one} and another `--workdir`.",
    )


def rows(grid: Grid, seeds: Sequence[int]) -> Iterator[Sequence[Any]]:
    """Yield a row for each run, with every rate; ``chosen`` is 1 for the cell's rate."""
    yield ("depth", "initialisation", "rectifier", "rate", "chosen", "seed", *Outcome._fields)
    for cell, runs in grid.items():
        for i, rate in enumerate(runs.rates):
            for j, seed in enumerate(seeds):
                numbers = (f"{float(part[i, j]):.6g}" for part in runs.outcome)
                yield (*dataclasses.astuple(cell), rate, int(i == runs.best), seed, *numbers)


EXPERIMENT = Experiment("depth", SCALES, report)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
