"""Checkpoints of a train state: its arrays and notes, written completely or not at all.

Orbax writes them in the background and moves a checkpoint to its place when it is complete. A disk
that is full, read-only or missing does not end the training: a warning is logged, and the next
checkpoint is tried.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax import serialization
from orbax.checkpoint import checkpoint_managers as orbax_policies

import prelu_jax
from prelu_jax.runs import integrity
from prelu_jax.runs.integrity import first_line
from prelu_jax.training.state import TrainState

FORMAT = 1  # of a checkpoint's content; this version reads no higher one
_UNFINISHED = ".orbax-checkpoint-tmp"  # in the names of checkpoints that Orbax has not finished


def _single_process() -> ocp.options.MultiprocessingOptions:
    """Return options with which this process waits for no other."""
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process_{own}"
    )


def _test_error(metrics: dict[str, float]) -> float:
    return metrics["test_error"]


class Checkpoints:
    """The checkpoints of one run, oldest first, in a folder that Orbax manages.

    Args:
        folder: of the checkpoints; the first `save` makes it.
        keep_last: number of newest checkpoints to keep.
        keep_best: number of checkpoints of the lowest test error to keep too.
        owned: this process trains the run; else another may be writing a checkpoint.
    """

    def __init__(
        self, folder: Path, keep_last: int = 2, keep_best: int = 0, owned: bool = True
    ) -> None:
        self._folder = folder.absolute()
        if self._folder.exists() and not self._folder.is_dir():
            raise ValueError(f"{folder} is a file, expected a folder of checkpoints. Move it away.")
        kept = [
            orbax_policies.LatestN(keep_last),
            orbax_policies.BestN(
                get_metric_fn=_test_error,
                reverse=True,  # the lowest last
                n=keep_best,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        self._options = ocp.CheckpointManagerOptions(
            best_fn=_test_error,
            best_mode="min",
            preservation_policy=orbax_policies.AnyPreservationPolicy(kept),
            create=False,
            # Else the threads that wait for a folder that cannot be made do so for five minutes.
            async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
            multiprocessing_options=_single_process(),
        )
        self._owned = owned
        self._manager = self._open()
        self._failed: str | None = None  # why the last save did

    def _open(self) -> ocp.CheckpointManager:
        if self._owned:
            for unfinished in self._folder.glob(f"*{_UNFINISHED}*"):  # of a process that was killed
                shutil.rmtree(unfinished, ignore_errors=True)
        integrity.remove_damaged_files(self._folder)
        # With a handler named, Orbax does not guess from the newest folder, which may be damaged.
        return ocp.CheckpointManager(
            self._folder,
            options=self._options,
            item_handlers=ocp.StandardCheckpointHandler(multiprocessing_options=_single_process()),
        )

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints, also of one that is being written."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        state: TrainState,
        test_error: float | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin to write the state, unless its step has a checkpoint.

        It waits for a checkpoint that is still being written. A failure is logged and not raised;
        `wait` returns it.

        Args:
            state: to write.
            test_error: of this state, if it was measured.
            notes: JSON to keep with it, for `notes`.
        """
        self.wait()
        step = int(state.step)
        if step in self.steps():
            return
        arrays = jax.device_get(serialization.to_state_dict(state))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._manager.save(
                step,
                args=ocp.args.StandardSave(arrays),
                metrics=None if test_error is None else {"test_error": test_error},
                custom_metadata={
                    **(notes or {}),
                    "format": FORMAT,
                    "prelu_jax": prelu_jax.__version__,
                    "crc32": integrity.checksum(arrays),
                },
            )
            self._failed = None
        except Exception as error:  # Orbax and TensorStore raise errors of many kinds
            self._fail(step, error)

    def wait(self) -> str | None:
        """Wait for pending writes; return the error of the last save, or None."""
        step = self._manager.latest_step()
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # as in `save`
            self._fail(step, error)
        return self._failed

    def _fail(self, step: int | None, error: Exception) -> None:
        self._failed = first_line(error)
        self._manager = self._open()  # the old one cannot continue; this removes its leftovers
        logging.warning(
            "The checkpoint of step %s cannot be written to %s (%s). Saved are steps %s.",
            *(step, self._folder, self._failed, self.steps() or "none"),
        )

    def restore(
        self, template: TrainState, is_usable: Callable[[int], bool] = lambda step: True
    ) -> TrainState | None:
        """Return the newest checkpoint that can be read, or None if there is none.

        A checkpoint that cannot be read is logged, and the one before it is tried. If that can be
        read, the damaged one is moved aside, so that its step can be saved again. Nothing is
        deleted.

        Args:
            template: a state of the same run, for the structure and all that is not an array.
            is_usable: takes a step; the newest checkpoint for which it returns True is preferred
                to newer ones, which are moved aside too.

        Raises:
            ValueError: a newer version of this package wrote the newest.
            OSError: there are checkpoints, and none can be read as a state like the template.
        """
        arrays = jax.tree.map(np.zeros_like, jax.device_get(serialization.to_state_dict(template)))
        passed_over: dict[int, str] = {}
        newest_first = list(reversed(self.steps()))
        preferred = {step: is_usable(step) for step in newest_first}
        for step in sorted(newest_first, key=lambda step: not preferred[step]):
            try:
                restored = self._read(step, arrays)
            except _NewerVersionError:
                raise
            except Exception as error:  # as in `save`
                passed_over[step] = f"it cannot be read: {first_line(error)}"
                continue
            newer = [other for other in newest_first if other > step]
            for other in newer if preferred[step] else passed_over:
                reason = passed_over.get(other, "its notes or the records before it are damaged")
                logging.warning(
                    "The checkpoint of step %d in %s is passed over (%s). Falling back to the "
                    "one of step %d; the other is moved to %s.",
                    *(other, self._folder, reason, step, self._set_aside(other)),
                )
            state: TrainState = serialization.from_state_dict(template, restored)
            return state
        if passed_over:
            raise OSError(
                f"None of the checkpoints in {self._folder} can be read: {passed_over}. If they "
                "are damaged, remove the run folder to start again."
            )
        return None

    def _read(self, step: int, template: Any) -> Any:
        notes = self.notes(step)
        restored = self._manager.restore(step, args=ocp.args.StandardRestore(template))
        integrity.check_arrays(restored, notes)
        return restored

    def arrays(self) -> dict[str, Any]:
        """Return the newest checkpoint as nested dicts of arrays, for a state of another kind.

        Raises:
            ValueError: a newer version of this package wrote it.
            OSError: there is none, or it cannot be read.
        """
        if not self.steps():
            raise OSError(f"There is no checkpoint in {self._folder}.")
        step = self.steps()[-1]
        notes = self.notes(step)
        try:
            arrays: dict[str, Any] = self._manager.restore(step, args=ocp.args.StandardRestore())
            integrity.check_arrays(arrays, notes)
        except Exception as error:  # as in `save`
            raise OSError(
                f"The checkpoint of step {step} in {self._folder} cannot be read ({error!r})."
            ) from error
        return arrays

    def notes(self, step: int) -> dict[str, Any]:
        """Return the notes of a checkpoint; an empty dict if they are damaged.

        Raises:
            ValueError: a newer version of this package wrote them.
        """
        try:
            notes: dict[str, Any] = self._manager.metadata(step).custom_metadata or {}
        except Exception:  # as in `save`; `restore` gives the reason
            return {}
        if "format" not in notes:  # Orbax returns any other content of a damaged file
            return {}
        if notes["format"] > FORMAT:
            raise _NewerVersionError(
                f"The checkpoint of step {step} in {self._folder} was written by prelu_jax "
                f"{notes.get('prelu_jax')}, in format {notes['format']}; this is prelu_jax "
                f"{prelu_jax.__version__}, which reads format {FORMAT}: install the newer version."
            )
        return notes

    def newest_notes(self) -> dict[str, Any]:
        """Return the notes of the newest checkpoint that has any."""
        return next(filter(None, map(self.notes, reversed(self.steps()))), {})

    def _set_aside(self, step: int) -> Path:
        """Move a checkpoint out of the folder and return its new path."""
        aside = self._folder.with_name("unreadable_checkpoints")
        aside.mkdir(exist_ok=True)
        target = aside / f"{step}_{len(list(aside.iterdir()))}"
        (self._folder / str(step)).rename(target)
        self._manager.reload()
        return target

    def close(self) -> None:
        """Wait for pending writes and close the manager."""
        self.wait()
        self._manager.close()


class _NewerVersionError(ValueError):
    """A checkpoint that this version cannot read."""
