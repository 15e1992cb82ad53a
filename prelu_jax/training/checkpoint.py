"""Checkpoints of a train state: its arrays and nothing else, written whole or not at all.

Orbax writes them in the background and puts a checkpoint in its place when it is whole. A disk that
is full, read-only or gone does not end the training: `Checkpoints.save` says so, and tries again
the next time.
"""

import math
import shutil
import zlib
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
from prelu_jax import files
from prelu_jax.training.state import TrainState

FORMAT = 1  # of what a checkpoint holds; a greater one cannot be read by this version
_UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of what Orbax has not finished
_NOTES = "_CHECKPOINT_METADATA"  # Orbax's file of what `save` notes


def _alone() -> ocp.options.MultiprocessingOptions:
    """Of several processes, whoever asks works by itself and waits for no other."""
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process_{own}"
    )


def _test_error(metrics: dict[str, float]) -> float:
    return metrics["test_error"]


class Checkpoints:
    """The checkpoints of one run, oldest first, in a folder that Orbax manages.

    Args:
        folder: theirs; made by the first that is saved.
        keep_last: how many of the newest are kept.
        keep_best: how many of those of the lowest test error are kept too.
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
            multiprocessing_options=_alone(),
        )
        self._owned = owned
        self._manager = self._open()
        self._failed: str | None = None  # why the last save did

    def _open(self) -> ocp.CheckpointManager:
        if self._owned:
            for unfinished in self._folder.glob(f"*{_UNFINISHED}*"):  # of a process that was killed
                shutil.rmtree(unfinished, ignore_errors=True)
        for pattern, is_whole in (("*/metrics/metrics", _is_error), (f"*/{_NOTES}", _are_notes)):
            for file in self._folder.glob(pattern):
                _remove_damaged(file, is_whole)
        # With a handler named, Orbax does not guess from the newest folder, which may be damaged.
        return ocp.CheckpointManager(
            self._folder,
            options=self._options,
            item_handlers=ocp.StandardCheckpointHandler(multiprocessing_options=_alone()),
        )

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, or for which one is being written."""
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """The step of the checkpoint whose test error is the lowest; None if none has one."""
        found: int | None = self._manager.best_step()
        return found

    def save(
        self,
        state: TrainState,
        test_error: float | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """Begins to write the state under its step, unless it is there already.

        Waits for what is still being written. What fails is logged and not raised; `wait` tells.

        Args:
            state: to write.
            test_error: of this state, if it was measured.
            notes: JSON to keep with it; `notes` returns them.
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
                    "crc32": _checksum(arrays),
                },
            )
            self._failed = None
        except Exception as error:  # Orbax and TensorStore raise whatever the disk leads to
            self._fail(step, error)

    def wait(self) -> str | None:
        """Until nothing is being written. Returns why the last save failed, or None."""
        step = self._manager.latest_step()
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # as in `save`
            self._fail(step, error)
        return self._failed

    def _fail(self, step: int | None, error: Exception) -> None:
        self._failed = _first_line(error)
        self._manager = self._open()  # it is in no state to go on from; this removes what it left
        logging.warning(
            "The checkpoint of step %s cannot be written to %s (%s). Saved are steps %s.",
            *(step, self._folder, self._failed, self.steps() or "none"),
        )

    def restore(
        self, template: TrainState, is_usable: Callable[[int], bool] = lambda step: True
    ) -> TrainState | None:
        """Return the newest checkpoint that can be read, or None if there is none.

        One that cannot be read is reported and passed over for the one before; where that can be
        read, it is set aside, so that its step can be saved again. Nothing is deleted.

        Args:
            template: a state of the same run, for the structure and what is not an array.
            is_usable: takes a step; the newest checkpoint for which it is true is preferred to
                newer ones, which are set aside too.

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
                passed_over[step] = f"it cannot be read: {_first_line(error)}"
                continue
            newer = [other for other in newest_first if other > step]
            for other in newer if preferred[step] else passed_over:
                reason = passed_over.get(other, "its notes or the records before it are damaged")
                logging.warning(
                    "The checkpoint of step %d in %s is passed over (%s). Falling back to the "
                    "one of step %d; the other is moved to %s.",
                    *(other, self._folder, reason, step, self._set_aside(other)),
                )
            return serialization.from_state_dict(template, restored)
        if passed_over:
            raise OSError(
                f"None of the checkpoints in {self._folder} can be read: {passed_over}. If they "
                "are damaged, remove the run folder to start again."
            )
        return None

    def _read(self, step: int, template: Any) -> Any:
        notes = self.notes(step)
        restored = self._manager.restore(step, args=ocp.args.StandardRestore(template))
        _check_same(restored, notes)
        return restored

    def arrays(self) -> dict[str, Any]:
        """The newest checkpoint as nested dicts of arrays, for other states than its own.

        Raises:
            ValueError: a newer version of this package wrote it.
            OSError: there is none, or it cannot be read.
        """
        for step in reversed(self.steps()):
            written = self.notes(step)
            try:
                arrays: dict[str, Any] = self._manager.restore(
                    step, args=ocp.args.StandardRestore()
                )
                _check_same(arrays, written)
                return arrays
            except Exception as error:  # as in `save`
                raise OSError(
                    f"No checkpoint in {self._folder} can be read ({error!r})."
                ) from error
        raise OSError(f"There is no checkpoint in {self._folder}.")

    def notes(self, step: int) -> dict[str, Any]:
        """Return what `save` has noted with a checkpoint; nothing if that is damaged.

        Raises:
            ValueError: a newer version of this package noted it.
        """
        try:
            written: dict[str, Any] = self._manager.metadata(step).custom_metadata or {}
        except Exception:  # as in `save`; to restore it says more
            return {}
        if "format" not in written:  # Orbax takes whatever else is in a damaged file for notes
            return {}
        if written["format"] > FORMAT:
            raise _NewerVersionError(
                f"The checkpoint of step {step} in {self._folder} was written by prelu_jax "
                f"{written.get('prelu_jax')}, in format {written['format']}; this is prelu_jax "
                f"{prelu_jax.__version__}, which reads format {FORMAT}: install the newer version."
            )
        return written

    def newest_notes(self) -> dict[str, Any]:
        """Return the notes of the newest checkpoint that has any."""
        return next(filter(None, map(self.notes, reversed(self.steps()))), {})

    def _set_aside(self, step: int) -> Path:
        """Moves a checkpoint where no run looks for one."""
        aside = self._folder.with_name("unreadable_checkpoints")
        aside.mkdir(exist_ok=True)
        target = aside / f"{step}_{len(list(aside.iterdir()))}"
        (self._folder / str(step)).rename(target)
        self._manager.reload()
        return target

    def close(self) -> None:
        self.wait()
        self._manager.close()


class _NewerVersionError(ValueError):
    """A checkpoint that this version cannot read."""


def _is_error(content: dict[str, Any]) -> bool:
    error: Any = content.get("test_error")
    return files.is_number(error) and math.isfinite(error)


def _are_notes(content: dict[str, Any]) -> bool:
    notes = content.get("custom_metadata") or {}
    kinds = {"format": int, "crc32": int, "config": dict, "data": dict, "odd_images": dict}
    return isinstance(notes, dict) and all(
        isinstance(notes[name], kind) for name, kind in kinds.items() if name in notes
    )


def _remove_damaged(file: Path, is_whole: Callable[[dict[str, Any]], bool]) -> None:
    """Remove a small file of a checkpoint that is damaged: Orbax would read no checkpoint at all.

    The arrays of the checkpoint are in other files.
    """
    try:
        content = files.read_json(file, dict, "It is removed.")
        if is_whole(content):
            return
        logging.warning("%s is damaged (%s). It is removed.", file, str(content)[:100])
    except files.DamagedFileError as error:
        logging.warning("%s", error)
    file.unlink()


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or ["no message"])[0]
    # TensorStore tells every level it came through and how it was asked, at great length.
    return f"{type(error).__name__}: {line if len(line) < 300 else f'{line[:300]} …'}"


def _checksum(arrays: Any) -> int:
    """Of the bytes of all leaves, in the order of their paths."""
    crc = 0
    for leaf in jax.tree.leaves(arrays):
        crc = zlib.crc32(np.asarray(leaf).tobytes(), crc)
    return crc


def _check_same(arrays: Any, written: dict[str, Any]) -> None:
    """Raises a ValueError if these are not the arrays that were written.

    TensorStore has checksums of its tables, not of all values: of 150 single bits that flipped in a
    small checkpoint's files, 16 were read without a word.
    """
    if "crc32" in written and _checksum(arrays) != written["crc32"]:
        raise ValueError("its arrays are not those that were saved")
