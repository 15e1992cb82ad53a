"""Saving a run so that it goes on as if nothing had happened, and going on.

The first process alone has the run's files. What it cannot write does not end the training: the
next checkpoint may do better. Only the last step has to be saved.
"""

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

from absl import logging

from prelu_jax.data.pipeline import Tally
from prelu_jax.training import metrics, processes
from prelu_jax.training.checkpoint import Checkpoints
from prelu_jax.training.config import TrainConfig
from prelu_jax.training.run_folder import DONE, RUNNING, RunFolder
from prelu_jax.training.state import TrainState

Interval = list[dict[str, float]]  # metrics of the steps since the last logging interval

_pause = time.sleep
_PAUSES = (2, 5, 10)  # seconds before the end of a run is saved again, if the disk refuses it


class Saving:
    """The files of a run that is being trained.

    Args:
        config: the run.
        run: its folder, claimed.
        tally: what the run has met of odd images, of this process.
        data: `identity.data_facts` of what it reads.
    """

    def __init__(
        self, config: TrainConfig, run: RunFolder, tally: Tally, data: dict[str, Any]
    ) -> None:
        self._config = config
        self._data = data
        self._run = run
        self._tally = tally
        self._checkpoints: Checkpoints | None = None
        if processes.is_first():
            folder: Path = run.path / "checkpoints"
            self._checkpoints = Checkpoints(folder, config.keep_last, config.keep_best)

    def resume(self, fresh: TrainState) -> tuple[TrainState, float | None, Interval] | None:
        """Return the state, test error and interval to continue from, in every process, or None.

        They are those of the newest checkpoint whose records are all in metrics.jsonl, so that the
        run ends as if nothing had happened; if there is none, of the newest, and the loss is
        logged. Records after it are removed.

        Args:
            fresh: the state of step 0, for what is not an array.

        Raises:
            ValueError, OSError: as `Checkpoints.restore` and `RunFolder.records`.
        """
        state = fresh

        def newest() -> dict[str, Any] | None:
            nonlocal state
            records = self._run.records()
            restored = self._checkpoints and self._checkpoints.restore(
                fresh, lambda step: self._is_whole(step, records)
            )
            if not restored:
                self._run.rewind(records, -1)
                return None
            state = restored
            return self._latest(int(state.step), records)

        latest = processes.from_first(newest)
        if latest is None:
            return None
        return processes.tree_from_first(state), latest["test_error"], latest["interval"]

    def _is_whole(self, step: int, records: list[dict[str, Any]]) -> bool:
        """Return whether the run continues from a checkpoint as if it had not stopped."""
        assert self._checkpoints
        return bool(self._checkpoints.notes(step)) and not metrics.missing(
            self._config, records, step
        )

    def _latest(self, step: int, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the test error and the interval of a checkpoint; log which records are lost."""
        assert self._checkpoints
        notes = self._checkpoints.notes(step)
        last = notes.get("evaluation")
        if last and last not in records:  # else a run could end without any test error
            records = sorted([*records, last], key=lambda record: int(record["step"]))
        latest = self._run.rewind(records, step)
        for odd in (notes.get("odd_images", {}), self._run.odd_images()):
            self._tally.add(odd)
        interval = notes["interval"] if "interval" in notes else self._run.interval(step)
        lost = metrics.missing(self._config, records, step)
        if len(interval) != step % self._config.log_every and step != self._config.num_steps:
            lost.append(step)  # its interval's mean will be that of its other steps
        if lost:
            logging.warning(
                "%s lacks records of %d steps, %d to %d, and no checkpoint is old enough to take "
                "them again: they are lost. Training continues from step %d. To have them, remove "
                "the run folder and start again.",
                *(self._run.path / "metrics.jsonl", len({*lost}), min(lost), max(lost), step),
            )
        error = notes.get("test_error", latest.get("test_error"))
        return {"test_error": error, "interval": interval}

    def save(self, state: TrainState, error: float | None) -> None:
        """Begins to save a state at the end of a logging interval.

        Args:
            state: to save.
            error: the test error of the last evaluation.
        """
        self._agree_on_odd_images()
        self._begin(state, error, [])

    def stop(self, state: TrainState, error: float | None, interval: Interval) -> str | None:
        """Saves a state within a logging interval; returns why it is not saved, or None."""
        self._agree_on_odd_images()
        return self._begin(state, error, interval) or self._wait()

    def end(self, state: TrainState, error: float | None) -> dict[str, Any]:
        """Saves the last state and returns the final status, which says 'done' once it is saved.

        The last state is that of the last step, or of the first below ``config.stop_error``.

        Raises:
            OSError: it cannot be, even after some time.
        """
        self._agree_on_odd_images()
        return processes.from_first(lambda: self._end(state, error))

    def newest(self) -> int | None:
        """The step of the newest checkpoint."""
        self._wait()
        return max(self._checkpoints.steps(), default=None) if self._checkpoints else None

    def close(self) -> None:
        if self._checkpoints:
            self._checkpoints.close()

    def _begin(self, state: TrainState, error: float | None, interval: Interval) -> str | None:
        """Begins to save; returns why it cannot, if the files beside the checkpoint refuse."""
        if not self._checkpoints:
            return None
        step, odd_images = int(state.step), self._tally.keys()
        try:
            # A checkpoint without them would be of another run.
            self._run.write_odd_images(odd_images)
            self._run.flush(to_disk=True)
            self._run.write_status(RUNNING, step)
        except OSError as refused:
            logging.warning("Step %d is not saved (%s).", step, refused)
            return str(refused)
        fields = dataclasses.asdict(self._config)
        if self._config.pretrained:  # where it is, if the folder of the run alone is moved
            fields["pretrained"] = os.path.realpath(self._config.pretrained)
        notes = {
            "config": fields,
            "data": self._data,
            "odd_images": odd_images,
            "test_error": error,
            "interval": interval,
            "evaluation": self._run.last_evaluation(),
        }
        measured = step % self._config.eval_every == 0 or step == self._config.num_steps
        self._checkpoints.save(state, error if measured else None, notes)
        return None

    def _wait(self) -> str | None:
        return self._checkpoints.wait() if self._checkpoints else None

    def _end(self, state: TrainState, error: float | None) -> dict[str, Any]:
        last, counts = int(state.step), self._tally.counts()
        for pause in (*_PAUSES, None):
            refused = self._begin(state, error, []) or self._wait()
            try:
                if not refused:
                    return self._run.write_status(DONE, last, test_error=error, **counts)
            except OSError as refusal:
                refused = str(refusal)
            if pause:
                logging.warning("The end of the run is tried again in %d s.", pause)
                _pause(pause)
        raise OSError(
            f"The last step, {last}, is taken but cannot be saved in {self._run.path} ({refused}). "
            "Make room there; the same command goes on from the last checkpoint."
        )

    def _agree_on_odd_images(self) -> None:
        """Tells every process what all have met."""
        for keys in processes.gather(self._tally.keys()):
            self._tally.add(keys)
