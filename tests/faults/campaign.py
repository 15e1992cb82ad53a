"""Command that injects faults into runs and restarts them until every run has ended.

    python -m tests.faults.campaign --write

The runs are those of `command.FLAGS`, the faults those of `faults`. A run that was disturbed many
times must end with the same files as an undisturbed run: the same bytes on the same number of
devices. The exit status is 0 if all did. ``--write`` writes the table to docs/results.md.
"""

import dataclasses
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import app, flags

from benchmarks import summary
from tests.experiments.conftest import ROOT
from tests.faults import command, faults
from tests.faults.command import Command
from tests.faults.faults import Fault

_SEED = flags.DEFINE_integer("seed", 0, "Seed of the moments of the faults.")
_WRITE = flags.DEFINE_bool("write", False, "Write the table to docs/results.md.")

BEGIN, END = "<!-- tests.faults.campaign: begin -->", "<!-- tests.faults.campaign: end -->"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Outcome of one fault.

    Attributes:
        fault: the injected fault.
        statuses: exit statuses of the processes.
        at: step at which it was injected, counted over both runs.
        lost: steps that had to be repeated.
        seconds: time from the fault to the end of the last process.
        same: whether the disturbed run ended with the same files as an undisturbed one.
    """

    fault: Fault
    statuses: tuple[int, ...]
    at: int
    lost: int
    seconds: float
    same: bool = False

    def line(self) -> str:
        return (
            f"{self.fault.name} at step {self.at}: ended with {self.statuses} in "
            f"{self.seconds:.1f} s, {self.lost} steps to take again"
        )


def undisturbed(workdir: Path, processes: int = 1) -> list[int]:
    """Run the command without faults and return its exit statuses."""
    return Command(workdir, processes, stall_timeout=0).ends()  # compiles for all later starts


def disturb(
    planned: Sequence[Fault], workdir: Path, reference: Path, rng: np.random.Generator
) -> list[Outcome]:
    """Inject the faults one after another, and run every disturbed run to its end.

    Args:
        planned: the faults. If their numbers of processes differ, runs are compared up to rounding,
            else exactly.
        workdir: work folder of the disturbed command.
        reference: work folder of the undisturbed command.
        rng: draws the moments of the faults.
    """
    exact = len({fault.processes for fault in planned}) == 1
    outcomes: list[Outcome] = []
    in_this_run: list[Outcome] = []
    waiting = list(planned)
    while waiting or in_this_run:
        fault = waiting[0] if waiting else None
        if fault and fault.before:
            fault.before(command.beside(workdir, "fault"))
        processes = fault.processes if fault else planned[-1].processes if exact else 1
        stalls = fault is not None and fault.stalls
        victim = Command(workdir, processes, command.STALL_TIMEOUT if stalls else command.UNHURRIED)
        moment = victim.before + int(rng.integers(3, 22))
        if fault and (fault.before or victim.reaches(moment)):
            outcome = _inject(fault, victim, rng)
            if not outcome:  # the run ended just before the fault
                continue
            in_this_run.append(outcome)
            waiting.pop(0)
            print(f"{len(outcomes) + len(in_this_run):3d}. {outcome.line()}", flush=True)
        else:
            victim.ends()
            differences = command.differences(workdir, reference, exact)
            print(f"     The run has ended: {differences or 'the same'}.", flush=True)
            outcomes += [dataclasses.replace(o, same=not differences) for o in in_this_run]
            in_this_run = []
            command.remove(workdir)
    return outcomes


def _inject(fault: Fault, victim: Command, rng: np.random.Generator) -> Outcome | None:
    """Inject the fault and wait for the end; None if the command ended before the fault."""
    begun, at = time.monotonic(), command.logged(victim.workdir)
    fault.inject(victim, rng)
    statuses = victim.ends()
    seconds = time.monotonic() - begun
    if set(statuses) == {faults.ENDED} and faults.ENDED not in fault.statuses:
        return None
    last, saved = max(at, command.logged(victim.workdir)), command.saved(victim.workdir)
    assert any(code in fault.statuses for code in statuses), (fault, statuses, victim.output())
    if faults.REFUSED not in fault.statuses:  # a launcher would not restart after this status
        assert faults.REFUSED not in statuses, (fault, statuses, victim.output())
    return Outcome(fault, tuple(statuses), at, max(0, last - saved), seconds)


def table(outcomes: Sequence[Outcome], minutes: float) -> str:
    """Return the outcomes as a Markdown table, a line for each kind of fault."""
    names = list(dict.fromkeys((o.fault.name, o.fault.processes) for o in outcomes))
    lines = [
        "| Fault | processes | n | exit statuses | steps taken again, at most | "
        "fault to end, at most | same end |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        kind = [o for o in outcomes if (o.fault.name, o.fault.processes) == name]
        statuses = sorted({code for o in kind for code in o.statuses})
        lines.append(
            f"| {name[0]} | {name[1]} | {len(kind)} | {', '.join(map(str, statuses))} | "
            f"{max(o.lost for o in kind)} | {max(o.seconds for o in kind):.1f} s | "
            f"{sum(o.same for o in kind)} of {len(kind)} |"
        )
    return "\n".join(
        [
            f"{len(outcomes)} faults, seed {_SEED.value if flags.FLAGS.is_parsed() else 0}, "
            f"{minutes:.0f} minutes; {os.cpu_count()} cores, Python {platform.python_version()}, "
            f"jax {jax.__version__}.",
            "",
            *lines,
        ]
    )


def _times(kinds: Sequence[Fault], rng: np.random.Generator) -> list[Fault]:
    """Repeat every fault as often as its ``times``, in a random order."""
    repeated = [fault for fault in kinds for _ in range(fault.times)]
    return [repeated[i] for i in rng.permutation(len(repeated))]


def campaign(folder: Path, rng: np.random.Generator) -> list[Outcome]:
    """Inject all faults."""
    for processes in (1, 2):
        print(
            f"{processes}: {undisturbed(folder / f'whole_{processes}/run', processes)}", flush=True
        )
    one, two = folder / "whole_1/run", folder / "whole_2/run"
    outcomes = disturb(_times(faults.FAULTS, rng), folder / "one/run", one, rng)
    if command.is_root():
        small = folder / "small_disk"
        small.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(small)]
        subprocess.run(mount, check=True)
        try:
            outcomes += disturb(_times(faults.DISK_FAULTS, rng), small / "run", one, rng)
        finally:
            subprocess.run(["umount", "--lazy", str(small)], check=True)
    else:
        print("Faults of the disk are left out: only root can mount a small disk.", flush=True)
    outcomes += disturb(_times(faults.TWO, rng), folder / "two/run", two, rng)
    return outcomes + disturb(faults.ELASTIC, folder / "elastic/run", one, rng)


def main(argv: list[str]) -> None:
    """Run the command; see the module."""
    del argv
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = campaign(Path(folder), np.random.default_rng(_SEED.value))
    text = table(outcomes, (time.monotonic() - begun) / 60)
    print(f"\n{text}")
    if _WRITE.value:
        summary.replace_between(BEGIN, END, text, ROOT / "docs/results.md")
    sys.exit(not all(outcome.same for outcome in outcomes))


if __name__ == "__main__":
    app.run(main)
