"""Waiting in tests, and reading of files that another process is writing.

Under load a start takes minutes, so time limits are only for tests that hang.
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
        condition: called repeatedly.
        report: returns the text of the error.
        pause: seconds between two calls.

    Raises:
        AssertionError: it does not hold within `PATIENCE`.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, report()
        time.sleep(pause)


def text_so_far(file: Path) -> str:
    """Return the text in a file, without an incomplete last character; '' if it is missing."""
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
