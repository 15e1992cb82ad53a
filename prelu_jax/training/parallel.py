"""Steps spread over devices: the only file that uses pmap.

The state is unmapped on both sides (``in_axes=(None, 0)``, ``out_axes=None``): it has its natural
shapes everywhere, in a checkpoint too. JAX does not check that replicas agree; a test does.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
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
    """The steps of a run over some devices, compiled at their first call.

    Each step takes the state and a batch that `split` has split. With devices of several
    processes, each process gives its `share` of every batch.

    Attributes:
        devices: over which batches are split, in this order.
        share: the part of every batch that this process reads.
        train_step: `step.train_step` over the devices.
        eval_step: `evaluation.eval_step` over the devices.
        signal_statistics: `signal_log.statistics` over the devices.
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
        self.train_step = self._pmap(functools.partial(step.train_step, axis_name=AXIS))
        self.eval_step = self._pmap(functools.partial(evaluation.eval_step, axis_name=AXIS))
        self.signal_statistics = self._pmap(
            functools.partial(signal_log.statistics, axis_name=AXIS)
        )
        self._remembered = functools.lru_cache(MOST_PROGRAMS)(self._pmap)

    def of_this_process(self) -> "Parallel":
        """Return the steps over the devices of this process alone."""
        return self if self.share.count == 1 else Parallel(self._local)

    def over_batch(self, function: _Function) -> _Function:
        """Return ``function(replicated, batch)`` over the devices, for a batch from `split`.

        Equal functions compile once, among the last `MOST_PROGRAMS`.
        """
        return self._remembered(function)

    def _pmap(self, function: _Function) -> _Function:
        mapped: _Function = jax.pmap(
            function, AXIS, in_axes=(None, 0), out_axes=None, devices=self.devices
        )
        return mapped

    def check_batch_size(self, batch_size: int, parts: int = 1) -> None:
        """Raise a ValueError unless the devices can share a batch in parts of equal size."""
        n = len(self.devices)
        if batch_size % (n * parts):
            each = f", in {parts} parts each (config.accumulate)" if parts > 1 else ""
            raise ValueError(
                f"config.batch_size is {batch_size}, expected a multiple of the "
                f"{f'{n} devices that share' if n > 1 else 'device that takes'} it{each}."
            )

    def replicate(self, tree: Any) -> Any:
        """Copy every array to every device of this process, where the steps expect it."""
        mesh = jax.sharding.Mesh(np.array(self._local), (AXIS,))
        return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))

    def evaluate(self, state: Any, batches: Iterable[dict[str, Any]]) -> dict[str, float]:
        """Return `evaluation.evaluate` of a state over the devices."""
        return evaluation.evaluate(lambda b: self.eval_step(state, self.split(b)), batches)

    def split(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Reshape a batch to ``[devices, …]``, the devices of this process."""
        n = len(self._local)
        return {k: v.reshape(n, v.shape[0] // n, *v.shape[1:]) for k, v in batch.items()}
