"""What a network is at step 0, and short runs from there, without a folder for each.

Networks that differ in nothing but their initialiser share every compiled program, calibrations of
another seed and runs at another learning rate too.
"""

import dataclasses
import math
import time
from collections.abc import Iterator

import jax
import numpy as np

from experiments.results import Curve
from prelu_jax import arch, datadep, evaluation, signal
from prelu_jax.data import augment, pipeline, sources
from prelu_jax.training import start
from prelu_jax.training.config import TrainConfig
from prelu_jax.training.parallel import Parallel
from prelu_jax.training.state import TrainState, stream

_LAST = 5  # steps whose mean loss is that of the end
_FALLEN = 0.99  # of the first loss: less than learning how frequent the classes are


class Data:
    """The splits and the mean image of runs that differ in nothing but network and seed."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._train, self._test = (
            sources.subset(sources.load(config.dataset, split, config.data_dir), config.classes)
            for split in (config.train_split, config.test_split)
        )
        size = arch.get(config.arch).image_size
        self._crop = pipeline.Crop(size, config.min_side, config.max_side)
        self.num_classes = len(self._train.class_names)
        self.steps_per_epoch = len(self._train) / config.batch_size
        statistics = pipeline.eval_batches(self._train, self._crop, 100, 10_000)
        self.pixels = augment.pixel_statistics(statistics, config.pixel_rms)

    def train_batches(self, seed: int, steps: int) -> Iterator[dict[str, np.ndarray]]:
        """The batches of a run, from its first on."""
        size = self._config.batch_size
        return iter(pipeline.train_batches(self._train, self._crop, size, seed, 0, steps))

    def test_error(self, state: TrainState, parallel: Parallel) -> float:
        """The error of a state on the test split."""
        c = self._config
        batches = pipeline.eval_batches(self._test, self._crop, c.batch_size, c.test_examples)
        found = evaluation.evaluate(lambda batch: parallel.eval_step(state, batch), batches)
        return found["test_error"]


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """A network before its first step.

    Attributes:
        state: of step 0, calibrated.
        change_rates: C̃ of every layer ``[L]`` (Krähenbühl et al. 2015), under a random loss
            of its own on the first batch.
        seconds: that its calibration takes, with nothing left to compile; 0 without one.
        compiled: the same the first time.
    """

    state: TrainState
    change_rates: np.ndarray
    seconds: float
    compiled: float

    @property
    def spread(self) -> float:
        """The standard deviation of log C̃ over layers; infinite if one has no rate, or 0."""
        if not (np.isfinite(self.change_rates) & (self.change_rates > 0)).all():
            return math.inf
        return float(np.std(np.log(self.change_rates)))


def begin(config: TrainConfig, data: Data) -> Start:
    """Draws and calibrates the parameters of a run, twice for the clock."""
    state = start.state(config, start.model(config, data.num_classes), None, data.pixels)
    batch = next(data.train_batches(config.seed, 1))
    images = augment.normalize(jax.numpy.asarray(batch["image"]), data.pixels)
    params, seconds = state.params, [0.0, 0.0]
    if config.datadep != "none":
        for call in range(2):
            began = time.monotonic()
            variables, _ = datadep.calibrate(
                state.model,
                {"params": state.params},
                images,
                method=config.datadep,
                key=stream(config.seed, "datadep"),
            )
            params = jax.block_until_ready(variables["params"])
            seconds[call] = time.monotonic() - began
    measured = signal.measure(
        state.model, {"params": params}, images, key=stream(config.seed, "change_rates")
    )
    rates = np.array([row.change_rate for row in measured.layers], np.float64)
    return Start(state.replace(params=params), rates, seconds[1], seconds[0])


def train(config: TrainConfig, begun: Start, data: Data, parallel: Parallel, arm: str) -> Curve:
    """The run from a start: its error every ``config.eval_every`` steps, while the loss is finite.

    The learning rate stays ``config.learning_rate``.
    """
    state = parallel.replicate(begun.state)
    steps, errors, status = [0], [data.test_error(state, parallel)], "done"
    batches = data.train_batches(config.seed, config.num_steps)
    for step, batch in enumerate(batches, start=1):
        state, metrics = parallel.train_step(state, batch)
        if not math.isfinite(float(metrics["loss"])):
            status = "diverged"
            break
        if step % config.eval_every == 0 or step == config.num_steps:
            steps.append(step)
            errors.append(data.test_error(state, parallel))
    epochs = np.array(steps) / data.steps_per_epoch
    return Curve(arm, config.seed, status, np.array(steps), epochs, np.array(errors))


def is_stable(
    config: TrainConfig, begun: Start, data: Data, parallel: Parallel, rate: float, steps: int
) -> bool:
    """Whether the loss stays finite at a learning rate and ends at least 1 % below its start."""
    scale = np.float32(rate / config.learning_rate)  # the plateau's factor: nothing is compiled
    plateau = begun.state.plateau._replace(scale=jax.numpy.asarray(scale))
    state = parallel.replicate(begun.state.replace(plateau=plateau))
    losses: list[float] = []
    for batch in data.train_batches(config.seed, steps):
        state, metrics = parallel.train_step(state, batch)
        losses.append(float(metrics["loss"]))
        if not math.isfinite(losses[-1]):
            return False
    return float(np.mean(losses[-_LAST:])) < _FALLEN * losses[0]
