"""What `test_local` starts in the place of an experiment: each start ends as a file says.

    python -m tests.launch.experiment FOLDER [--process_id=I ...]

FOLDER/plan.json: for each start, how every process ends: an exit status, 'wait' for SIGTERM, or a
negative number of a signal it kills itself with. Each process leaves its arguments and its end.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

folder = Path(sys.argv[1])
told = dict(flag.removeprefix("--").split("=") for flag in sys.argv[2:] if "=" in flag)
index = int(told.get("process_id", 0))


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
every = [folder / f"starts_{i}" for i in range(int(told.get("num_processes", 1)))]
while not all(file.exists() and len(file.read_text()) > number for file in every):
    time.sleep(0.01)
if end == "wait":
    time.sleep(60)
elif end < 0:
    os.kill(os.getpid(), -end)
sys.exit(end)
