"""Communication between the processes of one run.

Only process 0 reads and writes the run's folder. It broadcasts the content and the errors, so that
all processes do the same. With one process nothing is sent.
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
from prelu_jax.runs import rendezvous

T = TypeVar("T")

HEARTBEAT_TIMEOUT = 30  # seconds after which the death of a process ends the others
_JOIN_TIMEOUT = 300  # seconds to find each other where the platform gives the address
_SHUTDOWN_TIMEOUT = 3600  # seconds for process 0 to write the report of the runs
# Errors that process 0 shares, subclasses first: a launcher restarts after some of them.
_SHARED_ERRORS: dict[str, type[ValueError | OSError]] = {
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
    """Join the other processes. Call it before anything asks JAX for its devices.

    Args:
        coordinator_address: of process 0, 'host:port'; None where the platform gives it (a TPU
            pod, SLURM).
        num_processes: the number of processes.
        process_id: the number of this one, from 0 on.

    Raises:
        ValueError, OSError: as `rendezvous.meet`.
    """
    if coordinator_address and num_processes is not None and process_id is not None:
        rendezvous.meet(coordinator_address, num_processes, process_id)
    # Collectives between CPU devices; other backends have their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator_address,
        num_processes,
        process_id,
        initialization_timeout=_JOIN_TIMEOUT,
        heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
        shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT,
    )


def is_multiprocess() -> bool:
    """Return whether this process has joined others, without asking JAX for its devices."""
    return jax.distributed.is_initialized()


def is_first() -> bool:
    """Return whether this process is process 0, which reads and writes."""
    return not is_multiprocess() or jax.process_index() == 0


@contextlib.contextmanager
def exit_all_on_failure() -> Iterator[None]:
    """Exit at once if the block raises an exception, so that the other processes end too.

    A regular exit would wait for the others, and they for this one's part of a sum.
    """
    try:
        yield
    except BaseException as error:
        if not is_multiprocess() or (isinstance(error, SystemExit) and not error.code):
            raise
        if isinstance(error, SystemExit):
            entry.end_now(entry.status_of(error))
        entry.complain(traceback.format_exc())
        entry.end_now(entry.Status.CRASHED)


def is_of_lost_process(error: Exception) -> bool:
    """Return whether an error means that another process of the run is gone.

    JAX raises some of these as ValueErrors, like errors in arguments. They begin with the name of
    a status: 'UNKNOWN: Gloo AllGather failed', 'INTERNAL: NCCL …'.
    """
    return is_multiprocess() and bool(re.match(r"[A-Z_]+: ", str(error)))


@contextlib.contextmanager
def preemption() -> Iterator[Callable[[], bool]]:
    """Listen for the scheduler's SIGTERM to any process of the run.

    Yields:
        A function to call after every step: it returns whether the scheduler has asked the run to
        end, the same in every process.
    """
    steps = itertools.count()
    received: list[int] = []

    def asked() -> bool:
        return bool(received) or multihost_utils.reached_preemption_sync_point(next(steps))

    if is_multiprocess():  # JAX listens, and agrees with the others on a step
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def all_gather_json(content: Any) -> list[Any]:
    """All-gather a JSON-serialisable value, ordered by process."""
    if not is_multiprocess():
        return [content]
    given = np.frombuffer(json.dumps(content).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(given.size))
    padded = np.pad(given, (0, int(sizes.max()) - given.size))
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def broadcast_from_process_0(make: Callable[[], T]) -> T:
    """Call a function in process 0 and broadcast its JSON-serialisable value.

    Raises:
        ValueError, OSError: the function raised it; then every process does.
    """
    if not is_multiprocess():
        return make()
    message: dict[str, Any] = {}
    if is_first():
        try:
            message = {"made": make()}
        except (ValueError, OSError) as error:
            kind = next(name for name, cls in _SHARED_ERRORS.items() if isinstance(error, cls))
            message = {"error": str(error), "kind": kind}
    first, *_ = all_gather_json(message)
    if "error" in first:
        raise _SHARED_ERRORS[first["kind"]](first["error"])
    made: T = first["made"]
    return made


def broadcast_arrays_from_process_0(tree: Any) -> Any:
    """Broadcast the arrays of process 0; every process gives a tree of the same shapes."""
    return multihost_utils.broadcast_one_to_all(tree) if is_multiprocess() else tree


def assert_same_across_processes(facts: Mapping[str, Any]) -> None:
    """Raise a ValueError that names the facts, or the code, in which processes differ.

    Args:
        facts: JSON-serialisable values that have to be the same.
    """
    first, *others = all_gather_json({**facts, "code": _code(), "jax": jax.__version__})
    differing = [
        f"{name} is {first.get(name)!r} in process 0, {other.get(name)!r} in process {i}"
        for i, other in enumerate(others, start=1)
        for name in sorted({*first, *other})
        if first.get(name) != other.get(name)
    ]
    if differing:
        raise ValueError(f"Processes of one run differ: {'; '.join(differing)}.")


def _code() -> str:
    """Return a hash of this package's files."""
    digest = hashlib.sha256()
    root = Path(prelu_jax.__file__).parent
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:12]
