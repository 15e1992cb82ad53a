"""The tables and the figure of docs/scaling.md.

python -m benchmarks.run scaling               # tables, and measurements that check the model
python -m benchmarks.scaling_tables FILE.png   # the figure
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks import loopback
from benchmarks.scaling import (
    BATCH,
    GRADIENT_BYTES,
    LOADS,
    MACHINES,
    Load,
    Machine,
    all_reduce_seconds,
    best_group,
    efficiency,
    step_seconds,
)
from benchmarks.timing import Result
from prelu_jax import entry

DEVICES = (8, 32, 256, 1024)  # each with `BATCH` images
DEVICES_OF_ONE_BATCH = (8, 32, 128)  # together with `BATCH` images
# (name, whether the fully connected layers are shared, whether the all-reduce overlaps)
PLANS = (
    ("all-reduce after the step", False, False),
    ("all-reduce during the backward pass", False, True),
    ("fc shared, after", True, False),
    ("fc shared, during", True, True),
)


def run() -> Result:
    """Print every table; return the ratios of measurements to the model."""
    for title, rows in (
        ("Bytes a step", _bytes()),
        ("An all-reduce of all gradients, ms", _all_reduces()),
        ("Efficiency", _efficiencies()),
    ):
        print(f"\n{title}:\n")
        _table(rows)
    return Result([], loopback.run())


def _table(rows: Iterable[Sequence[str]]) -> None:
    for i, row in enumerate(rows):
        print(f"| {' | '.join(row)} |")
        if i == 0:
            print("|" + "---|" * len(row))


def _bytes() -> Iterator[Sequence[str]]:
    yield (
        *("model", "parameters, M", "conv, MB", "fc, MB", "all, MB", "of it fc, %"),
        *("all in bfloat16, MB", "exchanged with fc shared, kB an image", "pays below, images"),
    )
    for of in LOADS:
        conv, fc, every = (n * GRADIENT_BYTES / 1e6 for n in (of.conv, of.fc, of.parameters))
        yield (
            *(of.name, f"{of.parameters / 1e6:.1f}", f"{conv:.0f}", f"{fc:.0f}", f"{every:.0f}"),
            *(f"{100 * of.fc / of.parameters:.0f}", f"{every / 2:.0f}"),
            *(f"{2 * of.exchanged_bytes / 1e3:.0f}", f"{of.most_images():,.0f}"),
        )


def _all_reduces() -> Iterator[Sequence[str]]:
    numbers = [f"{n:,}" for n in DEVICES]
    yield ("machine", "model", f"step of {BATCH} alone", *numbers, *(f"{n}, bf16" for n in numbers))
    for machine, of in _cases():
        sums = [
            all_reduce_seconds(of.parameters * size, machine.levels(n), machine.torus)
            for size in (4, 2)
            for n in DEVICES
        ]
        seconds = (step_seconds(of, machine, 1, BATCH), *sums)
        yield (machine.name, of.name, *(f"{1e3 * s:.1f}" for s in seconds))


def _efficiencies() -> Iterator[Sequence[str]]:
    weak = [f"{n:,}, {BATCH} each" for n in DEVICES]
    strong = [f"{n}, {BATCH} in all" for n in DEVICES_OF_ONE_BATCH]
    yield ("machine", "model", "plan", *weak, *strong)
    for machine, of in _cases():
        for name, shared, hidden in PLANS:
            cases = [(n, BATCH) for n in DEVICES]
            cases += [(n, BATCH // n) for n in DEVICES_OF_ONE_BATCH]
            yield (
                *(machine.name, of.name, name),
                *(_cell(of, machine, n, images, shared, hidden) for n, images in cases),
            )


def _cell(of: Load, machine: Machine, n: int, images: int, shared: bool, hidden: bool) -> str:
    levels, group = best_group(of, machine, n, images, hidden) if shared else (0, 1)
    how = {"shared_over": levels, "overlap": hidden}
    value = f"{efficiency(of, machine, n, images, **how):.2f}"
    return f"{value} ({group})" if shared else value


def _cases() -> Iterator[tuple[Machine, Load]]:
    return ((machine, of) for machine in MACHINES for of in LOADS)


def figure(file: Path) -> None:
    """Draw efficiency against devices for model A, by machine and by way to share a batch."""
    from experiments.harness import drawing

    model_a = LOADS[0]
    drawn, grid = drawing.subplots(2, len(MACHINES), (10, 7), sharey=True)
    for column, machine in enumerate(MACHINES):
        for row, (title, most) in enumerate(
            ((f"{BATCH} images a device", 1024), (f"{BATCH} images in all", BATCH))
        ):
            axes = grid[row, column]
            devices = [2**i for i in range(most.bit_length())]
            for name, shared, hidden in PLANS:
                values = []
                for n in devices:
                    images = BATCH if row == 0 else BATCH // n
                    over = best_group(model_a, machine, n, images, hidden)[0] if shared else 0
                    how = {"shared_over": over, "overlap": hidden}
                    values.append(efficiency(model_a, machine, n, images, **how))
                style = {
                    "color": "tab:blue" if shared else "tab:red",
                    "ls": "-" if hidden else "--",
                }
                axes.plot(devices, values, marker="o", ms=3, label=name, **style)
            axes.set_xscale("log", base=2)
            axes.set_xticks(devices, [f"{n:,}" for n in devices])
            axes.set_ylim(0, 1.08)
            axes.grid(alpha=0.25)
            axes.set_title(f"{machine.name}, {title}")
            axes.set_xlabel("Devices")
    for axes in grid[:, 0]:
        axes.set_ylabel("Efficiency, predicted (model A)")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    drawn.savefig(file, dpi=120)


if __name__ == "__main__":
    entry.answer_help()
    figure(Path(sys.argv[1]))
