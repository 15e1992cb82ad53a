"""The training loop."""

import functools
import math
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

from prelu_jax import signal
from prelu_jax.training import signal_log
from prelu_jax.training import state as state_lib
from prelu_jax.training.batches import Batches
from prelu_jax.training.parallel import Parallel
from prelu_jax.training.recipe import Recipe
from prelu_jax.training.state import TrainState
from prelu_jax.training.step import Metrics


class DivergedError(Exception):
    """The training loss, the test loss or a gradient at a step is not finite.

    Attributes:
        step: that step.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"The loss or a gradient of step {step} is not finite.")
        self.step = step


class Recorder(Protocol):
    """The outputs of the loop: metrics and checkpoints.

    Attributes:
        test_error: of the latest evaluation, if there was one.
    """

    test_error: float | None

    def begin(self, step: int) -> None:
        """Mark the run as running from a step on."""

    def add(self, metrics: Metrics) -> None:
        """Keep the metrics of a step until the next `log`."""

    def log(self, step: int) -> None:
        """Write the metrics of the interval that a step ends.

        Raises:
            DivergedError: they are not finite.
        """

    def log_signal(self, step: int, record: dict[str, Any]) -> None:
        """Write a measurement of the signal."""

    def log_evaluation(self, step: int, results: dict[str, float], rate_scale: float) -> None:
        """Write the results on the test split and the learning rate from now on."""

    def save(self, state: TrainState) -> None:
        """Begin to write a checkpoint."""

    def progress(self, step: int) -> None:
        """Report the step to the user."""

    def stop(self, state: TrainState) -> NoReturn:
        """Save the state between two intervals and raise an exception."""

    def end(self, state: TrainState) -> None:
        """Save the last state and mark the run as done."""


def train(
    recipe: Recipe,
    state: TrainState,
    batches: Batches,
    parallel: Parallel,
    recorder: Recorder,
    stop: Callable[[], bool],
) -> None:
    """Take the remaining steps of a run.

    Args:
        recipe: of the run.
        state: before the first of these steps.
        batches: the reader of its batches.
        parallel: the devices.
        recorder: writes metrics and checkpoints.
        stop: returns, after every step, whether to save and stop there; the same in every process.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    config = recipe.config
    measure_signal = _SignalMeter(parallel)
    evaluate = functools.partial(_evaluate, batches, parallel, recorder)
    step = first = int(state.step)
    state = parallel.replicate(state)
    recorder.begin(first)
    if first == 0:
        state = evaluate(state, first)
    steps = range(first + 1, config.num_steps + 1)
    if _is_below(config.stop_error, recorder.test_error):
        steps = range(0)
    for step, batch in zip(steps, batches.train(first) if steps else (), strict=True):
        if config.signal_every and step % config.signal_every == 0:
            recorder.log_signal(step, measure_signal(state, batch))
        state, metrics = parallel.train_step(state, parallel.split(batch))
        recorder.add(metrics)
        is_last = step == config.num_steps
        if step % config.log_every == 0 or is_last:
            recorder.log(step)
        if step % config.eval_every == 0 or is_last:
            state = evaluate(state, step)
            if is_last or _is_below(config.stop_error, recorder.test_error):
                break
        if step % config.checkpoint_every == 0:
            recorder.save(state)
        if step % config.log_every == 0:
            recorder.progress(step)
        if stop():
            recorder.stop(state)
    recorder.end(state)
    recorder.progress(step)


def _is_below(limit: float, test_error: float | None) -> bool:
    """Return whether a test error ends the run; a limit of 0 is none."""
    return test_error is not None and test_error < limit


def _evaluate(
    batches: Batches, parallel: Parallel, recorder: Recorder, state: TrainState, step: int
) -> TrainState:
    """Evaluate on the test split; return the state with the learning rate that follows."""
    results = parallel.evaluate(state, batches.test())
    if not math.isfinite(results["test_loss"]):
        raise DivergedError(step)
    state = state_lib.observe_error(state, results["test_error"])
    recorder.log_evaluation(step, results, float(state.rate_scale))
    return state


class _SignalMeter:
    """Measurement of the signal in a step, with one probe for the whole run."""

    def __init__(self, parallel: Parallel) -> None:
        self._parallel = parallel
        self._probe: signal.Probe | None = None

    def __call__(self, state: TrainState, batch: dict[str, Any]) -> dict[str, Any]:
        if self._probe is None:
            self._probe, _ = signal_log.prepare(state, batch)
        statistics = self._parallel.signal_statistics(state, self._parallel.split(batch))
        return signal_log.record(self._probe.read(statistics))
