"""The steps of runs: one alone, or several in a stack, each with its own folder."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from flax import traverse_util

from prelu_jax import evaluation, signal
from prelu_jax.training import signal_log, stack
from prelu_jax.training.config import TrainConfig
from prelu_jax.training.parallel import Parallel
from prelu_jax.training.run_data import Reading, RunData
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
        config, data, folder, saving: its own; runs of one seed share the data.
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
    """The loop over the steps of runs at the same one, and what it does between them.

    A run that has diverged stays in the stack, so that nothing is compiled anew, and is ignored.

    Args:
        runs: of one `loop.program`.
        states: theirs.
        parallel, progress, stop: see `loop.train_together`.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        states: Sequence[TrainState],
        parallel: Parallel,
        progress: Progress,
        stop: Callable[[], bool],
    ) -> None:
        self.runs = runs
        self.config = runs[0].config  # where they do not differ
        self.first = int(states[0].step)
        self.reading = Reading([run.data for run in runs])
        self.state = parallel.replicate(stack.together(states, self.reading.reads))
        self.parallel = parallel
        self.progress = progress
        self.stop = stop
        self.taken: list[Metrics] = []  # since the last logging interval
        self.started = 0.0  # when that ended
        self.probe: signal.Probe | None = None  # made by the first measurement

    def finish(self) -> None:
        """Takes the remaining steps; every run has its final status then."""
        config = self.config
        for run in self.runs:
            run.folder.write_status(RUNNING, self.first)
        if self.first == 0:
            self._evaluate(0)
        self._end_below_error()  # also a run that was stopped before its status was written
        self.started = time.monotonic()
        steps = range(self.first + 1, config.num_steps + 1)
        batches = self.reading.train_batches(self.first)
        for step, batch in zip(steps, batches, strict=True):
            if not self._left():
                return
            if config.signal_every and step % config.signal_every == 0:
                self._log_signal(step, batch)
            self.state, metrics = self.parallel.train_step(self.state, batch)
            self.taken.append(metrics)
            last = step == config.num_steps
            if step % config.log_every == 0 or last:
                self._log(step)
                if self._left() and (step % config.eval_every == 0 or last):
                    self._evaluate(step)
                    self._end_below_error()
                if last:
                    break
                if step % config.checkpoint_every == 0:
                    for run, state in self._left(stack.apart(self.state)):
                        run.saving.save(state, run.error)
                self._tell(step)
            if self._left() and self.stop():
                self._save_and_stop(step)
        for run, state in self._left(stack.apart(self.state)):
            run.status = run.saving.end(state, run.error)
        self._tell(config.num_steps)

    def _left(self, *each: Sequence[Any]) -> list[tuple[Any, ...]]:
        """The runs that have not ended, each with its own of what is given for every run."""
        return [of for of in zip(self.runs, *each, strict=True) if not of[0].status]

    def _split(self, of_steps: Sequence[Any]) -> list[list[Any]]:
        """What steps have given, for every run."""
        fetched = [stack.split(tree, len(self.runs)) for tree in jax.device_get(of_steps)]
        return [[of_step[i] for of_step in fetched] for i in range(len(self.runs))]

    def _scalars(self) -> list[Interval]:
        return self._split([{name: metrics[name] for name in _SCALARS} for metrics in self.taken])

    def _log(self, step: int) -> None:
        """Writes the interval's metrics; a run of which something is not finite has ended."""
        scalars = self._scalars()
        by_layer = self._split([{name: self.taken[-1][name] for name in _BY_LAYER}])
        seconds = time.monotonic() - self.started
        for run, interval, (last,) in self._left(scalars, by_layer):
            run.log(step, interval, last, seconds)
        self.taken, self.started = [], time.monotonic()

    def _log_signal(self, step: int, batch: dict[str, np.ndarray]) -> None:
        """Writes what the signal of a run alone is in this step, of the state before it."""
        if self.probe is None:
            self.probe, _ = signal_log.prepare(self.state, batch)
        measurement = self.probe.read(self.parallel.signal_statistics(self.state, batch))
        self.runs[0].folder.log({"step": step, **signal_log.record(measurement)})

    def _evaluate(self, step: int) -> None:
        """Writes test errors, tells the plateaus; a run whose loss is not finite has ended."""
        batches = self.reading.eval_batches()
        sums = self._split([self.parallel.eval_step(self.state, batch) for batch in batches])
        results = [evaluation.mean(of_run) for of_run in sums]
        for run, found in self._left(results):
            if math.isfinite(found["test_loss"]):
                run.error = found["test_error"]
            else:
                run.diverge(step)
        errors = [math.nan if run.error is None else run.error for run in self.runs]
        self.state = stack.observe_errors(self.state, errors)
        for run, found, state in self._left(results, stack.apart(self.state)):
            run.evaluated(step, found, float(state.rate_scale))

    def _end_below_error(self) -> None:
        """Save and end the runs whose test error is below ``config.stop_error``."""
        if self.config.stop_error:
            for run, state in self._left(stack.apart(self.state)):
                if run.error is not None and run.error < self.config.stop_error:
                    run.status = run.saving.end(state, run.error)

    def _save_and_stop(self, step: int) -> NoReturn:
        refused = ""
        for run, state, interval in self._left(stack.apart(self.state), self._scalars()):
            floats = [{name: float(of[name]) for name in _SCALARS} for of in interval]
            refused = run.saving.stop(state, run.error, run.interval + floats) or refused
        lost = f", which could not be saved ({refused})" if refused else ""
        raise StoppedError(f"at step {step}{lost}")

    def _tell(self, step: int) -> None:
        """Tells how far the runs are that have not diverged, and their mean test error."""
        errors = [run.error for run in self.runs if run.status.get("status") != DIVERGED]
        known = [error for error in errors if error is not None]
        if errors:
            self.progress(step, statistics.fmean(known) if known else None)


def _flat_floats(tree: dict[str, Any]) -> dict[str, float]:
    return {path: float(v) for path, v in traverse_util.flatten_dict(tree, sep="/").items()}
