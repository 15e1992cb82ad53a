"""Stand-in for an experiment in the launchers' tests: a file decides how each start ends.

    python -m tests.launch.experiment FOLDER [--process_id=I ...] [--part=I/N]

FOLDER/plan.json lists, for each start, the end of every process or part: an exit status, 'wait'
(for SIGTERM), 'late' (status 78 after a moment), or the negative number of a signal with which it
kills itself. Each process writes its arguments and its end to a file.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

folder = Path(sys.argv[1])
given = dict(flag.removeprefix("--").split("=") for flag in sys.argv[2:] if "=" in flag)
index = int(given.get("process_id", given.get("part", "0").partition("/")[0]))


def leave(text):
    with (folder / f"process_{index}.txt").open("a") as file:
        file.write(f"{text}\n")


def stop(number, frame):
    leave("stopped")
    os._exit(75)


signal.signal(signal.SIGTERM, stop)
starts = folder / f"starts_{index}"
number = len(starts.read_text()) if starts.exists() else 0
starts.write_text("x" * (number + 1))
end = json.loads((folder / "plan.json").read_text())[number][index]
leave(f"{given.get('num_processes', 1)} {end}")
print(f"at home in {Path.home().name}", flush=True)
# Wait for the other processes: a signal must not reach one before its handler is set.
indices = range(int(given["num_processes"])) if "num_processes" in given else [index]
files = [folder / f"starts_{i}" for i in indices]
while not all(file.exists() and len(file.read_text()) > number for file in files):
    time.sleep(0.01)
if end == "wait":
    time.sleep(600)  # until the launcher ends it
elif end == "late":
    time.sleep(0.4)
    end = 78
elif end < 0:
    os.kill(os.getpid(), -end)
sys.exit(end)
