"""One start of the command that the campaign repeats, and the files of its runs."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from prelu_jax import files
from tests.experiments.conftest import ROOT, environment
from tests.waiting import PATIENCE, free_address, text_so_far

RUNS = ("he/seed_0", "xavier/seed_0")
STEPS, EVERY, LOG_EVERY = 60, 10, 2  # of each run; between checkpoints; between logs
FLAGS = (
    "--scale=laptop",
    "--seeds=1",
    "--config.arch=small_14_reduced",
    "--config.width=0.5",
    "--config.batch_size=16",
    f"--config.num_steps={STEPS}",
    f"--config.log_every={LOG_EVERY}",
    "--config.eval_every=10",
    f"--config.checkpoint_every={EVERY}",
    "--config.test_examples=20",
    # The loosest limits that the experiment accepts: undisturbed, both claims hold.
    "--config.converged=0.89",
    "--config.stalled=0.72",
)
# Seconds without progress after which a run ends: few where a fault stalls it, more elsewhere,
# because other programs may slow down the machine.
STALL_TIMEOUT, UNHURRIED = 20.0, PATIENCE / 2


class Command:
    """A start of the experiment in a work folder, as one process or several.

    Args:
        workdir: work folder of the experiment; the fault file and the log are next to its parent.
        processes: number of processes.
        stall_timeout: seconds without progress after which the experiment ends.
    """

    def __init__(self, workdir: Path, processes: int = 1, stall_timeout: float = UNHURRIED) -> None:
        self.workdir = workdir
        self.fault_file = beside(workdir, "fault")
        self.log = beside(workdir, "log")
        workdir.parent.mkdir(exist_ok=True)
        self.before = logged(workdir)
        command = [sys.executable, "-m", "tests.faults.victim", *FLAGS, f"--workdir={workdir}"]
        command.append(f"--stall_timeout={stall_timeout}")
        if processes > 1:
            command += [f"--coordinator_address={free_address()}", f"--num_processes={processes}"]
        self.processes = [
            subprocess.Popen(
                [*command, *([f"--process_id={index}"] if processes > 1 else [])],
                cwd=ROOT,
                env=environment(FAULT_FILE=str(self.fault_file), NPROC="8"),
                stdout=self.log.open("a"),
                stderr=subprocess.STDOUT,
            )
            for index in range(processes)
        ]

    def reaches(self, step: int) -> bool:
        """Wait for a step, counted over both runs; return False if the command ends before."""
        deadline = time.monotonic() + PATIENCE
        while logged(self.workdir) < step:
            if self.statuses() is not None:
                return False
            assert time.monotonic() < deadline, f"no step {step}:\n{self.output()}"
            time.sleep(0.005)
        return True

    def statuses(self) -> list[int] | None:
        """Return the exit statuses of the processes; None while one of them runs."""
        codes = [process.poll() for process in self.processes]
        return None if None in codes else [code for code in codes if code is not None]

    def ends(self) -> list[int]:
        """Wait for the end of all processes; kill them and raise an error if they hang."""
        deadline = time.monotonic() + PATIENCE
        while (codes := self.statuses()) is None:
            if time.monotonic() > deadline:
                for process in self.processes:
                    process.kill()
                    process.wait()
                raise AssertionError(f"still there after {PATIENCE:.0f} s:\n{self.output()}")
            time.sleep(0.01)
        return codes

    def send(self, number: signal.Signals, *indices: int) -> None:
        """Send a signal to the processes with these indices; to all if none is given."""
        for index in indices or range(len(self.processes)):
            self.processes[index].send_signal(number)

    def output(self) -> str:
        return text_so_far(self.log)[-3000:]


def beside(workdir: Path, kind: str) -> Path:
    """Return a file that is not on the work folder's disk, if only the parent is that disk."""
    return workdir.parent.with_suffix(f".{kind}")


def records(workdir: Path, run: str) -> list[dict[str, Any]]:
    """Return the complete records of a run's metrics so far."""
    try:
        return files.read_records(workdir / run / "metrics.jsonl")[0]
    except OSError:
        return []


def logged(workdir: Path) -> int:
    """Return the last logged step, counted over both runs."""
    # Read each file once: a resumed run rewrites it, so that a second read may be shorter.
    complete = (records(workdir, run) for run in RUNS)
    return sum(int(records_of_run[-1]["step"]) for records_of_run in complete if records_of_run)


def checkpoints(workdir: Path) -> list[Path]:
    """Return the complete checkpoints of the current run, oldest first."""
    begun = [run for run in RUNS if (workdir / run / "checkpoints").is_dir()]
    try:
        paths = list((workdir / begun[-1] / "checkpoints").iterdir()) if begun else []
    except FileNotFoundError:  # removed meanwhile
        return []
    return sorted((p for p in paths if p.name.isdigit()), key=lambda p: int(p.name))


def saved(workdir: Path) -> int:
    """Return the last step with a complete checkpoint, counted over both runs."""
    begun = [run for run in RUNS if (workdir / run / "checkpoints").is_dir()]
    newest = checkpoints(workdir)
    return STEPS * max(0, len(begun) - 1) + (int(newest[-1].name) if newest else 0)


def differences(workdir: Path, reference: Path, exact: bool) -> list[str]:
    """Return the differences between a finished experiment and the undisturbed one."""
    differing = []
    for name in (f"{run}/{file}" for run in RUNS for file in ("metrics.jsonl", "status.json")):
        ours, theirs = ((folder / name).read_text() for folder in (workdir, reference))
        if exact and ours != theirs:
            differing.append(f"{name}: other bytes")
    for run in RUNS:
        pairs = zip(records(workdir, run), records(reference, run), strict=True)
        # Compare only losses: rounding may put a rectifier's input on either side of its kink,
        # which changes the gradients of all layers below.
        if not exact and not all(np.allclose(_losses(a), _losses(b), rtol=0.01) for a, b in pairs):
            differing.append(f"{run}: another curve")
    return differing


def _losses(record: dict[str, Any]) -> list[float]:
    return [record["step"], *(value for name, value in record.items() if name.endswith("loss"))]


def remove(workdir: Path) -> None:
    shutil.rmtree(workdir, ignore_errors=True)
    for kind in ("fault", "log"):
        beside(workdir, kind).unlink(missing_ok=True)


def is_root() -> bool:
    return os.geteuid() == 0
