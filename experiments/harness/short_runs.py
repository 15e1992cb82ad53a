"""Networks at step 0, and short runs from there, without a folder for each.

Networks that differ in nothing but their initialiser share every compiled program, calibrations of
another seed and runs at another learning rate too.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Sequence

import jax
import numpy as np

from experiments.harness import machine
from experiments.harness.results import Curve
from prelu_jax import signal
from prelu_jax.data import augment
from prelu_jax.data.pipeline import Batch
from prelu_jax.datadep import CalibrationReport
from prelu_jax.training import calibration, start
from prelu_jax.training.batches import Batches
from prelu_jax.training.config import TrainConfig
from prelu_jax.training.parallel import Parallel
from prelu_jax.training.recipe import Recipe, resolve
from prelu_jax.training.state import TrainState, stream
from prelu_jax.training.step import Metrics

LAST = 5  # steps whose mean loss is that of the end
_FALLEN = 0.99  # of the first loss: less than learning how frequent the classes are


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """A network before its first step.

    Attributes:
        recipe: of its run.
        batches: of its run.
        parallel: the devices.
        state: of step 0, calibrated.
        reports: of each method that calibrated it, in turn.
        change_rates: C̃ of every layer ``[L]`` (Krähenbühl et al. 2015), under a random loss
            of its own on the first batch.
        seconds: that its calibration takes, with nothing left to compile; 0 without one.
        first_call_seconds: the same the first time, with the compilation of all programs that are
            neither in the process nor in the cache on disk.
    """

    recipe: Recipe
    batches: Batches
    parallel: Parallel
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

    def train(self, arm: str) -> Curve:
        """Return the curve of the run: its error every ``eval_every`` steps, while it is finite.

        The learning rate is constant.
        """
        config, state = self.recipe.config, self.parallel.replicate(self.state)
        steps, errors, status = [0], [self._test_error(state)], "done"
        for step, batch in enumerate(self.batches.train(), start=1):
            state, metrics = self._step(state, batch)
            if not math.isfinite(float(metrics["loss"])):
                status = "diverged"
                break
            if step % config.eval_every == 0 or step == config.num_steps:
                steps.append(step)
                errors.append(self._test_error(state))
        at = np.array(steps)
        epochs = at / self.recipe.steps_per_epoch
        return Curve(arm, config.seed, status, at, epochs, np.array(errors))

    def _step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        stepped: tuple[TrainState, Metrics] = self.parallel.train_step(
            state, self.parallel.split(batch)
        )
        return stepped

    def _test_error(self, state: TrainState) -> float:
        return self.parallel.evaluate(state, self.batches.test())["test_error"]

    def learns(self, rate: float, steps: int) -> bool:
        """Return whether the loss ends at least 1 % below its start at a learning rate.

        Args:
            rate: the learning rate.
            steps: their number, at most that of the run.
        """
        scale = np.float32(rate / self.recipe.config.learning_rate)
        # As the plateau's factor, the rate is an argument of the compiled step.
        plateau = self.state.plateau._replace(scale=jax.numpy.asarray(scale))
        state = self.parallel.replicate(self.state.replace(plateau=plateau))
        losses: list[float] = []
        for batch in itertools.islice(self.batches.train(), steps):
            state, metrics = self._step(state, batch)
            losses.append(float(metrics["loss"]))
            if not math.isfinite(losses[-1]):
                return False
        return float(np.mean(losses[-LAST:])) < _FALLEN * losses[0]


def check(configs: Sequence[TrainConfig]) -> Parallel:
    """Check runs of one batch size and return their devices.

    Raises:
        ValueError: a configuration is impossible, or short runs could not have their own
            learning rate.
    """
    for config in configs:
        if config.drop_epochs:
            raise ValueError(
                f"config.drop_epochs is {config.drop_epochs}, expected it to be empty: short runs "
                "take their learning rates through the plateau's factor, which drop_epochs "
                "replaces."
            )
        resolve(config)
    parallel = machine.devices(configs[0].batch_size)
    parallel.check_batch_size(configs[0].batch_size, configs[0].accumulate)
    return parallel


def begin(config: TrainConfig, parallel: Parallel) -> Start:
    """Draw and calibrate the parameters of a run, twice for the clock."""
    recipe = resolve(config)
    batches = Batches(recipe)
    pixels = batches.pixel_statistics()
    state = drawn = start.initial_state(recipe, pixels)
    batch = next(batches.train())
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
    return Start(recipe, batches, parallel, state, reports, rates, seconds[1], seconds[0])
