"""Growth of a training step's time and memory with depth, width, batch, image and devices.

One factor is varied at a time, the others are as in `Sizes`. A quantity that grows like size^e has
the exponent e: the slope of a line through the logs, by least squares, with its standard error. The
exponent of time should equal that of the multiply-adds, which is shown next to it. Devices share
one batch and, on a CPU, its cores.

    python -m benchmarks.growth NET BATCH_SIZE REPEATS

measures on all devices. It is a separate process because several CPU devices must be requested
before JAX starts.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.timing import Ratio, Result, Row, device, memory, samples
from benchmarks.training import Case
from experiments.harness import machine
from prelu_jax import arch, entry
from prelu_jax.training import parallel, step

_ROOT = Path(__file__).parent.parent
_CLASSES = 10
_MOST = 1.2  # limit of the exponent of time over that of the multiply-adds
_TIME, _MEMORY = "train step", "memory of the train step"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A network and a batch, with four sizes of each factor to measure.

    Attributes:
        net: name of the network.
        batch_size: images per step.
        dtype: type of the computation.
        depths, widths, batch_sizes, sides, devices: sizes of each factor; widths are relative to
            the network's.
    """

    net: str = "small_14_reduced"
    batch_size: int = 64
    dtype: str = "float32"
    depths: Sequence[int] = (8, 20, 45, 100)
    widths: Sequence[float] = (0.5, 1, 2, 4)
    batch_sizes: Sequence[int] = (16, 32, 64, 128)
    sides: Sequence[int] = (16, 32, 48, 64)
    devices: Sequence[int] = (1, 2, 4, 8)


# A GPU has memory for larger cases and is used with bfloat16. There is only one.
GPU = Sizes(
    net="small_14",
    batch_size=128,
    dtype="bfloat16",
    batch_sizes=(32, 64, 128, 256),
    widths=(0.25, 0.5, 1, 2),
    sides=(112, 160, 224, 320),
    devices=(),
)


def run(sizes: Sizes | None = None, repeats: int = 10) -> Result:
    """Measure milliseconds and MiB at every size, and fit their exponents."""
    if sizes is None:
        sizes = Sizes() if device() == "cpu" else GPU
    net = arch.get(sizes.net)
    base = Case(net, sizes.batch_size, dtype=sizes.dtype)

    def of_net(changed: arch.Arch) -> Case:
        return dataclasses.replace(base, net=changed)

    factors: dict[str, dict[float, Case]] = {
        "depth": {n: of_net(of_depth(net, n)) for n in sizes.depths},
        "width": {n: of_net(arch.with_width(net, n)) for n in sizes.widths},
        "batch": {n: dataclasses.replace(base, batch_size=n) for n in sizes.batch_sizes},
        "image side": {n: of_net(dataclasses.replace(net, image_size=n)) for n in sizes.sides},
    }
    results = [_of_factor(name, points, repeats) for name, points in factors.items()]
    if sizes.devices:
        results.append(_of_devices(sizes, repeats))
    return Result.joined(results)


def of_depth(net: arch.Arch, depth: int) -> arch.Arch:
    """Return the network with ``depth`` weight layers, by repeating or removing its last ones."""
    weighted = arch.Conv | arch.Dense | arch.Logits
    more = depth - sum(isinstance(layer, weighted) for layer in net.layers)
    end = 1 + max(i for i, layer in enumerate(net.layers) if isinstance(layer, arch.Conv))
    last: Any = net.layers[end - 1]
    added = (dataclasses.replace(last, name=f"{last.name}_{i + 1}") for i in range(more))
    layers = (*net.layers[: end + min(more, 0)], *added, *net.layers[end:])
    return arch.with_padding(
        arch.Arch(f"{net.name}_of_{depth}", net.image_size, layers), "alternating"
    )


def exponent(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Fit e in values ∝ size^e by least squares of the logs; return it and its standard error.

    The error is 0 for two points, which lie on one line.
    """
    from scipy import stats  # slow to import

    fit = stats.linregress(np.log(sizes), np.log(values))
    return float(fit.slope), float(fit.stderr)


def exponent_row(
    where: str, what: str, sizes: Sequence[float], values: Sequence[float], **figures: float
) -> Row:
    """Return a table's row for an exponent."""
    slope, error = exponent(sizes, values)
    return Row(where, f"exponent of: {what}", "", [slope], {"standard error": error, **figures})


def _of_factor(name: str, points: Mapping[float, Case], repeats: int) -> Result:
    programs: dict[float, Callable[[], Any]] = {}
    bytes_of: dict[float, int] = {}
    for size, case in points.items():
        programs[size], bytes_of[size] = _train_step(case)
    taken = samples({str(size): program for size, program in programs.items()}, repeats)
    products = [arch.multiply_adds(c.net, _CLASSES) * c.batch_size for c in points.values()]
    by_products, _ = exponent(list(points), products)
    times, memories = _rows(name, {n: taken[str(n)] for n in points}, bytes_of)
    medians = [row.median for row in times]
    of_time = exponent_row(name, _TIME, list(points), medians, **{"of multiply-adds": by_products})
    of_memory = exponent_row(name, _MEMORY, list(points), [row.median for row in memories])
    what = "growth: exponent of time / of multiply-adds"
    ratio = Ratio(what, name, of_time.median / by_products, _MOST)
    return Result([*times, of_time, *memories, of_memory], [ratio])


def _rows(
    name: str, taken: Mapping[float, Sequence[float]], bytes_of: Mapping[float, int]
) -> tuple[list[Row], list[Row]]:
    times = [
        Row(f"{name} {n:g}", _TIME, "ms", [1e3 * s for s in seconds])
        for n, seconds in taken.items()
    ]
    memories = [Row(f"{name} {n:g}", _MEMORY, "MiB", [b / 2**20]) for n, b in bytes_of.items()]
    return times, memories


def _train_step(case: Case) -> tuple[Callable[[], Any], int]:
    """Return a function that runs a step, and the bytes that the step needs."""
    now, batch = case.state(), jax.device_put(case.batch())
    compiled = jax.jit(step.train_step).lower(now, batch).compile()
    return lambda: compiled(now, batch), memory(compiled)


def _of_devices(sizes: Sizes, repeats: int) -> Result:
    taken: dict[float, list[float]] = {}
    bytes_of: dict[float, int] = {}
    for n in sizes.devices:
        command = [sys.executable, "-m", "benchmarks.growth"]
        command += [sizes.net, str(sizes.batch_size), str(repeats)]
        # More threads than can wait for one another; see `experiments.harness.machine`.
        threads = 4 * max(n, os.cpu_count() or 1)
        variables = {"JAX_NUM_CPU_DEVICES": str(n), "JAX_PLATFORMS": "cpu", "NPROC": str(threads)}
        output = subprocess.run(
            command,
            cwd=_ROOT,
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        ).stdout
        taken[n], bytes_of[n] = json.loads(output.splitlines()[-1])
    times, memories = _rows("devices", taken, bytes_of)
    of_time = exponent_row("devices", _TIME, list(taken), [row.median for row in times])
    what = "memory of the train step on each device"
    of_memory = exponent_row("devices", what, list(taken), [row.median for row in memories])
    memories = [dataclasses.replace(row, what=what) for row in memories]
    return Result([*times, of_time, *memories, of_memory], [])


def on_all_devices(case: Case, repeats: int) -> tuple[list[float], int]:
    """Return seconds of steps over all devices, and the bytes that each device needs."""
    devices = parallel.Parallel()
    devices.check_batch_size(case.batch_size)
    of_part = functools.partial(step.train_step, axis_name=parallel.AXIS)
    program: Any = devices.over_batch(of_part)  # a pmapped function, which can be lowered
    given = devices.replicate(case.state()), devices.split(case.batch())
    compiled = program.lower(*given).compile()
    return samples({"step": lambda: compiled(*given)}, repeats)["step"], memory(compiled)


if __name__ == "__main__":
    entry.answer_help()
    machine.keep_freed_memory()
    _net, _batch_size, _repeats = sys.argv[1:]
    print(json.dumps(on_all_devices(Case(arch.get(_net), int(_batch_size)), int(_repeats))))
