"""Cells of `experiments.depth`: a plain net with one initialisation, its runs, and their folder."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import prelu_jax as pj
from experiments.harness import plain_nets
from experiments.harness.plain_nets import Data, Outcome, PlainNet, Training
from prelu_jax import files
from prelu_jax.initializers import Initializer
from prelu_jax.training.state import stream

XAVIER, HE, ORTHOGONAL = "Xavier", "He", "orthogonal"
LSUV, BOTH = "LSUV", "within + between"
INITIALIZERS = {  # -> methods of `pj.calibrate`; 'lsuv' replaces He's kernels by orthogonal ones
    **dict.fromkeys((XAVIER, HE, ORTHOGONAL), ""),
    LSUV: "lsuv",
    BOTH: "within_layer,between_layer",
}
RELU, PRELU, TAILORED, TAILORED_PRELU = "ReLU", "PReLU 0.25", "tailored", "tailored PReLU"
RECTIFIERS = {  # as in `models.RECTIFIERS`
    RELU: "relu",
    PRELU: "prelu",
    TAILORED: "tailored",
    TAILORED_PRELU: "tailored_prelu",
}

_FILE = "runs.json"


@dataclasses.dataclass
class CellConfig:
    """The fields that decide the runs of a cell.

    Attributes:
        dataset: 'digits', or the name of a prepared TFDS dataset.
        test_split: the split to test on.
        side: height and width of the images in pixels.
        held_out: training examples that choose the learning rate.
        test_examples: test on the first so many examples; 0 for all.
        width: features or channels of the hidden layers.
        kernel_size: side of the kernels; 0 for dense layers.
        rates: the ladder of learning rates.
        num_steps: steps of a run.
        batch_size: examples of a step.
        momentum: momentum of stochastic gradient descent, from 0 to below 1.
        calibration_examples: training examples on which LSUV and within + between calibrate.
    """

    dataset: str = "digits"
    test_split: str = "test"
    side: int = 8
    held_out: int = 250
    test_examples: int = 0
    width: int = 64
    kernel_size: int = 0
    rates: tuple[float, ...] = (0.0005, 0.002, 0.008)
    num_steps: int = 300
    batch_size: int = 64
    momentum: float = 0.9
    calibration_examples: int = 256


@dataclasses.dataclass(frozen=True)
class Cell:
    """One net with one initialisation: its runs differ in seed and learning rate.

    Attributes:
        depth: number of weighted layers.
        initializer, rectifier: one of `INITIALIZERS`, and one of `RECTIFIERS`.
    """

    depth: int
    initializer: str
    rectifier: str

    def __str__(self) -> str:
        return f"{self.depth} layers, {self.initializer}, {self.rectifier}"

    def folder(self, workdir: Path) -> Path:
        """Return the folder of its runs."""
        initializer, rectifier = (
            name.lower().replace(" + ", "_").replace(" ", "_")
            for name in (self.initializer, self.rectifier)
        )
        return workdir / f"{self.depth}_layers" / initializer / rectifier


@dataclasses.dataclass(frozen=True, eq=False)
class Runs:
    """The runs of a cell.

    Attributes:
        rates: the learning rates tried.
        outcome: arrays ``[rates, seeds]``.
    """

    rates: tuple[float, ...]
    outcome: Outcome

    @property
    def best(self) -> int:
        """Index of the rate whose validation error, averaged over seeds, is the lowest."""
        return int(np.argmin(self.outcome.validation_error.mean(axis=1)))

    @property
    def errors(self) -> list[float]:
        """The test error of every seed at the chosen rate."""
        return list(map(float, self.outcome.test_error[self.best]))

    @property
    def shown_errors(self) -> list[float]:
        """The errors for a figure: nan for a run that diverged."""
        finite = self.outcome.finite[self.best]
        return [e if ok else np.nan for e, ok in zip(self.errors, finite, strict=True)]

    def trains(self, limit: float) -> bool:
        """Return whether the test error of every seed is below ``limit``."""
        return max(self.errors) < limit


def initial_slope(cell: Cell) -> float:
    """Return the negative slope of a cell's rectifiers before training.

    Raises:
        ValueError: the net is too shallow for a tailored slope.
    """
    slope = pj.models.RECTIFIERS[RECTIFIERS[cell.rectifier]].slope
    if slope is not None:
        return slope
    try:
        return pj.tailored_slope(cell.depth - 1)  # the scores have no rectifier
    except ValueError as error:
        raise ValueError(
            f"config.depths holds {cell.depth}, too few layers for a tailored rectifier: {error}"
        ) from error


def build(cell: Cell, config: CellConfig, num_classes: int) -> PlainNet:
    """Return the net of a cell, with its initialiser."""
    slope = initial_slope(cell)
    return PlainNet(
        cell.depth,
        config.width,
        num_classes,
        slope,
        pj.models.RECTIFIERS[RECTIFIERS[cell.rectifier]].learned,
        config.kernel_size,
        _initializer(cell, config, slope),
    )


def _initializer(cell: Cell, config: CellConfig, slope: float) -> Initializer:
    if cell.initializer == XAVIER:
        return pj.initializers.xavier_normal()
    if cell.initializer == ORTHOGONAL:
        is_dense = config.kernel_size == 0
        rule = pj.initializers.orthogonal if is_dense else pj.initializers.delta_orthogonal
        return rule(slope)
    return pj.initializers.he_normal(negative_slope=slope)


def train(cell: Cell, config: CellConfig, seeds: Sequence[int], data: Data) -> Runs:
    """Train a cell at every rate and from every seed, side by side."""
    net = build(cell, config, int(data.train.labels.max()) + 1)
    params = initial_params(net, cell, config, seeds, data)
    rates = np.repeat(config.rates, len(seeds))
    of_seed = np.tile(np.arange(len(seeds)), len(config.rates))
    keys = jnp.stack([stream(seed, "batches") for seed in seeds])
    outcome = plain_nets.train(
        net.clone(initializer=pj.initializers.zeros()),  # one program for all initialisations
        Training(config.num_steps, config.batch_size, config.momentum),
        jax.tree.map(lambda part: part[of_seed], params),
        rates,
        keys[of_seed],
        data,
    )
    shape = (len(config.rates), len(seeds))
    return Runs(config.rates, Outcome(*(part.reshape(shape) for part in outcome)))


def initial_params(
    net: PlainNet, cell: Cell, config: CellConfig, seeds: Sequence[int], data: Data
) -> Any:
    """Return the parameters before training, stacked over seeds."""
    batch = jnp.asarray(data.train.images[: config.calibration_examples])
    params = [_draw(net, stream(seed, "params"), batch[:1]) for seed in seeds]
    if method := INITIALIZERS[cell.initializer]:
        params = [
            pj.calibrate(net, {"params": one}, batch, method=method)[0]["params"] for one in params
        ]
    return jax.tree.map(lambda *parts: jnp.stack(parts), *params)


@functools.partial(jax.jit, static_argnums=0)
def _draw(net: PlainNet, key: jax.Array, image: jax.Array) -> Any:
    return net.init(key, image)["params"]


def write(runs: Runs, cell: Cell, config: CellConfig, workdir: Path, seeds: Sequence[int]) -> None:
    """Write the runs of a cell to its folder."""
    folder = cell.folder(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    outcome = {name: part.tolist() for name, part in runs.outcome._asdict().items()}
    files.write_json(folder / _FILE, {"config": _identity(config, seeds), "outcome": outcome})


def read(cell: Cell, config: CellConfig, workdir: Path, seeds: Sequence[int]) -> Runs | None:
    """Return the runs in the folder of a cell; None if there are none.

    Raises:
        ValueError: the runs have another configuration or other seeds, or the file is damaged.
    """
    file = cell.folder(workdir) / _FILE
    if not file.exists():
        return None
    advice = "Remove it, and the command computes the cell again."
    written = files.read_json(file, dict, advice)
    identity = _identity(config, seeds)
    try:
        parts = dict(written["outcome"])
        finite = np.array(parts.pop("finite"), bool)
        outcome = Outcome(finite, **{name: np.array(part, float) for name, part in parts.items()})
        differing = [name for name in identity if written["config"][name] != identity[name]]
        shapes = {part.shape for part in outcome}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} does not hold the runs of a cell. {advice}") from error
    if differing:
        name = differing[0]
        raise ValueError(
            f"{file} was computed with {name} {written['config'][name]}, and this command has "
            f"{identity[name]}. Give another --workdir, or the configuration of the folder."
        )
    if shapes != {(len(config.rates), len(seeds))}:
        raise ValueError(f"{file} does not hold a number for every run. {advice}")
    return Runs(config.rates, outcome)


def _identity(config: CellConfig, seeds: Sequence[int]) -> dict[str, Any]:
    """Return the fields that decide the runs of a cell, and the seeds, as in JSON."""
    names = (field.name for field in dataclasses.fields(CellConfig))
    fields = {name: getattr(config, name) for name in names}
    return {**fields, "rates": list(config.rates), "seeds": list(seeds)}
