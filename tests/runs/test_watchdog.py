import signal
import subprocess
import sys
import threading
import time

import pytest

from prelu_jax.runs import backstop
from prelu_jax.runs.watchdog import Watchdog
from tests.experiments.conftest import ROOT, environment
from tests.waiting import PATIENCE, wait_until

WATCHED = """
import sys
import time
from prelu_jax.runs import backstop
from prelu_jax.runs.watchdog import Watchdog

def items():
    yield from range(3)
    time.sleep(float(sys.argv[1]))  # a disk that hangs

with Watchdog(5) as watchdog:
    for item in watchdog.over(items(), "a batch"):
        print(item, flush=True)
        time.sleep(2)
"""


HOLDING = """
import ctypes, sys
from prelu_jax import entry
from prelu_jax.runs import watchdog

def hold(seconds):
    print("holding", flush=True)
    ctypes.PyDLL(None).sleep(seconds)  # keeps the interpreter's lock

entry.keep_streams()
watchdog._GRACE = 0
with watchdog.Watchdog(float(sys.argv[2])):
    hold(int(float(sys.argv[1])))
"""


# They stop themselves, as Ctrl-Z would: a signal from a busy worker could come too late.
STOPPED = """
import os, signal
from prelu_jax.runs.watchdog import Watchdog

with Watchdog(5):
    os.kill(os.getpid(), signal.SIGSTOP)
"""
STOPPED_IN_C = """
import ctypes, os, signal
from prelu_jax import entry
from prelu_jax.runs import watchdog

entry.keep_streams()
watchdog._GRACE = 0
with watchdog.Watchdog(5):
    ctypes.PyDLL(None).kill(os.getpid(), int(signal.SIGSTOP))  # keeps the interpreter's lock
"""


def start(seconds, code=WATCHED, limit=2):
    return subprocess.Popen(
        [sys.executable, "-c", code, str(seconds), str(limit)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_run_that_stalls_is_ended_and_says_where():
    stalled = start(PATIENCE)
    out, said = stalled.communicate(timeout=PATIENCE)
    assert stalled.returncode == 70
    assert out.split() == ["0", "1", "2"]  # six seconds, but never five without progress
    assert "No progress for 5 s in reading a batch (process 0, on " in said
    assert "in items" in said  # where the thread was


def test_a_run_that_ends_is_watched_no_longer_and_without_a_timeout_never():
    for seconds in (1, 0):
        with Watchdog(seconds):
            pass
        time.sleep(1.2)  # longer than the timeout, which would end this process
        assert "watchdog" not in {thread.name for thread in threading.enumerate()}


def test_c_code_that_holds_the_interpreter_is_ended_too():
    held = start(PATIENCE, HOLDING)
    _, said = held.communicate(timeout=PATIENCE)
    assert held.returncode == -signal.SIGABRT  # no status that is final
    assert "has not run for 2 s: C code holds its lock" in said
    assert "in hold" in said  # where the thread was


def test_c_code_that_comes_back_in_time_is_not():
    held = start(1, HOLDING, limit=30)
    _, said = held.communicate(timeout=PATIENCE)
    assert held.returncode == 0, said


def test_a_closed_stderr_saves_no_hang():
    command = ["bash", "-c", 'exec "$0" "$@" 2>&-', sys.executable, "-c", HOLDING, "900", "2"]
    held = subprocess.run(command, cwd=ROOT, env=environment(), timeout=PATIENCE)
    assert held.returncode == -signal.SIGABRT


@pytest.mark.parametrize("code", [STOPPED, STOPPED_IN_C], ids=["python", "c"])
def test_a_process_that_was_stopped_has_not_stalled(code):
    stopped = start(0, code)
    wait_until(lambda: backstop._is_stopped(stopped.pid))
    time.sleep(8)  # more than the watchdog waits
    stopped.send_signal(signal.SIGCONT)
    _, said = stopped.communicate(timeout=PATIENCE)
    assert stopped.returncode == 0, said
