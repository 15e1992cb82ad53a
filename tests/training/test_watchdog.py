import signal
import subprocess
import sys
import time

from prelu_jax.training.watchdog import Watchdog
from tests.experiments.conftest import ROOT, environment

WATCHED = """
import sys
import time
from prelu_jax.training.watchdog import Watchdog

def items():
    yield from range(3)
    time.sleep(float(sys.argv[1]))  # a disk that hangs

with Watchdog(2) as watchdog:
    for item in watchdog.over(items(), "a batch"):
        print(item, flush=True)
        time.sleep(1)
"""


def start(seconds):
    return subprocess.Popen(
        [sys.executable, "-c", WATCHED, str(seconds)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_run_that_stalls_is_ended_and_says_where():
    stalled = start(60)
    out, said = stalled.communicate(timeout=50)
    assert stalled.returncode == 70
    assert out.split() == ["0", "1", "2"]  # three seconds, but never two without progress
    assert "No progress for 2 s in reading a batch (process 0, on " in said
    assert "in items" in said  # where the thread was


def test_a_process_that_was_stopped_has_not_stalled():
    stopped = start(0)
    assert stopped.stdout.readline() == "0\n"
    stopped.send_signal(signal.SIGSTOP)  # as Ctrl-Z does
    time.sleep(4)
    stopped.send_signal(signal.SIGCONT)
    _, said = stopped.communicate(timeout=50)
    assert stopped.returncode == 0, said


def test_a_run_that_ends_is_watched_no_longer_and_without_a_timeout_never():
    for seconds in (0.05, 0):
        with Watchdog(seconds):
            pass
        time.sleep(0.2)
