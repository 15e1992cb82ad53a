"""Every kind of fault: a function that injects it into a running command and heals the machine.

Each takes the command, at a moment of training chosen at random, and a source of randomness. When
it returns, the command has ended or is about to; a fault that ends no command (a disk that refuses
for a while) kills it afterwards, to see what was kept.
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
    """A kind of fault, as the table has it.

    Attributes:
        name: for the table.
        inject: does it.
        statuses: of the first process to end, what they may be.
        times: how often the campaign does it.
        processes: of the command.
        before: done before the command starts, in the place of waiting for a moment of training.
        stalls: whether the command waits for what never comes, and has to notice that soon.
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
    def inject(of: Command, rng: np.random.Generator) -> None:
        time.sleep(rng.uniform(0, 0.1))
        of.send(signal.SIGKILL, *indices)

    return inject


def terminate(*indices: int) -> Inject:
    def inject(of: Command, rng: np.random.Generator) -> None:
        time.sleep(rng.uniform(0, 0.1))
        of.send(signal.SIGTERM, *indices)

    return inject


def kill_inside_a_save(of: Command, rng: np.random.Generator) -> None:
    unfinished = "*/seed_0/checkpoints/*.orbax-checkpoint-tmp*"
    while of.statuses() is None and not any(of.workdir.glob(unfinished)):
        pass
    time.sleep(rng.uniform(0, 0.01))
    of.send(signal.SIGKILL)


def kill_at_start_up(of: Command, rng: np.random.Generator) -> None:
    time.sleep(rng.uniform(0.5, 6))
    of.send(signal.SIGKILL)


def cut_short(of: Command, rng: np.random.Generator) -> None:
    """A file of the newest checkpoint loses its second half, as when a machine loses power."""
    for file in _newest_files(of, rng):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def corrupt(of: Command, rng: np.random.Generator) -> None:
    """64 bytes in the middle of every file of arrays are others."""
    for file in _newest_files(of, rng):
        content = bytearray(file.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 64] = rng.bytes(64)
        file.write_bytes(content)


def _newest_files(of: Command, rng: np.random.Generator) -> list[Path]:
    """Of the newest of several checkpoints; of one alone, it would be an error to go on without."""
    while of.statuses() is None and len(command.checkpoints(of.workdir)) < 2:
        time.sleep(0.005)
    kill()(of, rng)
    of.ends()
    newest = command.checkpoints(of.workdir)
    return [f for path in newest[-1:] for f in path.rglob("d/*") if f.stat().st_size > 500]


def delete_newest(of: Command, rng: np.random.Generator) -> None:
    kill()(of, rng)
    of.ends()
    for path in command.checkpoints(of.workdir)[-1:]:
        shutil.rmtree(path)


def damage(name: str) -> Inject:
    """A small file of the run that was killed is empty, cut, NUL-filled, of another kind, or gone.

    Of the metrics, the lines after the checkpoint before the newest one.
    """

    def inject(of: Command, rng: np.random.Generator) -> None:
        while of.statuses() is None and len(command.checkpoints(of.workdir)) < 2:
            time.sleep(0.005)
        kill()(of, rng)
        of.ends()
        saved = command.checkpoints(of.workdir)
        if len(saved) < 2:  # a run that had just begun: nothing is old enough to begin from
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


def delete_folder(of: Command, rng: np.random.Generator) -> None:
    """All checkpoints vanish under a running command; it makes new ones."""
    for folder in of.workdir.glob("*/seed_0/checkpoints"):
        folder.rename(of.workdir / f"removed_{time.monotonic_ns()}")
    _goes_on(of, 2 * EVERY)
    kill()(of, rng)


def fill_disk_for_a_while(of: Command, rng: np.random.Generator) -> None:
    with _full(of.workdir):
        _is_refused(of)
    _goes_on(of, EVERY + 4)
    kill()(of, rng)


def fill_disk(of: Command, rng: np.random.Generator) -> None:
    with _full(of.workdir):
        of.ends()


def make_read_only(of: Command, rng: np.random.Generator) -> None:
    """The folder of checkpoints is another, empty disk that cannot be written, and then not."""
    folder = of.workdir / next(run for run in command.RUNS if not _is_done(of.workdir / run))
    folder /= "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], check=True)
    try:
        _is_refused(of)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
    _goes_on(of, EVERY + 4)
    kill()(of, rng)


def reading(kind: str, process: int = 0) -> Callable[[Path], None]:
    return lambda file: file.write_text(f"{kind} {process}") and None


def until_it_ends(of: Command, rng: np.random.Generator) -> None:
    """The command has to end by itself; then what is wrong is mended."""
    of.ends()
    of.fault_file.unlink()


def freeze_one(of: Command, rng: np.random.Generator) -> None:
    """One process stands still, as when its machine swaps: the other has to end by itself."""
    of.send(signal.SIGSTOP, 1)
    wait_until(lambda: of.processes[0].poll() is not None, lambda: "the other process hangs")
    of.send(signal.SIGKILL, 1)


def _is_done(run: Path) -> bool:
    status = run / "status.json"
    return status.exists() and "done" in status.read_text()


def _is_refused(of: Command) -> None:
    """Until the command says that it could not save."""
    before = len(text_so_far(of.log))

    def is_refused() -> bool:
        said = text_so_far(of.log)[before:]
        return "cannot be written" in said or "is not saved" in said

    wait_until(is_refused, of.said)


def _goes_on(of: Command, steps: int) -> None:
    """Training goes on for so many steps, or to the run's end."""
    of.reaches(command.logged(of.workdir) + steps)


@contextlib.contextmanager
def _full(workdir: Path) -> Iterator[None]:
    """The disk under the work folder, a small one of its own, has not a byte left."""
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
# On a small disk of their own, which takes the right to mount one.
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
# The same run on other numbers of processes, one after another, ended by one alone.
ELASTIC = tuple(
    Fault(f"SIGTERM, then on {after} processes", terminate(0), (STOPPED,), 1, before)
    for before, after in ((1, 2), (2, 4), (4, 1))
)
