"""One run from its configuration to its last step."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from prelu_jax import evaluation, models, signal
from prelu_jax.data import augment
from prelu_jax.training import calibration, pretrained, processes, run_data, signal_log, start
from prelu_jax.training import config as config_lib
from prelu_jax.training import state as state_lib
from prelu_jax.training.finished import Finished
from prelu_jax.training.parallel import Parallel
from prelu_jax.training.run_data import RunData
from prelu_jax.training.run_folder import DIVERGED, DONE, RUNNING, RunFolder
from prelu_jax.training.saving import Interval, Saving
from prelu_jax.training.watchdog import Watchdog

Progress = Callable[[int, float | None], None]  # (step, latest test error or None)


_SCALARS = ("loss", "error")  # of a step, averaged over the logging interval


class StoppedError(Exception):
    """The run was asked to stop, and has saved itself; to train it again goes on from there."""


def train(
    config: config_lib.TrainConfig,
    folder: Path,
    progress: Progress = lambda step, error: None,
    parallel: Parallel | None = None,
    stop: Callable[[], bool] = lambda: False,
    stall_timeout: float = 0,
) -> dict[str, Any]:
    """Trains a run to its last step, from its newest checkpoint if the folder holds one.

    Args:
        config: the run.
        folder: the run's own folder; made if it is not there.
        progress: told the step, and the latest test error, after every logging interval.
        parallel: the devices; all by default.
        stop: asked after every step whether to save and stop there; the same in every process.
        stall_timeout: seconds without progress after which the process is ended; 0 for none.

    Returns:
        The final status: 'done', or 'diverged' if the loss stopped being finite.

    Raises:
        ValueError: the configuration cannot be, the folder holds another's run, or one of a newer
            version of this package.
        StoppedError: ``stop`` said so.
        OSError: the folder cannot be read, or the end of the run cannot be written.
    """
    parallel = parallel or Parallel()
    check(config, parallel)
    run = RunFolder(folder, writes=processes.is_first())
    status = processes.from_first(run.status)
    if status["status"] in (DONE, DIVERGED):
        processes.from_first(lambda: run.check(config))
        return status

    with Watchdog(stall_timeout) as watchdog:
        data = RunData(config, parallel.share, watchdog.over)
        net = start.model(config, data.num_classes)
        source = pretrained.find(config, net)
        processes.from_first(lambda: run.claim(config))
        with contextlib.closing(run), contextlib.closing(Saving(config, run, data.tally)) as saving:
            state, error, interval = _start(config, data, net, source, run, saving, parallel)
            loop = _Run(config, data, run, saving, parallel, progress, stop, error)
            return loop.finish(state, interval)


def check(config: config_lib.TrainConfig, parallel: Parallel) -> None:
    """Raises a ValueError if the configuration cannot be, here, before anything compiles."""
    processes.check_alike({**dataclasses.asdict(config), "devices": len(parallel.devices)})
    config_lib.validate(config)
    parallel.check_batch_size(config.batch_size, config.accumulate)
    run_data.check(config)


def _start(
    config: config_lib.TrainConfig,
    data: RunData,
    net: models.RectifierNet,
    source: Finished | None,
    run: RunFolder,
    saving: Saving,
    parallel: Parallel,
) -> tuple[state_lib.TrainState, float | None, Interval]:
    """The newest checkpoint's state, test error and metrics since the last logging interval.

    Without a checkpoint, the state of step 0, None, and none.
    """
    size = net.arch.image_size
    unmeasured = augment.PixelStatistics(jnp.zeros((size, size, 3)), jnp.float32(1))
    pixels = source.pixels if source else unmeasured
    fresh = start.state(config, net, source, pixels, data.steps_per_epoch)
    if resumed := saving.resume(fresh):
        return resumed
    if not source:
        fresh = fresh.replace(pixels=data.pixel_statistics())
    if config.datadep != "none":
        batch = next(data.train_batches())
        fresh, reports = calibration.calibrate(config, fresh, batch, parallel)
        run.write_calibration([report.to_dict() for report in reports])
    run.write_init_report(start.init_report(config, net, fresh.params))
    return fresh, None, []


class _Run:
    """The loop over the steps and what it does between them."""

    def __init__(
        self,
        config: config_lib.TrainConfig,
        data: RunData,
        run: RunFolder,
        saving: Saving,
        parallel: Parallel,
        progress: Progress,
        stop: Callable[[], bool],
        error: float | None,
    ) -> None:
        self.config = config
        self.data = data
        self.run = run
        self.saving = saving
        self.parallel = parallel
        self.progress = progress
        self.stop = stop
        self.error = error  # the latest on the test split
        self.probe: signal.Probe | None = None  # made by the first measurement

    def finish(self, state: state_lib.TrainState, interval: list[dict[str, Any]]) -> dict[str, Any]:
        """Takes the remaining steps and returns the final status.

        Args:
            state: before them.
            interval: metrics of the steps since the last logging interval.
        """
        config = self.config
        state = self.parallel.replicate(state)
        first = int(state.step)
        self.run.write_status(RUNNING, first)
        if first == 0:
            state, finite = self._evaluate(state, 0)
            if not finite:
                return self._diverged(0)
        started = time.monotonic()
        batches = self.data.train_batches(first)
        for step, batch in zip(range(first + 1, config.num_steps + 1), batches, strict=True):
            if config.signal_every and step % config.signal_every == 0:
                self._log_signal(step, state, batch)
            state, metrics = self.parallel.train_step(state, batch)
            interval.append(metrics)
            last = step == config.num_steps
            if step % config.log_every and not last:
                if self.stop():
                    self._save_and_stop(state, interval)
                continue
            diverged_at = self._log(step, interval, started)
            if diverged_at is not None:
                return self._diverged(diverged_at)
            interval, started = [], time.monotonic()
            if step % config.eval_every == 0 or last:
                state, finite = self._evaluate(state, step)
                if not finite:
                    return self._diverged(step)
            if last:
                break
            if step % config.checkpoint_every == 0:
                self.saving.save(state, self.error)
            self.progress(step, self.error)
            if self.stop():
                self._save_and_stop(state, interval)
        status = self.saving.end(state, self.error)
        self.progress(config.num_steps, self.error)
        return status

    def _log(self, step: int, interval: list[dict[str, Any]], started: float) -> int | None:
        """Writes the interval's metrics, or returns the first step that is not finite."""
        losses, errors = (
            jax.device_get([metrics[name] for metrics in interval]) for name in _SCALARS
        )
        by_layer = {
            name: _flat_floats(jax.device_get(interval[-1][name]))
            for name in ("grad_rms", "param_rms", "slope_mean")
        }
        finite = [math.isfinite(loss) for loss in losses]
        # The loss is that before the step; the state after it may be saved, so its gradient counts.
        finite[-1] &= all(map(math.isfinite, by_layer["grad_rms"].values()))
        if not all(finite):
            return step - len(finite) + 1 + finite.index(False)
        record = {
            "step": step,
            "train_loss": float(np.mean(losses, dtype=np.float64)),
            "train_error": float(np.mean(errors, dtype=np.float64)),
            **by_layer,
        }
        self.run.log(record, steps_per_second=len(interval) / (time.monotonic() - started))
        return None

    def _log_signal(
        self, step: int, state: state_lib.TrainState, batch: dict[str, np.ndarray]
    ) -> None:
        """Writes what the signal is in this step, of the state before it."""
        if self.probe is None:
            self.probe, _ = signal_log.prepare(state, batch)
        measurement = self.probe.read(self.parallel.signal_statistics(state, batch))
        self.run.log({"step": step, **signal_log.record(measurement)})

    def _evaluate(
        self, state: state_lib.TrainState, step: int
    ) -> tuple[state_lib.TrainState, bool]:
        """Writes the test error and tells the plateau; False if the test loss is not finite."""
        results = evaluation.evaluate(
            lambda batch: self.parallel.eval_step(state, batch), self.data.eval_batches()
        )
        if not math.isfinite(results["test_loss"]):
            return state, False
        self.error = results["test_error"]
        state = state_lib.observe_error(state, self.error)
        rate = self.config.learning_rate * float(state.rate_scale)
        epoch = step / self.data.steps_per_epoch
        self.run.log({"step": step, "epoch": epoch, **results, "learning_rate": rate})
        return state, True

    def _save_and_stop(
        self, state: state_lib.TrainState, interval: list[dict[str, Any]]
    ) -> NoReturn:
        scalars = [{name: float(metrics[name]) for name in _SCALARS} for metrics in interval]
        refused = self.saving.stop(state, self.error, scalars)
        lost = f", which could not be saved ({refused})" if refused else ""
        raise StoppedError(f"at step {int(state.step)}{lost}")

    def _diverged(self, step: int) -> dict[str, Any]:
        """Something at this step is not finite: nothing after the last checkpoint is kept."""
        return self.run.write_status(DIVERGED, step, last_good_checkpoint=self.saving.newest())


def _flat_floats(tree: dict[str, Any]) -> dict[str, float]:
    return {path: float(v) for path, v in traverse_util.flatten_dict(tree, sep="/").items()}
