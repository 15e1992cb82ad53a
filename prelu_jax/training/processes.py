"""Several processes that are one run: how they join, agree and tell each other what one knows.

Only the first reads and writes the run's folder. What it finds there, errors too, it tells the
others, so that all go the same way. With one process nothing is sent.
"""

import contextlib
import hashlib
import itertools
import json
import re
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

import prelu_jax
from prelu_jax import entry
from prelu_jax.training import rendezvous

T = TypeVar("T")

# A process that has died ends the others after so long.
HEARTBEAT_TIMEOUT = 30  # seconds
# Processes wait so long for each other where the platform says how they find each other.
_JOIN_TIMEOUT = 300  # seconds
# The others wait for the first, which draws and writes what came of the runs.
_SHUTDOWN_TIMEOUT = 3600  # seconds
# The errors that the first process shares, special ones first: a launcher restarts after some.
_TOLD: dict[str, type[ValueError | OSError]] = {
    error.__name__: error
    for error in (
        *(FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError),
        *(ValueError, OSError),
    )
}


def join(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins the other processes; before anything asks JAX for its devices.

    Args:
        coordinator_address: of the first process, 'host:port'; None where the platform says how (a
            TPU pod, SLURM).
        num_processes: how many there are.
        process_id: which this one is, from 0 on.

    Raises:
        ValueError, OSError: as `rendezvous.meet`.
    """
    if coordinator_address and num_processes is not None and process_id is not None:
        rendezvous.meet(coordinator_address, num_processes, process_id)
    # On CPUs; others have their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator_address,
        num_processes,
        process_id,
        initialization_timeout=_JOIN_TIMEOUT,
        heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
        shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT,
    )


def are_several() -> bool:
    """Whether this process has joined others; JAX may not yet have looked for its devices."""
    return jax.distributed.is_initialized()


def is_first() -> bool:
    """Whether this process is the one that reads and writes."""
    return not are_several() or jax.process_index() == 0


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """Ends this process at once if it fails within, so that it takes the others with it.

    An exit in order would wait for the others, and they for this one's part of a sum.
    """
    try:
        yield
    except BaseException as error:
        if not are_several() or (isinstance(error, SystemExit) and not error.code):
            raise
        if isinstance(error, SystemExit):
            entry.end_now(entry.status_of(error))
        entry.complain(traceback.format_exc())
        entry.end_now(entry.CRASHED)


def is_of_lost_process(error: Exception) -> bool:
    """Whether an error says that another process of the run is gone.

    JAX raises some of these as ValueErrors, as if something were wrong with what it was given.
    They begin with the name of a status: 'UNKNOWN: Gloo AllGather failed', 'INTERNAL: NCCL …'.
    """
    return are_several() and bool(re.match(r"[A-Z_]+: ", str(error)))


@contextlib.contextmanager
def preemption() -> Iterator[Callable[[], bool]]:
    """Whether the scheduler has asked this run to end, by SIGTERM to any of its processes.

    Yields:
        A function to be asked after every step of every run: it answers the same in every process.
    """
    steps = itertools.count()
    told: list[int] = []

    def asked() -> bool:
        return bool(told) or multihost_utils.reached_preemption_sync_point(next(steps))

    if are_several():  # JAX listens, and agrees with the others on a step
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def gather(content: Any) -> list[Any]:
    """What every process gives, in the order of the processes; as JSON has it."""
    if not are_several():
        return [content]
    given = np.frombuffer(json.dumps(content).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(given.size))
    padded = np.pad(given, (0, int(sizes.max()) - given.size))
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, as JSON has it, for all of them.

    Raises:
        ValueError, OSError: the first process raised it; all of them do then.
    """
    if not are_several():
        return make()
    told: dict[str, Any] = {}
    if is_first():
        try:
            told = {"made": make()}
        except (ValueError, OSError) as error:
            kind = next(name for name, of in _TOLD.items() if isinstance(error, of))
            told = {"error": str(error), "kind": kind}
    first, *_ = gather(told)
    if "error" in first:
        raise _TOLD[first["kind"]](first["error"])
    made: T = first["made"]
    return made


def tree_from_first(tree: Any) -> Any:
    """The first process's arrays, for all of them; each gives a tree of the same shapes."""
    return multihost_utils.broadcast_one_to_all(tree) if are_several() else tree


def check_alike(facts: Mapping[str, Any]) -> None:
    """Raises a ValueError if processes differ in these facts or in their code; it names them.

    Args:
        facts: what has to be the same, as JSON has it.
    """
    first, *others = gather({**facts, "code": _code(), "jax": jax.__version__})
    differing = [
        f"{name} is {first.get(name)!r} in process 0, {other.get(name)!r} in process {i}"
        for i, other in enumerate(others, start=1)
        for name in sorted({*first, *other})
        if first.get(name) != other.get(name)
    ]
    if differing:
        raise ValueError(f"Processes of one run differ: {'; '.join(differing)}.")


def _code() -> str:
    """A hash of this package's files."""
    digest = hashlib.sha256()
    root = Path(prelu_jax.__file__).parent
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:12]
