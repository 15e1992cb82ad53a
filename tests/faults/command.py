"""One start of the command that the campaign gives again and again, and what it has written."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.experiments.conftest import ROOT, environment

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
    "--config.converged=1",  # both claims hold: status 0 is that of an end
    "--config.stalled=0",
)
STALL_TIMEOUT = 20  # seconds
HANG = 60  # seconds: longer is a hang
_LONGEST = 300  # seconds for a whole run, where other work has the machine


class Command:
    """A start of the experiment in a work folder, as one process or several.

    Args:
        workdir: of the experiment; beside its parent lie the file of faults and the log.
        processes: how many.
        stall_timeout: seconds without progress that end it.
    """

    def __init__(
        self, workdir: Path, processes: int = 1, stall_timeout: float = STALL_TIMEOUT
    ) -> None:
        self.workdir = workdir
        self.fault_file = beside(workdir, "fault")
        self.log = beside(workdir, "log")
        workdir.parent.mkdir(exist_ok=True)
        self.before = logged(workdir)
        command = [sys.executable, "-m", "tests.faults.victim", *FLAGS, f"--workdir={workdir}"]
        command.append(f"--stall_timeout={stall_timeout}")
        if processes > 1:
            command += [f"--coordinator_address={_address()}", f"--num_processes={processes}"]
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
        """Waits for a step, counted over both runs; False if the command ends before it."""
        deadline = time.monotonic() + _LONGEST
        while logged(self.workdir) < step:
            if self.statuses() is not None:
                return False
            assert time.monotonic() < deadline, f"no step {step}:\n{self.said()}"
            time.sleep(0.005)
        return True

    def statuses(self) -> list[int] | None:
        """How the processes ended; None as long as one is there."""
        codes = [process.poll() for process in self.processes]
        return None if None in codes else [code for code in codes if code is not None]

    def ends(self, within: float = _LONGEST) -> list[int]:
        """Waits for the end of all; one that is still there then is killed, and an error."""
        deadline = time.monotonic() + within
        while (codes := self.statuses()) is None:
            if time.monotonic() > deadline:
                for process in self.processes:
                    process.kill()
                    process.wait()
                raise AssertionError(f"still there after {within:.0f} s:\n{self.said()}")
            time.sleep(0.01)
        return codes

    def send(self, number: signal.Signals, *indices: int) -> None:
        """A signal to some of the processes; to all, if none is named."""
        for index in indices or range(len(self.processes)):
            self.processes[index].send_signal(number)

    def said(self) -> str:
        return self.log.read_text()[-3000:]


def beside(workdir: Path, kind: str) -> Path:
    """A file that does not lie on the disk of the work folder, if that is the parent's own."""
    return workdir.parent.with_suffix(f".{kind}")


def _address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def records(workdir: Path, run: str) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics."""
    file = workdir / run / "metrics.jsonl"
    try:
        lines = file.read_text().splitlines(keepends=True)
    except OSError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def logged(workdir: Path) -> int:
    """The last step that was logged, counted over both runs."""
    return sum(int(records(workdir, run)[-1]["step"]) for run in RUNS if _has(workdir, run))


def _has(workdir: Path, run: str) -> bool:
    return bool(records(workdir, run))


def checkpoints(workdir: Path) -> list[Path]:
    """The whole checkpoints of the run that is being trained, oldest first."""
    begun = [run for run in RUNS if (workdir / run / "checkpoints").is_dir()]
    of_run = (workdir / begun[-1] / "checkpoints").iterdir() if begun else ()
    return sorted((p for p in of_run if p.name.isdigit()), key=lambda p: int(p.name))


def saved(workdir: Path) -> int:
    """The last step that has a whole checkpoint, counted over both runs."""
    begun = [run for run in RUNS if (workdir / run / "checkpoints").is_dir()]
    newest = checkpoints(workdir)
    return STEPS * max(0, len(begun) - 1) + (int(newest[-1].name) if newest else 0)


def differences(workdir: Path, reference: Path, exact: bool) -> list[str]:
    """What a finished experiment has written otherwise than the undisturbed one."""
    found = []
    for name in (f"{run}/{file}" for run in RUNS for file in ("metrics.jsonl", "status.json")):
        ours, theirs = ((folder / name).read_text() for folder in (workdir, reference))
        if exact and ours != theirs:
            found.append(f"{name}: other bytes")
    for run in RUNS:
        pairs = zip(records(workdir, run), records(reference, run), strict=True)
        # Losses alone: a rectifier at its kink may come out on either side of it, and that changes
        # the gradients of all layers below.
        if not exact and not all(np.allclose(_losses(a), _losses(b), rtol=0.01) for a, b in pairs):
            found.append(f"{run}: another curve")
    return found


def _losses(record: dict[str, Any]) -> list[float]:
    return [record["step"], *(value for name, value in record.items() if name.endswith("loss"))]


def remove(workdir: Path) -> None:
    shutil.rmtree(workdir, ignore_errors=True)
    for kind in ("fault", "log"):
        beside(workdir, kind).unlink(missing_ok=True)


def is_root() -> bool:
    return os.geteuid() == 0
