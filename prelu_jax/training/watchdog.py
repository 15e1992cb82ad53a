"""A run that makes no progress is ended: a hang, unlike a failure, is seen by nobody."""

import faulthandler
import os
import platform
import sys
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

import jax

from prelu_jax.training.processes import CRASHED

T = TypeVar("T")


class Watchdog:
    """Ends this process if nobody says for a time that there is progress.

    It says then what was being done and where every thread was. Other processes of the run end
    with this one.

    Args:
        seconds: so long; 0 for ever.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._doing = "starting"
        self._idle = 0.0  # seconds since there was progress
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def progress(self, doing: str) -> None:
        """There is some; and what is done next, for the message."""
        self._doing, self._idle = doing, 0.0

    def over(self, items: Iterable[T], each: str) -> Iterator[T]:
        """The items; to get one, and to ask for the next, is progress."""
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
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()

    def _watch(self) -> None:
        tick = min(1.0, self._seconds / 4)
        while not self._ended.wait(tick):
            # By its own ticks, not the clock: a process that Ctrl-Z has stopped has not stalled.
            self._idle += tick
            if self._idle > self._seconds:
                print(
                    f"\nNo progress for {self._seconds:g} s in {self._doing} (process "
                    f"{jax.process_index()}, on {platform.node()}); ended with status {CRASHED}. "
                    "The same command goes on from the last checkpoint. Every thread:",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(sys.stderr)
                os._exit(CRASHED)
