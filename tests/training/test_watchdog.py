import subprocess
import sys
import time

from prelu_jax.training.watchdog import Watchdog
from tests.experiments.conftest import ROOT, environment

STALLED = """
import time
from prelu_jax.training.watchdog import Watchdog

def items():
    yield from range(3)
    time.sleep(60)  # a disk that hangs

with Watchdog(1.5) as watchdog:
    for item in watchdog.over(items(), "a batch"):
        print(item)
        time.sleep(1)
"""


def test_a_run_that_stalls_is_ended_and_says_where():
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", STALLED], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 70
    assert done.stdout.split() == ["0", "1", "2"]  # three seconds, but never 1.5 without progress
    assert "No progress for 1.5 s in reading a batch (process 0, on " in done.stderr
    assert "in items" in done.stderr  # where the thread was
    assert time.monotonic() - begun < 40


def test_a_run_that_ends_is_watched_no_longer_and_without_a_timeout_never():
    for seconds in (0.05, 0):
        with Watchdog(seconds):
            pass
        time.sleep(0.2)
