"""Checkpoints of a train state: its arrays and nothing else, written whole or not at all."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax import serialization

from prelu_jax.training.state import TrainState

_KEEP = 2  # if the newest turns out to be cut short, the one before is still there


def _alone() -> ocp.options.MultiprocessingOptions:
    """Of several processes, whoever asks works by itself and waits for no other."""
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process_{own}"
    )


class Checkpoints:
    """The checkpoints of one run, oldest first, in a folder that Orbax manages."""

    def __init__(self, folder: Path) -> None:
        # The few files of one process need no thread: a save is whole when `save` returns.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=_KEEP,
            create=False,
            enable_async_checkpointing=False,
            multiprocessing_options=_alone(),
        )
        self._folder = folder.absolute()
        self._folder.mkdir(parents=True, exist_ok=True)
        # With a handler named, Orbax does not guess from the newest folder, which may be damaged.
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=options,
            item_handlers=ocp.StandardCheckpointHandler(multiprocessing_options=_alone()),
        )

    def steps(self) -> list[int]:
        """The steps that have a checkpoint."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState) -> None:
        """Writes the state under its step, unless it is there already."""
        step = int(state.step)
        if step not in self.steps():
            arrays = jax.device_get(serialization.to_state_dict(state))
            self._manager.save(step, args=ocp.args.StandardSave(arrays))

    def restore(self, template: TrainState) -> TrainState | None:
        """The newest checkpoint that can be read, or None if there is none.

        One that cannot be read is reported and passed over for the one before; where that can be
        read, it is set aside, so that its step can be saved anew. Nothing is deleted.

        Args:
            template: a state of the same run, for the structure and what is not an array.

        Raises:
            OSError: there are checkpoints, and none can be read as a state like the template.
        """
        arrays = jax.tree.map(np.zeros_like, jax.device_get(serialization.to_state_dict(template)))
        unreadable: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                restored = self._manager.restore(step, args=ocp.args.StandardRestore(arrays))
            except Exception as error:  # Orbax and TensorStore raise whatever the damage leads to
                reason = (str(error).strip().splitlines() or ["no message"])[0]
                unreadable[step] = f"{type(error).__name__}: {reason}"
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
            OSError: there is none, or it cannot be read.
        """
        try:
            return self._manager.restore(self.steps()[-1], args=ocp.args.StandardRestore())
        except Exception as error:  # as in `restore`
            raise OSError(f"No checkpoint in {self._folder} can be read ({error!r}).") from error

    def _set_aside(self, step: int) -> Path:
        """Moves a checkpoint where no run looks for one."""
        aside = self._folder.with_name("unreadable_checkpoints")
        aside.mkdir(exist_ok=True)
        target = aside / f"{step}_{len(list(aside.iterdir()))}"
        (self._folder / str(step)).rename(target)
        self._manager.reload()
        return target

    def close(self) -> None:
        self._manager.close()
