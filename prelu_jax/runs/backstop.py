"""Process beside a training run that ends it when its interpreter no longer runs.

C code that holds the interpreter's lock stops the watchdog's thread too. The standard library's
`faulthandler.dump_traceback_later` needs no lock, but it counts by the clock, so that it would end
a run that Ctrl-Z or a scheduler has stopped, and its exit status, 1, is that of a failed claim.
This file imports nothing of the project: it has to start in milliseconds.
"""

import contextlib
import os
import select
import signal
import sys
import time
from pathlib import Path

_TO_DUMP = 10  # seconds for the run to write where its threads are


def main(run: int, seconds: float) -> None:
    """End process ``run``, this one's parent, after ``seconds`` without a byte on stdin.

    Ticks are counted, not the clock, and none while the run is stopped. This process ends with the
    run, or when stdin is closed.
    """
    tick = min(1.0, seconds / 4)
    idle = 0.0
    while idle <= seconds:
        if os.getppid() != run:
            return
        if select.select([0], [], [], tick)[0]:
            if not os.read(0, 4096):
                return
            idle = 0.0
        elif not _is_stopped(run):
            idle += tick
    message = (
        f"\nThe interpreter of process {run} has not run for {seconds:g} s: C code holds its lock. "
        "It is ended by SIGABRT. The same command continues from the last checkpoint.\n"
    )
    with contextlib.suppress(OSError):  # stderr is closed, or its disk is full
        os.write(2, message.encode())
    os.kill(run, signal.SIGABRT)  # on which faulthandler writes every thread's traceback
    time.sleep(_TO_DUMP)
    if os.getppid() == run:
        os.kill(run, signal.SIGKILL)


def _is_stopped(process: int) -> bool:
    """Return whether a process is stopped by a signal or a debugger; False where /proc is not."""
    try:
        state = (
            Path(f"/proc/{process}/stat")
            .read_text(encoding="utf-8", errors="replace")
            .rpartition(") ")[2]
        )
    except OSError:
        return False
    return state[:1] in ("T", "t")


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
