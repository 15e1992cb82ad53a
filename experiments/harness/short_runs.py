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
from experiments.harness.configs import TrainConfig
from experiments.harness.results import Curve
from prelu_jax import evaluation, signal
from prelu_jax.data import augment
from prelu_jax.datadep import CalibrationReport
from prelu_jax.training import calibration, start
from prelu_jax.training import config as config_lib
from prelu_jax.training.parallel import Parallel
from prelu_jax.training.run_data import RunData
from prelu_jax.training.state import TrainState, stream

_LAST = 5  # steps whose mean loss is that of the end
_FALLEN = 0.99  # of the first loss: less than learning how frequent the classes are


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """A network before its first step.

    Attributes:
        config: of its run.
        data: of its run.
        parallel: the devices.
        state: of step 0, calibrated.
        reports: of each method that calibrated it, in turn.
        change_rates: C̃ of every layer ``[L]`` (Krähenbühl et al. 2015), under a random loss
            of its own on the first batch.
        seconds: that its calibration takes, with nothing left to compile; 0 without one.
        first_call_seconds: the same the first time, with the compilation of all programs that are
            neither in the process nor in the cache on disk.
    """

    config: TrainConfig
    data: RunData
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
        state, per_epoch = self.parallel.replicate(self.state), self.data.steps_per_epoch
        steps, errors, status = [0], [self._test_error(state)], "done"
        for step, batch in enumerate(self.data.train_batches(), start=1):
            state, metrics = self.parallel.train_step(state, batch)
            if not math.isfinite(float(metrics["loss"])):
                status = "diverged"
                break
            if step % self.config.eval_every == 0 or step == self.config.num_steps:
                steps.append(step)
                errors.append(self._test_error(state))
        at = np.array(steps)
        return Curve(arm, self.config.seed, status, at, at / per_epoch, np.array(errors))

    def _test_error(self, state: TrainState) -> float:
        batches = self.data.eval_batches()
        metrics = evaluation.evaluate(lambda batch: self.parallel.eval_step(state, batch), batches)
        return metrics["test_error"]

    def learns(self, rate: float, steps: int) -> bool:
        """Return whether the loss ends at least 1 % below its start at a learning rate.

        Args:
            rate: the learning rate.
            steps: their number, at most that of the run.
        """
        scale = np.float32(rate / self.config.learning_rate)
        # As the plateau's factor, the rate is an argument of the compiled step.
        plateau = self.state.plateau._replace(scale=jax.numpy.asarray(scale))
        state = self.parallel.replicate(self.state.replace(plateau=plateau))
        losses: list[float] = []
        for batch in itertools.islice(self.data.train_batches(), steps):
            state, metrics = self.parallel.train_step(state, batch)
            losses.append(float(metrics["loss"]))
            if not math.isfinite(losses[-1]):
                return False
        return float(np.mean(losses[-_LAST:])) < _FALLEN * losses[0]


def check(configs: Sequence[TrainConfig]) -> Parallel:
    """Return the devices for runs that differ in no batch size, or refuse the runs.

    Raises:
        ValueError: a configuration cannot be, or short runs could not have their own learning rate.
    """
    for config in configs:
        if config.drop_epochs:
            raise ValueError(
                f"config.drop_epochs is {config.drop_epochs}, expected it to be empty: short runs "
                "take their learning rates through the plateau's factor, which such a schedule has "
                "not."
            )
        config_lib.validate(config)
    parallel = machine.devices(configs[0].batch_size)
    parallel.check_batch_size(configs[0].batch_size)
    return parallel


def begin(config: TrainConfig, parallel: Parallel) -> Start:
    """Draw and calibrate the parameters of a run, twice for the clock."""
    data = RunData(config)
    pixels = data.pixel_statistics()
    net = start.model(config, data.num_classes)
    state = drawn = start.state(config, net, None, pixels, data.steps_per_epoch)
    batch = next(data.train_batches())
    reports: list[CalibrationReport] = []
    seconds = [0.0, 0.0]
    if config.datadep != "none":
        for call in range(2):
            began = time.monotonic()
            state, reports = calibration.calibrate(config, drawn, batch, parallel)
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
    return Start(config, data, parallel, state, reports, rates, seconds[1], seconds[0])
