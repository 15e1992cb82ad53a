"""Spreading a step over devices: the only file that says pmap.

The state is unmapped on both sides (``in_axes=(None, 0)``, ``out_axes=None``): it has its natural
shapes everywhere, in a checkpoint too. JAX does not check that replicas agree; a test does.
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from prelu_jax import evaluation
from prelu_jax.data.share import Share
from prelu_jax.training import signal_log, step

AXIS = "devices"
MOST_PROGRAMS = 128  # an experiment over eight conditions and nine methods has some fifty

_Function = Callable[[Any, Any], Any]


class Parallel:
    """What a run computes, over some devices; compiled when first asked for.

    With devices of several processes, each process gives its `share` of every batch.

    Attributes:
        devices: over which batches are split, in this order.
        share: what this process reads of every batch.
    """

    def __init__(self, devices: Sequence[jax.Device] | None = None) -> None:
        by_process = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        self.devices = list(devices or by_process)
        of_processes = Counter(device.process_index for device in self.devices)
        if len(set(of_processes.values())) > 1:
            raise ValueError(
                f"Processes have {dict(of_processes)} devices, expected the same number each."
            )
        place = sorted(of_processes).index(jax.process_index())
        self.share = Share(place, len(of_processes))
        self._local = [d for d in self.devices if d.process_index == jax.process_index()]
        self._train = self._pmap(functools.partial(step.train_step, axis_name=AXIS))
        self._eval = self._pmap(functools.partial(evaluation.eval_step, axis_name=AXIS))
        self._signal = self._pmap(functools.partial(signal_log.statistics, axis_name=AXIS))
        self._remembered = functools.lru_cache(MOST_PROGRAMS)(self._pmap)

    def of_this_process(self) -> "Parallel":
        """The devices of this process alone."""
        return self if self.share.count == 1 else Parallel(self._local)

    def over_batch(self, function: _Function) -> _Function:
        """``function(replicated, batch)`` over the devices, for a batch that `split` has split.

        Compiled once for functions that are equal, of the last `MOST_PROGRAMS`.
        """
        return self._remembered(function)

    def _pmap(self, function: _Function) -> _Function:
        mapped: _Function = jax.pmap(
            function, AXIS, in_axes=(None, 0), out_axes=None, devices=self.devices
        )
        return mapped

    def check_batch_size(self, batch_size: int, parts: int = 1) -> None:
        """Raises a ValueError if the devices cannot share a batch equally, in parts of a size."""
        n = len(self.devices)
        if batch_size % (n * parts):
            each = f", in {parts} parts each (config.accumulate)" if parts > 1 else ""
            raise ValueError(
                f"config.batch_size is {batch_size}, expected a multiple of the "
                f"{f'{n} devices that share' if n > 1 else 'device that takes'} it{each}."
            )

    def replicate(self, tree: Any) -> Any:
        """Puts a copy of every array on every device of this process, where the steps expect it."""
        mesh = jax.sharding.Mesh(np.array(self._local), (AXIS,))
        return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))

    def train_step(self, state: Any, batch: dict[str, np.ndarray]) -> tuple[Any, step.Metrics]:
        """`step.train_step` on the whole batch, split over the devices."""
        return self._train(state, self.split(batch))

    def eval_step(self, state: Any, batch: dict[str, np.ndarray]) -> evaluation.Sums:
        """`evaluation.eval_step` on the whole batch, split likewise."""
        return self._eval(state, self.split(batch))

    def signal_statistics(self, state: Any, batch: dict[str, np.ndarray]) -> Any:
        """`signal_log.statistics` of the whole batch, split over the devices."""
        return self._signal(state, self.split(batch))

    def split(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The share of a batch with an axis of this process's devices before all others."""
        n = len(self._local)
        return {k: v.reshape(n, v.shape[0] // n, *v.shape[1:]) for k, v in batch.items()}
