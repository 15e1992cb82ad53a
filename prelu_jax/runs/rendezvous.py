"""Meeting of the processes of a run at the coordinator's address, before JAX joins them.

JAX does not name the processes that it waits for, and if two have one number it aborts the first,
after minutes. Here one process listens, every other connects and sends its number: a number that
two have, or another count, ends all of them with a message.
"""

import contextlib
import errno
import json
import select
import socket
import time
from typing import Any

from prelu_jax import entry

_TIMEOUT = 60.0  # seconds for all to come
_PATIENCE = 20.0  # seconds without them, before a message
_PAUSE = 0.2  # seconds between two tries
_LONGEST = 65536  # bytes of a message

Message = dict[str, Any]


def meet(address: str, count: int, index: int) -> None:
    """Wait until all processes of the run have come.

    Args:
        address: of the coordinator, 'host:port'; free again when this returns.
        count: how many processes there are.
        index: which this one is, from 0 on.

    Raises:
        ValueError: two processes have one number, or differ in the count; or no such address.
        OSError: not all have come within a minute, or something else answers at the address.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"--coordinator_address is {address!r}, expected HOST:PORT of process 0.")
    began, reported = time.monotonic(), False
    while True:
        # Any process on the coordinator's host may listen: then two that should be process 1 meet
        # although nobody is process 0.
        if listener := _listen(host.strip("[]"), int(port), index):
            with listener:
                _Meeting(address, count, index, listener).wait(began)
            return
        if _arrive(host.strip("[]"), int(port), count, index, began):
            return
        waited = time.monotonic() - began
        if waited > _TIMEOUT:
            raise TimeoutError(
                f"Process {index} has met nobody at {address} within {_TIMEOUT:g} s. Is process 0 "
                "started, is this its --coordinator_address, and is the port free?"
            )
        if waited > _PATIENCE and not reported:
            reported = True
            entry.complain(
                f"Process {index} of {count} waits for process 0 at {address}; nobody answers."
            )
        time.sleep(_PAUSE)


class _Meeting:
    """The side that listens: it collects the others and answers all of them together."""

    def __init__(self, address: str, count: int, index: int, listener: socket.socket) -> None:
        self._address = address
        self._count = count
        self._index = index
        self._listener = listener
        self._others: dict[int, socket.socket] = {}

    def wait(self, began: float) -> None:
        """Wait for the others; then tell all that they may start, or why the run is refused."""
        reported = False
        with contextlib.ExitStack() as opened:
            while missing := self._missing():
                waited = time.monotonic() - began
                if waited > _TIMEOUT:
                    self._end("late", self._late(missing))
                if waited > _PATIENCE and not reported:
                    reported = True
                    entry.complain(
                        f"Waiting for {_named(missing)} of {self._count} at {self._address}."
                    )
                if select.select([self._listener], [], [], _PAUSE)[0]:
                    self._welcome(opened.enter_context(self._listener.accept()[0]))
            self._listener.close()  # the port is process 0's from here on
            self._answer({"met": True})

    def _missing(self) -> list[int]:
        """Return the numbers of the processes that have not come, or have ended since."""
        here = {index for index, other in self._others.items() if not _is_gone(other)}
        return sorted({*range(self._count)} - {self._index, *here})

    def _welcome(self, new: socket.socket) -> None:
        message = _read(new, seconds=5)
        if not message or "process_id" not in message:
            return  # not a process of a run
        index, count = message["process_id"], message["num_processes"]
        previous = self._others.get(index)
        twice = index == self._index or (previous is not None and not _is_gone(previous))
        self._others[index if not twice else -1] = new
        if count != self._count:
            self._end(
                "refused",
                f"--num_processes is {self._count} in process {self._index}, {count} in process "
                f"{index}: expected the same in all.",
            )
        if twice:
            self._end(
                "refused",
                f"Two processes have --process_id={index}: expected each of 0 to {self._count - 1} "
                f"once, and --coordinator_address={self._address} for this run alone.",
            )

    def _late(self, missing: list[int]) -> str:
        return (
            f"Of {self._count} processes, {_named(missing)} did not come to {self._address} within "
            f"{_TIMEOUT:g} s. Start each with its own --process_id from 0 to {self._count - 1} and "
            "the same --coordinator_address and --num_processes."
        )

    def _end(self, kind: str, why: str) -> None:
        self._answer({kind: why})
        raise (ValueError if kind == "refused" else TimeoutError)(why)

    def _answer(self, message: Message) -> None:
        for other in self._others.values():
            with contextlib.suppress(OSError):  # it is gone: JAX will notice
                other.sendall(_line(message))


def _listen(host: str, port: int, index: int) -> socket.socket | None:
    """Listen at the address; None if it is another machine's, or somebody does already."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE or index:
            return None
    # Process 0 is there by definition: its host has another address inside than outside.
    with contextlib.suppress(OSError):
        return socket.create_server(("", port))
    return None


def _arrive(host: str, port: int, count: int, index: int, began: float) -> bool:
    """Tell the one that listens who this is, and wait for its answer; False if there is none.

    Raises:
        ValueError, OSError: as `meet`.
    """
    left = _TIMEOUT - (time.monotonic() - began)
    try:
        with socket.create_connection((host, port), timeout=5) as connection:
            connection.sendall(_line({"process_id": index, "num_processes": count}))
            answer = _read(connection, seconds=max(left, 0) + 10)
    except OSError:
        return False
    if answer is None:
        return False
    if "refused" in answer:
        raise ValueError(answer["refused"])
    if "late" in answer:
        raise TimeoutError(answer["late"])
    if "met" not in answer:
        raise OSError(
            f"At {host}:{port} something else answers than a process of this run: is the port "
            "taken, or the run already under way?"
        )
    return True


def _line(message: Message) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _read(connection: socket.socket, seconds: float) -> Message | None:
    """Read a message; None if the other side is gone or silent, empty if it is none."""
    connection.settimeout(seconds)
    received = b""
    try:
        while b"\n" not in received and len(received) < _LONGEST:
            part = connection.recv(4096)
            if not part:
                break
            received += part
    except OSError:
        if not received:
            return None
    if not received:
        return None
    try:
        message = json.loads(received)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def _is_gone(connection: socket.socket) -> bool:
    """Return whether the other side has ended, as before a restart under the same number."""
    try:
        return bool(
            select.select([connection], [], [], 0)[0] and not connection.recv(1, socket.MSG_PEEK)
        )
    except OSError:
        return True


def _named(indices: list[int]) -> str:
    shown = ", ".join(map(str, indices[:8])) + (" and others" if len(indices) > 8 else "")
    return f"process{'es' if len(indices) > 1 else ''} {shown}"
