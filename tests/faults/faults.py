"""All kinds of faults: functions that inject one into a running command and undo it.

Each function gets the command at a random moment of training, and a random generator. When it
returns, the command has ended or is about to end. A fault that does not end the command (such as a
disk that is full for a while) kills it afterwards, to test that its checkpoints are usable.
"""

import contextlib
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.faults import command
from tests.faults.command import EVERY, Command
from tests.waiting import text_so_far, wait_until

Inject = Callable[[Command, np.random.Generator], None]


class Fault(NamedTuple):
    """A kind of fault, a line of the table.

    Attributes:
        name: name in the table.
        inject: function that injects the fault.
        statuses: allowed exit statuses of the first process that ends.
        times: number of repeats in the campaign.
        processes: number of processes of the command.
        before: called before the command starts; the fault then does not wait for a moment of
            training.
        stalls: whether the command hangs and needs a short stall timeout.
    """

    name: str
    inject: Inject
    statuses: tuple[int, ...]
    times: int
    processes: int = 1
    before: Callable[[Path], None] | None = None
    stalls: bool = False


ENDED, KILLED, STOPPED, CRASHED, REFUSED = 0, -9, 75, 70, 78


def kill(*indices: int) -> Inject:
    def inject(victim: Command, rng: np.random.Generator) -> None:
        time.sleep(rng.uniform(0, 0.1))
        victim.send(signal.SIGKILL, *indices)

    return inject


def terminate(*indices: int) -> Inject:
    def inject(victim: Command, rng: np.random.Generator) -> None:
        time.sleep(rng.uniform(0, 0.1))
        victim.send(signal.SIGTERM, *indices)

    return inject


def kill_inside_a_save(victim: Command, rng: np.random.Generator) -> None:
    unfinished = "*/seed_0/checkpoints/*.orbax-checkpoint-tmp*"
    while victim.statuses() is None and not any(victim.workdir.glob(unfinished)):
        pass
    time.sleep(rng.uniform(0, 0.01))
    victim.send(signal.SIGKILL)


def kill_at_start_up(victim: Command, rng: np.random.Generator) -> None:
    time.sleep(rng.uniform(0.5, 6))
    victim.send(signal.SIGKILL)


def cut_short(victim: Command, rng: np.random.Generator) -> None:
    """Truncate the newest checkpoint's files to half, as a loss of power may do."""
    for file in _newest_files(victim, rng):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def corrupt(victim: Command, rng: np.random.Generator) -> None:
    """Overwrite 64 bytes in the middle of every file of arrays."""
    for file in _newest_files(victim, rng):
        content = bytearray(file.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 64] = rng.bytes(64)
        file.write_bytes(content)


def _newest_files(victim: Command, rng: np.random.Generator) -> list[Path]:
    """Kill the command once it has two checkpoints; return the array files of the newest."""
    while victim.statuses() is None and len(command.checkpoints(victim.workdir)) < 2:
        time.sleep(0.005)
    kill()(victim, rng)
    victim.ends()
    newest = command.checkpoints(victim.workdir)
    return [f for path in newest[-1:] for f in path.rglob("d/*") if f.stat().st_size > 500]


def delete_newest(victim: Command, rng: np.random.Generator) -> None:
    kill()(victim, rng)
    victim.ends()
    for path in command.checkpoints(victim.workdir)[-1:]:
        shutil.rmtree(path)


def damage(name: str) -> Inject:
    """Kill the command, then empty, cut, zero-fill, replace or remove a small file of its run.

    In the metrics, only the lines after the second newest checkpoint are damaged.
    """

    def inject(victim: Command, rng: np.random.Generator) -> None:
        while victim.statuses() is None and len(command.checkpoints(victim.workdir)) < 2:
            time.sleep(0.005)
        kill()(victim, rng)
        victim.ends()
        saved = command.checkpoints(victim.workdir)
        if (
            len(saved) < 2
        ):  # the run had just begun, so no older checkpoint could replace the newest
            return
        file, kept = saved[-1].parents[1] / name, b""
        if name == "metrics.jsonl":
            lines = file.read_bytes().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith(b"\n")]
            kept = b"".join(x for x in whole if json.loads(x)["step"] <= int(saved[-2].name))
        rest = file.read_bytes()[len(kept) :]
        kinds = (
            b"",
            rest[: len(rest) // 2],
            bytes(len(rest)),
            b"[1]\n",
            b"null\n",
            b"\xff\n",
            None,
        )
        damaged = kinds[rng.integers(len(kinds))]
        if damaged is None and not kept:
            file.unlink()
        else:
            file.write_bytes(kept + (damaged or b""))

    return inject


def delete_folder(victim: Command, rng: np.random.Generator) -> None:
    """Remove all checkpoints of a running command, which makes new ones."""
    for folder in victim.workdir.glob("*/seed_0/checkpoints"):
        folder.rename(victim.workdir / f"removed_{time.monotonic_ns()}")
    _goes_on(victim, 2 * EVERY)
    kill()(victim, rng)


def fill_disk_for_a_while(victim: Command, rng: np.random.Generator) -> None:
    with _full(victim.workdir):
        _is_refused(victim)
    _goes_on(victim, EVERY + 4)
    kill()(victim, rng)


def fill_disk(victim: Command, rng: np.random.Generator) -> None:
    with _full(victim.workdir):
        victim.ends()


def make_read_only(victim: Command, rng: np.random.Generator) -> None:
    """Mount an empty read-only disk over the checkpoints, and unmount it later."""
    folder = victim.workdir / next(
        run for run in command.RUNS if not _is_done(victim.workdir / run)
    )
    folder /= "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], check=True)
    try:
        _is_refused(victim)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
    _goes_on(victim, EVERY + 4)
    kill()(victim, rng)


def reading(kind: str, process: int = 0) -> Callable[[Path], None]:
    return lambda file: file.write_text(f"{kind} {process}") and None


def until_it_ends(victim: Command, rng: np.random.Generator) -> None:
    """Wait until the command ends by itself; then remove the fault."""
    victim.ends()
    victim.fault_file.unlink()


def freeze_one(victim: Command, rng: np.random.Generator) -> None:
    """Freeze one process, as when its machine swaps; the other must end by itself."""
    victim.send(signal.SIGSTOP, 1)
    wait_until(lambda: victim.processes[0].poll() is not None, lambda: "the other process hangs")
    victim.send(signal.SIGKILL, 1)


def _is_done(run: Path) -> bool:
    status = run / "status.json"
    return status.exists() and "done" in status.read_text()


def _is_refused(victim: Command) -> None:
    """Wait until the command reports that it could not save."""
    before = len(text_so_far(victim.log))

    def is_refused() -> bool:
        output = text_so_far(victim.log)[before:]
        return "cannot be written" in output or "is not saved" in output

    wait_until(is_refused, victim.output)


def _goes_on(victim: Command, steps: int) -> None:
    """Wait for ``steps`` more steps of training, or for the run's end."""
    victim.reaches(command.logged(victim.workdir) + steps)


@contextlib.contextmanager
def _full(workdir: Path) -> Iterator[None]:
    """Fill the disk of the work folder, a small disk of its own."""
    filler = workdir / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    try:
        yield
    finally:
        filler.unlink()


FAULTS = (
    Fault("SIGKILL", kill(), (KILLED,), 12),
    Fault("SIGKILL inside a save", kill_inside_a_save, (KILLED, ENDED), 7),
    Fault("SIGKILL at start-up", kill_at_start_up, (KILLED,), 3, before=lambda file: None),
    Fault("SIGTERM", terminate(), (STOPPED,), 9),
    Fault("newest checkpoint cut short", cut_short, (KILLED, ENDED), 5),
    Fault("newest checkpoint corrupt", corrupt, (KILLED, ENDED), 4),
    Fault("newest checkpoint deleted", delete_newest, (KILLED,), 4),
    *(
        Fault(f"{name} damaged", damage(name), (KILLED, ENDED), 4)
        for name in ("status.json", "config.json", "init_report.json", "metrics.jsonl")
    ),
    Fault("checkpoint folder removed in training", delete_folder, (KILLED, ENDED), 2),
    Fault("corrupt record", until_it_ends, (REFUSED,), 2, before=reading("corrupt")),
    Fault("stalled reader", until_it_ends, (CRASHED,), 2, before=reading("stall"), stalls=True),
)
# On a small disk of their own, which only root can mount.
DISK_FAULTS = (
    Fault("disk full for a while", fill_disk_for_a_while, (KILLED, ENDED), 3),
    Fault("disk full to the end", fill_disk, (CRASHED,), 2),
    Fault("checkpoints on a read-only disk for a while", make_read_only, (KILLED, ENDED), 2),
)
TWO = (
    Fault("SIGKILL of process 0, the coordinator", kill(0), (KILLED,), 4, 2),
    Fault("SIGKILL of process 1", kill(1), (KILLED,), 3, 2),
    Fault("SIGKILL of both", kill(), (KILLED,), 1, 2),
    Fault("SIGTERM to process 1 alone", terminate(1), (STOPPED,), 3, 2),
    Fault("SIGTERM to both", terminate(), (STOPPED,), 1, 2),
    Fault("process 1 frozen", freeze_one, (KILLED,), 1, 2, stalls=True),
    Fault(
        "stalled reader of process 1",
        until_it_ends,
        (CRASHED,),
        1,
        2,
        reading("stall", 1),
        stalls=True,
    ),
)
# One run on changing numbers of processes.
ELASTIC = tuple(
    Fault(f"SIGTERM, then on {after} processes", terminate(0), (STOPPED,), 1, before)
    for before, after in ((1, 2), (2, 4), (4, 1))
)
