"""Continuation of a run from its newest usable checkpoint."""

from typing import Any, NamedTuple

from absl import logging

from prelu_jax.data.pipeline import ImageIssues
from prelu_jax.runs import metrics, processes
from prelu_jax.runs.checkpoint import Checkpoints
from prelu_jax.runs.folder import RunFolder
from prelu_jax.runs.metrics import Record
from prelu_jax.training.config import TrainConfig
from prelu_jax.training.state import TrainState

Interval = list[dict[str, float]]  # metrics of the steps since the last logging interval


class Resumed(NamedTuple):
    """The point from which a run continues.

    Attributes:
        state: of the checkpoint.
        test_error: of the latest evaluation before it.
        interval: metrics of the steps since the last logging interval.
    """

    state: TrainState
    test_error: float | None
    interval: Interval


def resume(
    config: TrainConfig,
    folder: RunFolder,
    checkpoints: Checkpoints | None,
    issues: ImageIssues,
    initial: TrainState,
) -> Resumed | None:
    """Return the point from which to continue, the same in every process; None for a new run.

    It is the newest checkpoint whose records are all in metrics.jsonl, so that the run ends as if
    it had not been interrupted; if there is none, it is the newest checkpoint, and the lost records
    are logged. Records after it are removed.

    Args:
        config: of the run.
        folder: its folder, claimed.
        checkpoints: its checkpoints; None in all processes but the first.
        issues: gets the bad images that were read before the checkpoint.
        initial: the state at step 0, for all that is not an array.

    Raises:
        ValueError, OSError: as `Checkpoints.restore` and `MetricsLog.records`.
    """
    state = initial

    def restore() -> dict[str, Any] | None:
        nonlocal state
        records = folder.metrics.records()
        restored = checkpoints and checkpoints.restore(
            initial, lambda step: _is_whole(config, checkpoints, step, records)
        )
        if not (checkpoints and restored):
            folder.metrics.rewind(records, -1)
            return None
        state = restored
        return _latest(config, folder, checkpoints, issues, int(state.step), records)

    latest = processes.broadcast_from_process_0(restore)
    if latest is None:
        return None
    state = processes.broadcast_arrays_from_process_0(state)
    return Resumed(state, latest["test_error"], latest["interval"])


def _is_whole(
    config: TrainConfig, checkpoints: Checkpoints, step: int, records: list[Record]
) -> bool:
    """Return whether a checkpoint's notes and all records before it can be read."""
    return bool(checkpoints.notes(step)) and not metrics.missing(config, records, step)


def _latest(
    config: TrainConfig,
    folder: RunFolder,
    checkpoints: Checkpoints,
    issues: ImageIssues,
    step: int,
    records: list[Record],
) -> dict[str, Any]:
    """Return the test error and the interval of a checkpoint; log which records are lost."""
    notes = checkpoints.notes(step)
    last = notes.get("evaluation")
    if last and last not in records:  # else a run could end without any test error
        records = sorted([*records, last], key=lambda record: int(record["step"]))
    latest = folder.metrics.rewind(records, step)
    for bad_images in (notes.get("odd_images", {}), folder.odd_images()):
        issues.add(bad_images)
    interval = notes["interval"] if "interval" in notes else folder.interval(step)
    lost = metrics.missing(config, records, step)
    if len(interval) != step % config.log_every and step != config.num_steps:
        lost.append(step)  # the mean of its interval lacks some steps
    if lost:
        logging.warning(
            "%s lacks records of %d steps, %d to %d, and no checkpoint is old enough to repeat "
            "them: they are lost. Training continues from step %d. To have them, remove the run "
            "folder and start again.",
            *(folder.metrics.file, len({*lost}), min(lost), max(lost), step),
        )
    return {"test_error": notes.get("test_error", latest.get("test_error")), "interval": interval}
