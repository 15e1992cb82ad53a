"""Waits of tests, and reads of files that another process is writing.

Under load a start takes minutes. A limit only ends a test that hangs: nothing measures time by it.
"""

import socket
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 900.0  # seconds


def wait_until(
    condition: Callable[[], object], report: Callable[[], object] = lambda: "", pause: float = 0.01
) -> None:
    """Wait until a condition holds.

    Args:
        condition: called again and again.
        report: returns what the error shows.
        pause: seconds between two calls.

    Raises:
        AssertionError: it does not hold within `PATIENCE`.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, report()
        time.sleep(pause)


def text_so_far(file: Path) -> str:
    """Return the text in a file; the last letter may be cut, the file missing."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def lines_so_far(file: Path) -> list[str]:
    """Return the whole lines of a file, without one that is being written."""
    return text_so_far(file).split("\n")[:-1]


def free_address() -> str:
    """Return an address for a coordinator: this machine and a port that is free now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"
