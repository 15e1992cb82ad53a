"""What a network is at step 0, and short runs from there, without a folder for each.

Networks that differ in nothing but their initialiser share every compiled program, calibrations of
another seed and runs at another learning rate too.
"""

import dataclasses
import itertools
import math
import time

import jax
import numpy as np

from experiments.results import Curve
from prelu_jax import evaluation, signal
from prelu_jax.data import augment
from prelu_jax.datadep import CalibrationReport
from prelu_jax.training import calibration, start
from prelu_jax.training.batches import Batches
from prelu_jax.training.config import TrainConfig
from prelu_jax.training.parallel import Parallel
from prelu_jax.training.recipe import Recipe
from prelu_jax.training.state import TrainState, stream

_LAST = 5  # steps whose mean loss is that of the end
_FALLEN = 0.99  # of the first loss: less than learning how frequent the classes are


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """A network before its first step.

    Attributes:
        state: of step 0, calibrated.
        reports: of each method that calibrated it, in turn.
        change_rates: C̃ of every layer ``[L]`` (Krähenbühl et al. 2015), under a random loss
            of its own on the first batch.
        seconds: that its calibration takes, with nothing left to compile; 0 without one.
        first_call_seconds: the same the first time, with what no run before it, nor the cache on
            disk, has compiled.
    """

    state: TrainState
    reports: list[CalibrationReport]
    change_rates: np.ndarray
    seconds: float
    first_call_seconds: float

    @property
    def spread(self) -> float:
        """The standard deviation of log C̃ over layers; infinite if one has no rate, or 0."""
        if not (np.isfinite(self.change_rates) & (self.change_rates > 0)).all():
            return math.inf
        return float(np.std(np.log(self.change_rates)))


def check(config: TrainConfig) -> None:
    """Raises a ValueError if short runs could not have learning rates of their own."""
    if config.drop_epochs:
        raise ValueError(
            f"config.drop_epochs is {config.drop_epochs}, expected it to be empty: short runs take "
            "their learning rates through the plateau's factor, which such a schedule has not."
        )


def begin(recipe: Recipe, data: Batches, parallel: Parallel) -> Start:
    """Draws and calibrates the parameters of a run, twice for the clock."""
    pixels = data.pixel_statistics()
    config = recipe.config
    state = drawn = start.initial_state(recipe, pixels)
    batch = next(data.train())
    reports: list[CalibrationReport] = []
    seconds = [0.0, 0.0]
    if config.datadep != "none":
        for call in range(2):
            began = time.monotonic()
            state, reports = calibration.calibrate(recipe, drawn, batch, parallel)
            jax.block_until_ready(state.params)
            seconds[call] = time.monotonic() - began
    with jax.default_matmul_precision("highest"):  # as calibrations compute
        measured = signal.measure(
            state.model,
            {"params": state.params},
            augment.normalize(jax.numpy.asarray(batch["image"]), pixels),
            key=stream(config.seed, "change_rates"),
        )
    rates = np.array([row.change_rate for row in measured.layers], np.float64)
    return Start(state, reports, rates, seconds[1], seconds[0])


def train(recipe: Recipe, begun: Start, data: Batches, parallel: Parallel, arm: str) -> Curve:
    """The run from a start: its error every ``config.eval_every`` steps, while the loss is finite.

    The learning rate stays ``config.learning_rate``.
    """
    config = recipe.config
    state = parallel.replicate(begun.state)
    steps, errors, status = [0], [_test_error(state, data, parallel)], "done"
    for step, batch in enumerate(data.train(), start=1):
        state, metrics = parallel.train_step(state, parallel.split(batch))
        if not math.isfinite(float(metrics["loss"])):
            status = "diverged"
            break
        if step % config.eval_every == 0 or step == config.num_steps:
            steps.append(step)
            errors.append(_test_error(state, data, parallel))
    epochs = np.array(steps) / recipe.steps_per_epoch
    return Curve(arm, config.seed, status, np.array(steps), epochs, np.array(errors))


def _test_error(state: TrainState, data: Batches, parallel: Parallel) -> float:
    def step(batch: dict[str, np.ndarray]) -> evaluation.Sums:
        sums: evaluation.Sums = parallel.eval_step(state, parallel.split(batch))
        return sums

    return evaluation.evaluate(step, data.test())["test_error"]


def learns(
    recipe: Recipe, begun: Start, data: Batches, parallel: Parallel, rate: float, steps: int
) -> bool:
    """Whether the loss stays finite at a learning rate and ends at least 1 % below its start.

    Of as many steps as the run has, or fewer.
    """
    scale = np.float32(
        rate / recipe.config.learning_rate
    )  # the plateau's factor: nothing is compiled
    plateau = begun.state.plateau._replace(scale=jax.numpy.asarray(scale))
    state = parallel.replicate(begun.state.replace(plateau=plateau))
    losses: list[float] = []
    for batch in itertools.islice(data.train(), steps):
        state, metrics = parallel.train_step(state, parallel.split(batch))
        losses.append(float(metrics["loss"]))
        if not math.isfinite(losses[-1]):
            return False
    return float(np.mean(losses[-_LAST:])) < _FALLEN * losses[0]
