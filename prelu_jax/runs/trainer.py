"""Training of one run in its folder, from its configuration to its last step."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from prelu_jax import files
from prelu_jax.data import augment
from prelu_jax.runs import finished, identity, processes
from prelu_jax.runs.checkpoint import Checkpoints
from prelu_jax.runs.folder import DIVERGED, DONE, RunFolder
from prelu_jax.runs.loggers import Logger, check_loggers
from prelu_jax.runs.recorder import Progress, Recorder
from prelu_jax.runs.resume import resume
from prelu_jax.runs.watchdog import Watchdog
from prelu_jax.training import calibration, loop, start
from prelu_jax.training.batches import Batches
from prelu_jax.training.config import TrainConfig
from prelu_jax.training.parallel import Parallel
from prelu_jax.training.recipe import Recipe, resolve
from prelu_jax.training.state import TrainState


def train(
    config: TrainConfig,
    folder: Path,
    progress: Progress = lambda step, error: None,
    parallel: Parallel | None = None,
    stop: Callable[[], bool] = lambda: False,
    stall_timeout: float = 0,
    loggers: Sequence[Logger] = (),
) -> dict[str, Any]:
    """Train a run to its end, from its newest checkpoint if the folder holds one.

    Args:
        config: of the run.
        folder: of the run alone; made if it does not exist.
        progress: called with the step and the latest test error after every logging interval.
        parallel: the devices; all by default.
        stop: returns, after every step, whether to save and stop there; the same in every process.
        stall_timeout: seconds without progress after which the process ends; 0 for no limit.
        loggers: receivers of the metrics, beside metrics.jsonl and TensorBoard, closed at the end;
            `loggers.Logger` has an example for Weights & Biases.

    Returns:
        The final status: 'done', or 'diverged' if the loss stopped being finite.

    Raises:
        TypeError: a logger lacks a method of `loggers.Logger`.
        ValueError: the configuration is impossible, or the folder holds another run, or one of a
            newer version of this package.
        recorder.StoppedError: ``stop`` returned True.
        OSError: the folder cannot be read, or the end of the run cannot be written.
    """
    loggers = check_loggers(loggers)
    parallel = parallel or Parallel()
    path = files.local_path(folder, "The folder of the run")
    recipe = check(config, parallel)
    with contextlib.ExitStack() as stack:
        watchdog = stack.enter_context(Watchdog(stall_timeout))
        run_folder = RunFolder(path, processes.is_first(), loggers)
        stack.callback(run_folder.close)
        final_status = functools.partial(_final_status, run_folder, recipe)
        if status := processes.broadcast_from_process_0(final_status):
            return status
        batches = Batches(recipe, parallel.share, watchdog.over)
        state, recorder = _start(recipe, batches, run_folder, parallel, progress, stack)
        try:
            loop.train(recipe, state, batches, parallel, recorder, stop)
        except loop.DivergedError as diverged:
            recorder.diverge(diverged.step)
        return recorder.status


def check(config: TrainConfig, parallel: Parallel) -> Recipe:
    """Look up the names of a configuration; compile nothing.

    Raises:
        ValueError: the configuration is impossible on these devices.
    """
    facts = {**dataclasses.asdict(config), "devices": len(parallel.devices)}
    processes.assert_same_across_processes(facts)
    recipe = resolve(config)
    parallel.check_batch_size(config.batch_size, config.accumulate)
    return recipe


def _final_status(folder: RunFolder, recipe: Recipe) -> dict[str, Any] | None:
    """Return the status of a run that has ended; None for one that has to be trained.

    Raises:
        ValueError: the folder holds another run, or a damaged one that cannot be repaired.
    """
    if folder.status()["status"] not in (DONE, DIVERGED):
        return None
    # Before the records are judged: another configuration has them at other steps.
    folder.check(recipe.config, identity.data_facts(recipe.train, recipe.test))
    return folder.final_status(recipe.config)


def _start(
    recipe: Recipe,
    batches: Batches,
    folder: RunFolder,
    parallel: Parallel,
    progress: Progress,
    stack: contextlib.ExitStack,
) -> tuple[TrainState, Recorder]:
    """Return the state of the newest checkpoint, or that of step 0, and the open files."""
    config = recipe.config
    source = finished.pretrained(recipe)
    facts = identity.data_facts(recipe.train, recipe.test)
    processes.broadcast_from_process_0(lambda: folder.claim(config, facts))
    checkpoints = None
    if processes.is_first():
        checkpoints = Checkpoints(folder.path / "checkpoints", config.keep_last, config.keep_best)
        stack.callback(checkpoints.close)
    recorder = Recorder(recipe, folder, checkpoints, batches.issues, progress)
    initial = _initial_state(recipe, source)
    resumed = resume(config, folder, checkpoints, batches.issues, initial)
    # Reports that were lost are written again from the same initial state.
    if resumed is None or processes.broadcast_from_process_0(
        lambda: bool(folder.damaged_reports(config))
    ):
        if not source:
            initial = initial.replace(pixels=batches.pixel_statistics())
        initial = _calibrated(recipe, initial, batches, folder, parallel)
        folder.write_init_report(start.init_report(recipe, initial.params))
    if resumed is None:
        return initial, recorder
    recorder.test_error, recorder.interval = resumed.test_error, resumed.interval
    return resumed.state, recorder


def _initial_state(recipe: Recipe, source: finished.Finished | None) -> TrainState:
    """Return the state at step 0, with placeholders for pixel statistics without a source."""
    if source is None:
        size = recipe.crop.size
        mean = jnp.zeros((size, size, 3), jnp.float32)
        return start.initial_state(recipe, augment.PixelStatistics(mean, jnp.float32(1)))
    state = start.initial_state(recipe, source.pixels)
    merged = finished.merge_pretrained(state.params, source, recipe.config.reinit)
    return state.replace(params=merged)


def _calibrated(
    recipe: Recipe, state: TrainState, batches: Batches, folder: RunFolder, parallel: Parallel
) -> TrainState:
    """Return the state calibrated on the first batch, and write calibration.json."""
    if recipe.config.datadep == "none":
        return state
    state, reports = calibration.calibrate(recipe, state, next(batches.train()), parallel)
    folder.write_calibration([report.to_dict() for report in reports])
    return state
