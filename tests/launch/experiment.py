"""What launchers' tests start in the place of an experiment: each start ends as a file says.

    python -m tests.launch.experiment FOLDER [--process_id=I ...] [--part=I/N]

FOLDER/plan.json: for each start, how every process, or part, ends: an exit status, 'wait' for
SIGTERM, 'late' for status 78 after a moment, or a negative number of a signal it kills itself with.
Each leaves its arguments and end.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

folder = Path(sys.argv[1])
told = dict(flag.removeprefix("--").split("=") for flag in sys.argv[2:] if "=" in flag)
index = int(told.get("process_id", told.get("part", "0").partition("/")[0]))


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
leave(f"{told.get('num_processes', 1)} {end}")
print(f"at home in {Path.home().name}", flush=True)
# Else a signal could come before the other one listens.
of_run = range(int(told["num_processes"])) if "num_processes" in told else [index]
every = [folder / f"starts_{i}" for i in of_run]
while not all(file.exists() and len(file.read_text()) > number for file in every):
    time.sleep(0.01)
if end == "wait":
    time.sleep(600)  # until the launcher ends it
elif end == "late":
    time.sleep(0.4)
    end = 78
elif end < 0:
    os.kill(os.getpid(), -end)
sys.exit(end)
