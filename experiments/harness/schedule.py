"""Training the runs of a plan, or a part of them, one after another."""

import dataclasses
import functools
import re
from pathlib import Path

from tqdm import tqdm

from experiments.harness import machine, results
from experiments.harness.plans import Plan
from prelu_jax.runs import processes, trainer


@dataclasses.dataclass(frozen=True)
class Part:
    """Every ``count``-th run of a plan, from number ``index`` on."""

    index: int
    count: int


def parse_part(text: str) -> Part:
    """Return the part that I/N names.

    Raises:
        ValueError: there is no such part.
    """
    numbers = re.fullmatch(r"(\d+)/(\d+)", text)
    if not numbers or not int(numbers[1]) < int(numbers[2]):
        raise ValueError(f"--part is {text!r}, expected I/N with I from 0 to N - 1, as in 0/4.")
    return Part(int(numbers[1]), int(numbers[2]))


def train_all(runs: Plan, part: Part | None = None, stall_timeout: float = 0) -> None:
    """Train every run that its folder does not hold finished, one after another.

    A run is left out if it takes its weights from a run of the plan that diverged.

    Args:
        runs: the plan; all devices that the smallest batch can feed are used.
        part: the runs to train; all of them by default.
        stall_timeout: seconds without progress after which the process ends; 0 for none.

    Raises:
        ValueError: a configuration is refused; nothing has been trained then.
        StoppedError: the scheduler asked the process to stop, and the run has saved itself.
    """
    parallel = machine.devices(min(run.config.batch_size for run in runs.values()))
    for run in runs.values():
        trainer.check(run.config, parallel)
    with processes.preemption() as stop:
        for folder in select(runs, part):
            label, config = runs[folder]
            source = Path(config.pretrained)
            diverged = functools.partial(results.diverged, source)
            if source in runs and processes.broadcast_from_process_0(diverged):
                continue  # without weights to start from it has no folder, and counts as diverged
            with _bar(label, config.num_steps) as bar:
                progress = functools.partial(_show, bar)
                status = trainer.train(config, folder, progress, parallel, stop, stall_timeout)
                bar.set_postfix_str(f"{status['status']} at step {status['step']}")


def select(runs: Plan, part: Part | None) -> list[Path]:
    """Return the folders of a part's runs, which start from no other run's weights."""
    if part is None:
        return list(runs)
    independent = [f for f, run in runs.items() if Path(run.config.pretrained) not in runs]
    return independent[part.index :: part.count]


def _bar(label: str, num_steps: int) -> tqdm:
    bar = tqdm(
        total=num_steps,
        desc=label,
        unit="step",
        smoothing=0.1,
        mininterval=1,
        disable=not processes.is_first(),
    )
    bar.set_postfix_str("compiling")  # until the first progress
    return bar


def _show(bar: tqdm, step: int, error: float | None) -> None:
    """Show how far a run is, and its latest test error."""
    bar.set_postfix_str(f"error {error:.1%}" if error is not None else "", False)
    bar.update(step - bar.n)
