"""Injects faults into runs and gives the same command again, until every run has ended.

    python -m tests.faults.campaign --write

Runs are those of `command.FLAGS`; faults those of `faults`. A run that was disturbed, many times in
turn, has to end with what an undisturbed one has written: to the byte on the same number of
devices. Exit status 0: all did. ``--write`` puts the table into docs/results.md.
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

_SEED = flags.DEFINE_integer("seed", 0, "Of the moments at which faults come.")
_WRITE = flags.DEFINE_bool("write", False, "Put the table into docs/results.md.")

BEGIN, END = "<!-- tests.faults.campaign: begin -->", "<!-- tests.faults.campaign: end -->"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one fault.

    Attributes:
        fault: injected.
        statuses: how the processes ended.
        at: the step it came at, counted over both runs.
        lost: steps that had to be taken again.
        seconds: from the fault to the end of the last process, for those that end by it.
        same: whether the run that it disturbed ended as if nothing had been.
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
    """How the command ends without a fault."""
    return Command(workdir, processes, stall_timeout=0).ends()  # it compiles for all that follow


def disturb(
    planned: Sequence[Fault], workdir: Path, reference: Path, rng: np.random.Generator
) -> list[Outcome]:
    """Injects the faults one after another, and lets every run that they have disturbed end.

    Args:
        planned: the faults; those of one run have the same number of processes, or else it is
            compared to rounding.
        workdir: of the disturbed command.
        reference: that of the undisturbed one.
        rng: chooses moments.
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
        of = Command(workdir, processes, command.STALL_TIMEOUT if stalls else command.UNHURRIED)
        moment = of.before + int(rng.integers(3, 22))
        if fault and (fault.before or of.reaches(moment)):
            outcome = _inject(fault, of, rng)
            if not outcome:  # the run had ended just before
                continue
            in_this_run.append(outcome)
            waiting.pop(0)
            print(f"{len(outcomes) + len(in_this_run):3d}. {outcome.line()}", flush=True)
        else:
            of.ends()
            found = command.differences(workdir, reference, exact)
            print(f"     The run has ended: {found or 'the same'}.", flush=True)
            outcomes += [dataclasses.replace(o, same=not found) for o in in_this_run]
            in_this_run = []
            command.remove(workdir)
    return outcomes


def _inject(fault: Fault, of: Command, rng: np.random.Generator) -> Outcome | None:
    """Injects the fault and waits for the end; None if the command ended before it came."""
    begun, at = time.monotonic(), command.logged(of.workdir)
    fault.inject(of, rng)
    statuses = of.ends()
    seconds = time.monotonic() - begun
    if set(statuses) == {faults.ENDED} and faults.ENDED not in fault.statuses:
        return None
    last, saved = max(at, command.logged(of.workdir)), command.saved(of.workdir)
    assert any(code in fault.statuses for code in statuses), (fault, statuses, of.said())
    if faults.REFUSED not in fault.statuses:  # after which nothing would start it again
        assert faults.REFUSED not in statuses, (fault, statuses, of.said())
    return Outcome(fault, tuple(statuses), at, max(0, last - saved), seconds)


def table(outcomes: Sequence[Outcome], minutes: float) -> str:
    """The outcomes in Markdown, a line for each kind of fault."""
    names = list(dict.fromkeys((o.fault.name, o.fault.processes) for o in outcomes))
    lines = [
        "| Fault | processes | n | exit statuses | steps taken again, at most | "
        "fault to end, at most | same end |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        of = [o for o in outcomes if (o.fault.name, o.fault.processes) == name]
        statuses = sorted({code for o in of for code in o.statuses})
        lines.append(
            f"| {name[0]} | {name[1]} | {len(of)} | {', '.join(map(str, statuses))} | "
            f"{max(o.lost for o in of)} | {max(o.seconds for o in of):.1f} s | "
            f"{sum(o.same for o in of)} of {len(of)} |"
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


def _times(of_kind: Sequence[Fault], rng: np.random.Generator) -> list[Fault]:
    """Every fault as often as it says, in a random order."""
    every = [fault for fault in of_kind for _ in range(fault.times)]
    return [every[i] for i in rng.permutation(len(every))]


def campaign(folder: Path, rng: np.random.Generator) -> list[Outcome]:
    """All the faults there are."""
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
        print("Faults of the disk are left out: to mount a small one takes root.", flush=True)
    outcomes += disturb(_times(faults.TWO, rng), folder / "two/run", two, rng)
    return outcomes + disturb(faults.ELASTIC, folder / "elastic/run", one, rng)


def main(argv: list[str]) -> None:
    """The command; see the module."""
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
