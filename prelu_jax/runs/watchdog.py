"""Ending a run that makes no progress: a hang, unlike a failure, is seen by nobody."""

import contextlib
import faulthandler
import os
import platform
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

import jax

from prelu_jax import entry
from prelu_jax.entry import Status
from prelu_jax.runs import backstop

T = TypeVar("T")

_GRACE = 10  # seconds more for the backstop: this thread's message names the operation


class Watchdog:
    """Kill the process after some seconds without progress.

    The message names the operation and lists the stack of every thread. Other processes of the run
    end with this one. Where C code holds the interpreter's lock, a second process kills this one
    (`backstop`).

    Args:
        seconds: without progress; 0 for no limit.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._doing = "starting"
        self._idle = 0.0  # seconds since there was progress
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._backstop: subprocess.Popen[bytes] | None = None

    def progress(self, doing: str) -> None:
        """Reset the stall timer; ``doing`` names the next operation, for the message."""
        self._doing, self._idle = doing, 0.0

    def over(self, items: Iterable[T], each: str) -> Iterator[T]:
        """Yield the items; to get one, and to ask for the next, is progress."""
        iterator = iter(items)
        while True:
            self.progress(f"reading {each}")
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.progress(f"computing with {each}")
            yield item

    def __enter__(self) -> Self:
        self.progress("starting")
        if self._seconds:
            self._backstop = _start_backstop(self._seconds + _GRACE)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._seconds:
            self._thread.join()  # it writes to the backstop
        if self._backstop:
            with contextlib.suppress(OSError):
                self._backstop.communicate()

    def _watch(self) -> None:
        tick = min(1.0, self._seconds / 4)
        while not self._ended.wait(tick):
            self._tell_backstop()
            # By its own ticks, not the clock: a process that Ctrl-Z has stopped has not stalled.
            self._idle += tick
            if self._idle > self._seconds:
                entry.complain(
                    f"\nNo progress for {self._seconds:g} s in {self._doing} (process "
                    f"{jax.process_index()}, on {platform.node()}); ended with status "
                    f"{Status.CRASHED}. The same command continues from the last checkpoint. Every "
                    f"thread:\n{_every_thread()}"
                )
                entry.end_now(Status.CRASHED)

    def _tell_backstop(self) -> None:
        if self._backstop and self._backstop.stdin:
            with contextlib.suppress(OSError):  # somebody killed it
                self._backstop.stdin.write(b".")


def _start_backstop(seconds: float) -> subprocess.Popen[bytes] | None:
    """Start the process that ends this one if it hears nothing; None if it cannot be started."""
    with contextlib.suppress(OSError, ValueError, RuntimeError, AttributeError):
        if not faulthandler.is_enabled():
            faulthandler.enable()  # it writes on SIGABRT, without the lock
    command = [sys.executable, "-I", "-S", backstop.__file__]
    with contextlib.suppress(OSError):
        return subprocess.Popen(
            [*command, str(os.getpid()), str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the run
        )
    return None


def _every_thread() -> str:
    """Return the stack of every thread, the most recent call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"Thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )
