"""A run from its configuration to its last step."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from prelu_jax import files
from prelu_jax.data import augment
from prelu_jax.training import (
    calibration,
    identity,
    pretrained,
    processes,
    run_data,
    start,
)
from prelu_jax.training import config as config_lib
from prelu_jax.training import state as state_lib
from prelu_jax.training.config import TrainConfig
from prelu_jax.training.parallel import Parallel
from prelu_jax.training.run_data import RunData
from prelu_jax.training.run_folder import DIVERGED, DONE, RunFolder
from prelu_jax.training.saving import Saving
from prelu_jax.training.steps import Progress, Run, Steps
from prelu_jax.training.watchdog import Watchdog


def train(
    config: TrainConfig,
    folder: Path,
    progress: Progress = lambda step, error: None,
    parallel: Parallel | None = None,
    stop: Callable[[], bool] = lambda: False,
    stall_timeout: float = 0,
) -> dict[str, Any]:
    """Trains a run to its end, from its newest checkpoint if the folder holds one.

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
        steps.StoppedError: ``stop`` said so.
        OSError: the folder cannot be read, or the end of the run cannot be written.
    """
    parallel = parallel or Parallel()
    path = files.local_path(folder, "The folder of the run")
    check(config, parallel)
    with contextlib.ExitStack() as opened:
        watchdog = opened.enter_context(Watchdog(stall_timeout))
        run_folder = RunFolder(path, writes=processes.is_first())
        if status := processes.from_first(functools.partial(_ended, run_folder, config)):
            return status
        data = RunData(config, parallel.share, watchdog.over)
        run, state = _start(config, data, run_folder, parallel, opened)
        Steps(run, state, parallel, progress, stop).finish()
        return run.status


def check(config: TrainConfig, parallel: Parallel) -> None:
    """Raises a ValueError if the configuration cannot be, here, before anything compiles."""
    processes.check_alike({**dataclasses.asdict(config), "devices": len(parallel.devices)})
    config_lib.validate(config)
    parallel.check_batch_size(config.batch_size, config.accumulate)
    run_data.check(config)


def _ended(folder: RunFolder, config: TrainConfig) -> dict[str, Any] | None:
    """Return the final status of a run that has ended; None for one that is to be trained.

    Raises:
        ValueError: the folder holds another run, or a damaged one that cannot be repaired.
    """
    if folder.status()["status"] not in (DONE, DIVERGED):
        return None
    # Before the records are judged: another configuration has them at other steps.
    folder.check(config, identity.data_facts(*run_data.splits(config)))
    return folder.final_status(config)


def _start(
    config: TrainConfig,
    data: RunData,
    folder: RunFolder,
    parallel: Parallel,
    opened: contextlib.ExitStack,
) -> tuple[Run, state_lib.TrainState]:
    """A run and the state of its newest checkpoint, or that of step 0; its files are ``opened``."""
    net = start.model(config, data.num_classes)
    source = pretrained.find(config, net)
    processes.from_first(lambda: folder.claim(config, data.facts))
    opened.callback(folder.close)
    saving = opened.enter_context(
        contextlib.closing(Saving(config, folder, data.tally, data.facts))
    )
    size = net.arch.image_size
    unmeasured = augment.PixelStatistics(jnp.zeros((size, size, 3), jnp.float32), jnp.float32(1))
    pixels = source.pixels if source else unmeasured
    fresh = start.state(config, net, source, pixels, data.steps_per_epoch)
    resumed = saving.resume(fresh)
    # Reports that are lost since are made again from the same start.
    if resumed is None or processes.from_first(lambda: bool(folder.damaged_reports(config))):
        if not source:
            fresh = fresh.replace(pixels=data.pixel_statistics())
        if config.datadep != "none":
            batch = next(data.train_batches())
            fresh, reports = calibration.calibrate(config, fresh, batch, parallel)
            folder.write_calibration([report.to_dict() for report in reports])
        folder.write_init_report(start.init_report(config, net, fresh.params))
    if resumed:
        state, error, interval = resumed
        return Run(config, data, folder, saving, error, interval), state
    return Run(config, data, folder, saving), fresh
