"""Check of the model in `benchmarks.scaling` with processes on this machine, joined by gloo.

Two processes give the latency and the bandwidth; four are predicted and measured.
"""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from benchmarks.scaling import Level, all_reduce_seconds
from benchmarks.timing import Ratio

# (arrays, MB) of the trees to sum. Gloo sums one array at a time, even if XLA combines arrays.
TREES = ((1, 1), (1, 4), (1, 16), (1, 64), (16, 16), (128, 16))
NET = "small_30_reduced"
BATCH = 64  # images a process
WITH, WITHOUT = "a step", "a step without its pmean"

Samples = dict[str, list[float]]


@dataclasses.dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it, in seconds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{ms(self.median)} ({ms(self.low)} to {ms(self.high)})"


def name_of(arrays: int, megabytes: int) -> str:
    """Return the name of a tree in the measurements."""
    return f"{arrays} arrays, {megabytes} MB"


def measure(
    processes: int, trees: Sequence[tuple[int, int]], repeats: int, net: str, batch: int
) -> Samples:
    """Return seconds of every sum and of the steps, measured in the first process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    asked = json.dumps([trees, repeats, net, batch])
    command = [sys.executable, "-m", "benchmarks.loopback_worker", address, str(processes)]
    # One device per process, whatever the caller's environment sets.
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen(
            [*command, str(i), asked], env=environment, text=True, stdout=pipe, stderr=pipe
        )
        for i in range(processes)
    ]
    try:
        outputs = [process.communicate(timeout=900) for process in started]
    finally:
        for process in started:
            process.kill()
    if any(process.returncode for process in started):
        errors = "\n".join(error for _, error in outputs)
        raise RuntimeError(f"One of {processes} processes failed; their errors:\n{errors}")
    measured: Samples = json.loads(outputs[0][0].splitlines()[-1])
    return measured


def fit(seconds: Mapping[tuple[int, float], float]) -> Level:
    """Fit latency and bandwidth of two devices' rings, by least squares of relative errors.

    Two devices take 2 · arrays · latency + size / bandwidth.

    Args:
        seconds: seconds of an all-reduce, by its arrays and bytes.
    """
    taken = np.array(list(seconds.values()))
    terms = np.array(list(seconds)) * (2.0, 1.0) / taken[:, None]
    latency, per_byte = np.linalg.lstsq(terms, np.ones(len(taken)), rcond=None)[0]
    return Level(2, 1 / per_byte, max(0.0, latency))


def predicted(
    level: Level, processes: int, arrays: int, size: float, cores: int
) -> tuple[float, float]:
    """Return the seconds of an all-reduce, with a core per process and with shared cores.

    Sending a byte takes CPU time at both ends. If there are fewer cores than processes, the
    processes take turns.
    """
    ring = dataclasses.replace(level, size=processes, latency=arrays * level.latency)
    seconds = all_reduce_seconds(size, [ring])
    return seconds, seconds * max(1.0, processes / cores)


def run(
    trees: Sequence[tuple[int, int]] = TREES, repeats: int = 20, net: str = NET, batch: int = BATCH
) -> list[Ratio]:
    """Print predicted and measured times; return their ratios."""
    cores, before = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    measured = {n: measure(n, trees, repeats, net, batch) for n in (1, 2, 4)}
    two, four = ({tree: Spread.of(measured[n][name_of(*tree)]) for tree in trees} for n in (2, 4))
    level = fit({(arrays, mb * 1e6): two[arrays, mb].median for arrays, mb in trees})
    print(
        f"\nMeasured on {cores} cores, load {before:.1f} before, jax {jax.__version__}, gloo; "
        f"medians of n = {repeats} and quartiles, ms. Fit to 2 processes: {1e3 * level.latency:.2f}"
        f" ms a hop and array, {level.bandwidth / 1e9:.2f} GB/s.\n"
    )
    print("| arrays | MB | 2: fit | 2: measured | 4: ring | 4: cores shared | 4: measured |")
    print("|---|---|---|---|---|---|---|")
    for arrays, mb in trees:
        fitted, _ = predicted(level, 2, arrays, mb * 1e6, cores)
        expected = predicted(level, 4, arrays, mb * 1e6, cores)
        cells = (ms(fitted), two[arrays, mb], *map(ms, expected), four[arrays, mb])
        print(f"| {arrays} | {mb} | {' | '.join(map(str, cells))} |")
    largest = max(trees, key=lambda tree: tree[1] / tree[0])
    _, shared = predicted(level, 4, largest[0], largest[1] * 1e6, cores)
    what = "time: all-reduce by 4 processes / predicted, cores shared"
    ratio = Ratio(what, name_of(*largest), four[largest].median / shared, 3.0)
    return [ratio, *_of_steps(measured, level, cores, f"{net}, {batch} images a process")]


def _of_steps(measured: Mapping[int, Samples], level: Level, cores: int, where: str) -> list[Ratio]:
    (size,) = measured[1]["bytes summed"]
    print(f"\nA step of {where}; it sums one array, {size / 1e6:.2f} MB:\n")
    print("| processes | without pmean | with | difference | ring | cores shared |")
    print("|---|---|---|---|---|---|")
    ratios = []
    for n, samples in measured.items():
        expected = predicted(level, n, 1, size, cores)
        without, of_step = Spread.of(samples[WITHOUT]), Spread.of(samples[WITH])
        # Differences of pairs that follow one another, so that a drift cancels.
        difference = Spread.of(np.subtract(samples[WITH], samples[WITHOUT]).tolist())
        cells = (n, without, of_step, difference, *map(ms, expected))
        print(f"| {' | '.join(map(str, cells))} |")
        if 1 < n <= cores:
            what = "time: a step / one without pmean and the predicted ring"
            ratio = of_step.median / (without.median + expected[0])
            ratios.append(Ratio(what, f"{n} processes, {where}", ratio, 2.0))
    return ratios


def ms(seconds: float) -> str:
    """Format seconds as milliseconds for a table."""
    return f"{1e3 * seconds:.1f}"
