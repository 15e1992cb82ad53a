"""The steps of a run, and its files."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np
from flax import traverse_util

from prelu_jax import evaluation, signal
from prelu_jax.training import signal_log
from prelu_jax.training import state as state_lib
from prelu_jax.training.config import TrainConfig
from prelu_jax.training.parallel import Parallel
from prelu_jax.training.run_data import RunData
from prelu_jax.training.run_folder import DIVERGED, RUNNING, RunFolder
from prelu_jax.training.saving import Interval, Saving
from prelu_jax.training.state import TrainState
from prelu_jax.training.step import Metrics

Progress = Callable[[int, float | None], None]  # (step, latest test error or None)

_SCALARS = ("loss", "error")  # of a step, averaged over the logging interval
_BY_LAYER = ("grad_rms", "param_rms", "slope_mean")  # of its last step


class StoppedError(Exception):
    """The run was asked to stop, and has saved itself; to train it again goes on from there."""


@dataclasses.dataclass
class Run:
    """The files of a run that is being trained, and what it writes there.

    Attributes:
        config, data, folder, saving: its own.
        error: the latest on the test split.
        interval: metrics of the steps since the last logging interval, before it was resumed.
        status: the final one; empty until the run has ended.
    """

    config: TrainConfig
    data: RunData
    folder: RunFolder
    saving: Saving
    error: float | None = None
    interval: Interval = dataclasses.field(default_factory=list)
    status: dict[str, Any] = dataclasses.field(default_factory=dict)

    def log(self, step: int, interval: Interval, by_layer: dict[str, Any], seconds: float) -> None:
        """Writes the metrics of the steps since `interval`, or that one of them is not finite."""
        taken = self.interval + interval
        self.interval = []
        by_layer = {name: _flat_floats(tree) for name, tree in by_layer.items()}
        finite = [math.isfinite(metrics["loss"]) for metrics in taken]
        # The loss is that before the step; the state after it may be saved, so its gradient counts.
        finite[-1] &= all(map(math.isfinite, by_layer["grad_rms"].values()))
        if not all(finite):
            self.diverge(step - len(finite) + 1 + finite.index(False))
            return
        means = {
            f"train_{name}": float(np.mean([metrics[name] for metrics in taken], dtype=np.float64))
            for name in _SCALARS
        }
        self.folder.log({"step": step, **means, **by_layer}, steps_per_second=len(taken) / seconds)

    def evaluated(self, step: int, results: dict[str, float], rate_scale: float) -> None:
        """Writes the results and the learning rate from here on."""
        rate = self.config.learning_rate * rate_scale
        epoch = step / self.data.steps_per_epoch
        self.folder.log({"step": step, "epoch": epoch, **results, "learning_rate": rate})

    def diverge(self, step: int) -> None:
        """Something at this step is not finite: nothing after the last checkpoint is kept."""
        newest = self.saving.newest()
        self.status = self.folder.write_status(DIVERGED, step, last_good_checkpoint=newest)


class Steps:
    """The loop over the steps of a run, and what it does between them.

    Args:
        run, state: as they are before the first step.
        parallel, progress, stop: see `loop.train`.
    """

    def __init__(
        self,
        run: Run,
        state: TrainState,
        parallel: Parallel,
        progress: Progress,
        stop: Callable[[], bool],
    ) -> None:
        self.run = run
        self.config = run.config
        self.first = int(state.step)
        self.state = parallel.replicate(state)
        self.parallel = parallel
        self.progress = progress
        self.stop = stop
        self.taken: list[Metrics] = []  # since the last logging interval
        self.started = 0.0  # when that ended
        self.probe: signal.Probe | None = None  # made by the first measurement

    def finish(self) -> None:
        """Takes the remaining steps; the run has its final status then."""
        config, run = self.config, self.run
        run.folder.write_status(RUNNING, self.first)
        if self.first == 0:
            self._evaluate(0)
        self._end_below_error()  # also a run that was stopped before its status was written
        self.started = time.monotonic()
        steps = range(self.first + 1, config.num_steps + 1)
        for step, batch in zip(steps, run.data.train_batches(self.first), strict=True):
            if run.status:
                return
            if config.signal_every and step % config.signal_every == 0:
                self._log_signal(step, batch)
            self.state, metrics = self.parallel.train_step(self.state, batch)
            self.taken.append(metrics)
            last = step == config.num_steps
            if step % config.log_every == 0 or last:
                self._log(step)
                if not run.status and (step % config.eval_every == 0 or last):
                    self._evaluate(step)
                    self._end_below_error()
                if last:
                    break
                if not run.status and step % config.checkpoint_every == 0:
                    run.saving.save(self.state, run.error)
                self._tell(step)
            if not run.status and self.stop():
                self._save_and_stop(step)
        if not run.status:
            run.status = run.saving.end(self.state, run.error)
        self._tell(config.num_steps)

    def _scalars(self) -> Interval:
        return jax.device_get([{name: of[name] for name in _SCALARS} for of in self.taken])

    def _log(self, step: int) -> None:
        """Writes the interval's metrics; a run of which something is not finite has ended."""
        scalars = self._scalars()
        last = jax.device_get({name: self.taken[-1][name] for name in _BY_LAYER})
        self.run.log(step, scalars, last, time.monotonic() - self.started)
        self.taken, self.started = [], time.monotonic()

    def _log_signal(self, step: int, batch: dict[str, np.ndarray]) -> None:
        """Writes what the signal is in this step, of the state before it."""
        if self.probe is None:
            self.probe, _ = signal_log.prepare(self.state, batch)
        measurement = self.probe.read(self.parallel.signal_statistics(self.state, batch))
        self.run.folder.log({"step": step, **signal_log.record(measurement)})

    def _evaluate(self, step: int) -> None:
        """Writes the test error, tells the plateau; a run whose loss is not finite has ended."""
        batches = self.run.data.eval_batches()
        sums = [self.parallel.eval_step(self.state, batch) for batch in batches]
        found = evaluation.mean(jax.device_get(sums))
        if not math.isfinite(found["test_loss"]):
            self.run.diverge(step)
            return
        self.run.error = found["test_error"]
        self.state = state_lib.observe_error(self.state, self.run.error)
        self.run.evaluated(step, found, float(self.state.rate_scale))

    def _end_below_error(self) -> None:
        """Saves and ends the run if its test error is below ``config.stop_error``."""
        run, limit = self.run, self.config.stop_error
        if limit and not run.status and run.error is not None and run.error < limit:
            run.status = run.saving.end(self.state, run.error)

    def _save_and_stop(self, step: int) -> NoReturn:
        run = self.run
        floats = [{name: float(of[name]) for name in _SCALARS} for of in self._scalars()]
        refused = run.saving.stop(self.state, run.error, run.interval + floats)
        lost = f", which could not be saved ({refused})" if refused else ""
        raise StoppedError(f"at step {step}{lost}")

    def _tell(self, step: int) -> None:
        """Tells how far the run is, and its test error, unless it has diverged."""
        if self.run.status.get("status") != DIVERGED:
            self.progress(step, self.run.error)


def _flat_floats(tree: dict[str, Any]) -> dict[str, float]:
    return {path: float(v) for path, v in traverse_util.flatten_dict(tree, sep="/").items()}
