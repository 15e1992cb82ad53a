"""Writer of a run's metrics, checkpoints and status while it is trained.

Only the first process has the run's files. A disk that refuses a write does not end the training:
the next checkpoint may succeed. Only the last step has to be saved.
"""

import dataclasses
import math
import os
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np
from absl import logging
from flax import traverse_util

from prelu_jax.data.pipeline import ImageIssues
from prelu_jax.runs import identity, processes
from prelu_jax.runs.checkpoint import Checkpoints
from prelu_jax.runs.folder import DIVERGED, DONE, RUNNING, RunFolder
from prelu_jax.runs.resume import Interval
from prelu_jax.training.loop import DivergedError
from prelu_jax.training.recipe import Recipe
from prelu_jax.training.state import TrainState
from prelu_jax.training.step import Metrics

Progress = Callable[[int, float | None], None]  # (step, latest test error or None)

_SCALARS = ("loss", "error")  # of every step, averaged over the logging interval
_BY_LAYER = ("grad_rms", "param_rms", "slope_mean")  # of its last step

_pause = time.sleep
_PAUSES = (2, 5, 10)  # seconds before the end of a run is saved again, if the disk refuses it


class StoppedError(Exception):
    """The run was asked to stop and has saved its state; the same command continues it."""


class Recorder:
    """The metrics, checkpoints and status of a run that is being trained (`loop.Recorder`).

    Args:
        recipe: of the run.
        folder: its folder, claimed.
        checkpoints: its checkpoints; None in all processes but the first.
        issues: bad images that this process has read.
        progress: called with the step and the latest test error after every logging interval.

    Attributes:
        test_error: of the latest evaluation.
        interval: metrics of the steps since the last logging interval, before the run was resumed.
        status: the final one; empty until the run has ended.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        checkpoints: Checkpoints | None,
        issues: ImageIssues,
        progress: Progress,
    ) -> None:
        self._recipe = recipe
        self._config = recipe.config
        self._folder = folder
        self._checkpoints = checkpoints
        self._issues = issues
        self._progress = progress
        self._steps: list[Metrics] = []  # since the last logging interval
        self._interval_start = 0.0
        self.test_error: float | None = None
        self.interval: Interval = []
        self.status: dict[str, Any] = {}

    def begin(self, step: int) -> None:
        """Mark the run as running from a step on."""
        self._folder.write_status(RUNNING, step)
        self._interval_start = time.monotonic()

    def add(self, metrics: Metrics) -> None:
        """Keep the metrics of a step until the next `log`."""
        self._steps.append(metrics)

    def log(self, step: int) -> None:
        """Write the metrics of the interval that a step ends.

        Raises:
            DivergedError: they are not finite.
        """
        interval = self.interval + self._scalars()
        last = jax.device_get({name: self._steps[-1][name] for name in _BY_LAYER})
        seconds = time.monotonic() - self._interval_start
        self.interval, self._steps, self._interval_start = [], [], time.monotonic()
        by_layer = {name: _flat_floats(tree) for name, tree in last.items()}
        finite = [math.isfinite(metrics["loss"]) for metrics in interval]
        # The loss is that before the step; the state after it may be saved, so its gradient counts.
        finite[-1] &= all(map(math.isfinite, by_layer["grad_rms"].values()))
        if not all(finite):
            raise DivergedError(step - len(finite) + 1 + finite.index(False))
        means = {
            f"train_{name}": float(np.mean([m[name] for m in interval], dtype=np.float64))
            for name in _SCALARS
        }
        record = {"step": step, **means, **by_layer}
        self._folder.metrics.log(record, steps_per_second=len(interval) / seconds)

    def _scalars(self) -> Interval:
        scalars = [{name: m[name] for name in _SCALARS} for m in self._steps]
        interval: Interval = jax.device_get(scalars)
        return interval

    def log_signal(self, step: int, record: dict[str, Any]) -> None:
        """Write a measurement of the signal."""
        self._folder.metrics.log({"step": step, **record})

    def log_evaluation(self, step: int, results: dict[str, float], rate_scale: float) -> None:
        """Write the results on the test split and the learning rate from now on."""
        self.test_error = results["test_error"]
        rate = self._config.learning_rate * rate_scale
        epoch = step / self._recipe.steps_per_epoch
        record = {"step": step, "epoch": epoch, **results, "learning_rate": rate}
        self._folder.metrics.log(record)
        self._interval_start = time.monotonic()  # an evaluation is no part of steps per second

    def progress(self, step: int) -> None:
        """Report the step and the test error to the user."""
        self._progress(step, self.test_error)

    def save(self, state: TrainState) -> None:
        """Begin to write a checkpoint at the end of a logging interval."""
        self._share_bad_images()
        self._begin_save(state, [])

    def stop(self, state: TrainState) -> NoReturn:
        """Save the state within a logging interval and raise a `StoppedError`."""
        steps = [{name: float(m[name]) for name in _SCALARS} for m in self._scalars()]
        self._share_bad_images()
        refused = self._begin_save(state, self.interval + steps) or self._wait()
        lost = f", which could not be saved ({refused})" if refused else ""
        raise StoppedError(f"at step {int(state.step)}{lost}")

    def end(self, state: TrainState) -> None:
        """Save the last state and mark the run as done.

        Raises:
            OSError: the disk refuses, even after some time.
        """
        self._share_bad_images()
        self.status = processes.broadcast_from_process_0(lambda: self._end(state))

    def _end(self, state: TrainState) -> dict[str, Any]:
        last, counts = int(state.step), self._issues.counts()
        for pause in (*_PAUSES, None):
            refused = self._begin_save(state, []) or self._wait()
            try:
                if not refused:
                    error = self.test_error
                    return self._folder.write_status(DONE, last, test_error=error, **counts)
            except OSError as refusal:
                refused = str(refusal)
            if pause:
                logging.warning("The end of the run is saved again in %d s.", pause)
                _pause(pause)
        raise OSError(
            f"The last step, {last}, cannot be saved in {self._folder.path} ({refused}). Make room "
            "there; the same command continues from the last checkpoint."
        )

    def diverge(self, step: int) -> None:
        """Mark the run as diverged at a step; the last checkpoint stays."""
        logging.warning(
            "The loss or a gradient of step %d is not finite: the run has diverged. Try a lower "
            "config.learning_rate (now %g), or set config.pixel_rms, which scales the inputs (now "
            "%g; 0 leaves pixels in 0..255). pj.diagnose shows where a signal explodes.",
            *(step, self._config.learning_rate, self._config.pixel_rms),
        )
        self._wait()
        steps = self._checkpoints.steps() if self._checkpoints else []
        newest = max(steps, default=None)
        self.status = self._folder.write_status(DIVERGED, step, last_good_checkpoint=newest)

    def _begin_save(self, state: TrainState, interval: Interval) -> str | None:
        """Begin to save a state; return the error if the files beside the checkpoint fail."""
        if not self._checkpoints:
            return None
        step, bad_images = int(state.step), self._issues.keys()
        try:
            # A checkpoint without them would belong to another run.
            self._folder.write_odd_images(bad_images)
            self._folder.metrics.flush(to_disk=True)
            self._folder.write_status(RUNNING, step)
        except OSError as error:
            logging.warning("Step %d is not saved (%s).", step, error)
            return str(error)
        fields = dataclasses.asdict(self._config)
        if self._config.pretrained:  # absolute: the folder of the run alone may be moved
            fields["pretrained"] = os.path.realpath(self._config.pretrained)
        notes = {
            "config": fields,
            "data": identity.data_facts(self._recipe.train, self._recipe.test),
            "odd_images": bad_images,
            "test_error": self.test_error,
            "interval": interval,
            "evaluation": self._folder.metrics.last_evaluation(),
        }
        evaluated = step % self._config.eval_every == 0 or step == self._config.num_steps
        self._checkpoints.save(state, self.test_error if evaluated else None, notes)
        return None

    def _wait(self) -> str | None:
        return self._checkpoints.wait() if self._checkpoints else None

    def _share_bad_images(self) -> None:
        """Add the bad images that any process has read."""
        for keys in processes.all_gather_json(self._issues.keys()):
            self._issues.add(keys)


def _flat_floats(tree: dict[str, Any]) -> dict[str, float]:
    return {path: float(v) for path, v in traverse_util.flatten_dict(tree, sep="/").items()}
