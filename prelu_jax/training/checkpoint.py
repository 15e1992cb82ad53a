"""Checkpoints of a train state: its arrays and nothing else, written whole or not at all.

Orbax writes them in the background and puts a checkpoint in its place when it is whole. A disk that
is full, read-only or gone does not end the training: `Checkpoints.save` says so, and tries again
the next time.
"""

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax import serialization
from orbax.checkpoint import checkpoint_managers as orbax_policies

import prelu_jax
from prelu_jax.training.state import TrainState

FORMAT = 1  # of what a checkpoint holds; a greater one cannot be read by this version
_UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of what Orbax has not finished


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
    """

    def __init__(self, folder: Path, keep_last: int = 2, keep_best: int = 0) -> None:
        self._folder = folder.absolute()
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
        self._manager = self._open()
        self._failed: str | None = None  # why the last save did

    def _open(self) -> ocp.CheckpointManager:
        for unfinished in self._folder.glob(f"*{_UNFINISHED}*"):  # of a process that was killed
            shutil.rmtree(unfinished, ignore_errors=True)
        for file in self._folder.glob("*/metrics/metrics"):
            try:
                json.loads(file.read_text())
            except ValueError:  # cut short; Orbax would read no other checkpoint either
                file.unlink()
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

    def save(self, state: TrainState, test_error: float | None = None) -> None:
        """Begins to write the state under its step, unless it is there already.

        Waits for what is still being written. What fails is logged and not raised; `wait` tells.

        Args:
            state: to write.
            test_error: of this state, if it was measured.
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

    def restore(self, template: TrainState) -> TrainState | None:
        """The newest checkpoint that can be read, or None if there is none.

        One that cannot be read is reported and passed over for the one before; where that can be
        read, it is set aside, so that its step can be saved anew. Nothing is deleted.

        Args:
            template: a state of the same run, for the structure and what is not an array.

        Raises:
            ValueError: a newer version of this package wrote the newest.
            OSError: there are checkpoints, and none can be read as a state like the template.
        """
        arrays = jax.tree.map(np.zeros_like, jax.device_get(serialization.to_state_dict(template)))
        unreadable: dict[int, str] = {}
        for step in reversed(self.steps()):
            written = self._written_by(step)
            try:
                restored = self._manager.restore(step, args=ocp.args.StandardRestore(arrays))
                _check_same(restored, written)
            except Exception as error:  # as in `save`
                unreadable[step] = _first_line(error)
            else:
                for damaged, reason in unreadable.items():
                    logging.warning(
                        "The checkpoint of step %d in %s cannot be read (%s). Falling back to the "
                        "one before, of step %d; the damaged one is moved to %s.",
                        *(damaged, self._folder, reason, step, self._set_aside(damaged)),
                    )
                return serialization.from_state_dict(template, restored)
        if unreadable:
            raise OSError(
                f"None of the checkpoints in {self._folder} can be read: {unreadable}. If they are "
                "damaged, remove the run folder to start again."
            )
        return None

    def arrays(self) -> dict[str, Any]:
        """The newest checkpoint as nested dicts of arrays, for other states than its own.

        Raises:
            ValueError: a newer version of this package wrote it.
            OSError: there is none, or it cannot be read.
        """
        for step in reversed(self.steps()):
            written = self._written_by(step)
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

    def _written_by(self, step: int) -> dict[str, Any]:
        """What `save` has noted; nothing if it cannot be read.

        Raises:
            ValueError: a newer version of this package noted it.
        """
        try:
            written: dict[str, Any] = self._manager.metadata(step).custom_metadata or {}
        except Exception:  # as in `save`; to restore it says more
            return {}
        if written.get("format", FORMAT) > FORMAT:
            raise ValueError(
                f"The checkpoint of step {step} in {self._folder} was written by prelu_jax "
                f"{written.get('prelu_jax')}, in format {written['format']}; this is prelu_jax "
                f"{prelu_jax.__version__}, which reads format {FORMAT}: install the newer version."
            )
        return written

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
