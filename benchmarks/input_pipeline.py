"""Comparison of the input pipeline with others on one core, and its cost in a training run.

JPEGs of a photo's size and detail are decoded, resized to a shorter side of 256 to 512 and cropped
to 224 pixels. TensorFlow cannot be installed in the environment of this package: $INPUT_TF_PYTHON
names the Python interpreter of another environment that has it.
"""

import contextlib
import importlib.util
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import input_scaling
from benchmarks.timing import Ratio, Result, Row
from prelu_jax import models
from prelu_jax.arch import REGISTRY
from prelu_jax.data import pipeline, sources
from prelu_jax.data.augment import PixelStatistics
from prelu_jax.training import optimizer, state
from prelu_jax.training.parallel import Parallel

ROOT = Path(__file__).parents[1]
TF_PYTHON = "INPUT_TF_PYTHON"
GOAL = 1.3  # times as fast as the best peer
SECONDS = 1.0  # core-seconds for 1,000 images
_ALIASED = "tf.data, aliased"  # omits the antialiasing filter of the other readers

_READ_AHEAD = 60  # batches: more than twice as many as Grain and its threads hold


def run(
    images: int = 256,
    batches: int = 6,
    repeats: int = 4,
    net: str = "small_14_reduced",
    batch_size: int = 64,
    steps: int = 20,
) -> Result:
    """Measure the rates of every installed reader, and the time that reading adds to a step.

    Args:
        images: number of JPEGs.
        batches: batches per turn of a reader.
        repeats: turns of each reader.
        net: name of the network of the training run.
        batch_size: batch size of the run.
        steps: steps of the run.
    """
    with tempfile.TemporaryDirectory() as name:
        input_scaling.write(Path(name), images)
        rates, notes = _rates(Path(name), batches, repeats)
        of_a_run = _of_a_run(Path(name), net, batch_size, steps)
    rows = [_row(reader, [1e3 / r for r in values]) for reader, values in rates.items()]
    ours, *others = rows
    ratios = [Ratio("core-seconds per 1,000 images / 1", ours.where, ours.median, SECONDS)]
    antialiased = [row for row in others if row.what != _ALIASED]
    for peers, what in ((antialiased, "best peer that antialiases"), (others, "best peer")):
        if peers:
            best = min(peers, key=lambda row: row.median)
            where = f"{ours.where}, {best.what}"
            what = f"time per image: ours / {what}"
            ratios.append(Ratio.of(what, where, ours.values, best.values, 1 / GOAL))
    return Result([*rows, *of_a_run], ratios, notes)


def _row(reader: str, milliseconds: Sequence[float]) -> Row:
    figures = {"images/core-s": 1e3 / statistics.median(milliseconds)}
    return Row("500×375 JPEG", reader, "ms", milliseconds, figures)


def _rates(
    folder: Path, batches: int, repeats: int
) -> tuple[dict[str, list[float]], tuple[str, ...]]:
    """Return images per core-second of each reader, in turns, and notes on missing readers."""
    interpreters = {"ours": sys.executable}
    notes = []
    if importlib.util.find_spec("torch") and importlib.util.find_spec("PIL"):
        interpreters |= dict.fromkeys(("pillow", "pillow, crop first"), sys.executable)
    else:
        notes.append("not compared: PyTorch is not installed (pip install -e .[bench])")
    if tf_python := os.environ.get(TF_PYTHON):
        interpreters |= dict.fromkeys(("tf.data", _ALIASED), tf_python)
    else:
        notes.append(f"not compared: tf.data; ${TF_PYTHON} names no interpreter with TensorFlow")
    rates: dict[str, list[float]] = {reader: [] for reader in interpreters}
    with contextlib.ExitStack() as stack:
        readers = {
            reader: stack.enter_context(_started(python, reader, folder))
            for reader, python in interpreters.items()
        }
        for turn in range(repeats + 1):
            for name, process in readers.items():
                rate = _ask(process, name, batches)
                if turn:  # the first one is slower: allocations, caches
                    rates[name].append(rate)
    return rates, tuple(notes)


@contextlib.contextmanager
def _started(python: str, reader: str, folder: Path) -> Iterator[Any]:
    """Start a process of `input_readers`."""
    command = (python, "-m", "benchmarks.input_readers", reader, str(folder))
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        yield process  # Popen then closes its pipes, which ends the process


def _ask(process: Any, reader: str, batches: int) -> float:
    process.stdin.write(f"{batches}\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError(f"The process of reader {reader!r} ended; its error is printed above.")
    return float(answer)


def _of_a_run(folder: Path, net: str, batch_size: int, steps: int) -> list[Row]:
    """Measure a step of a run that reads, and one of a run that reuses a batch.

    On a CPU reading and training share the cores, so reading makes the steps slower instead of
    making them wait.
    """
    arch = REGISTRY[net]
    size = arch.image_size
    split = sources.load("photos", "train", str(folder / "tfds"))
    pixels = PixelStatistics(jnp.full((size, size, 3), 127.0), jnp.float32(1 / 64))
    parallel = Parallel()
    model = models.build(arch, len(split.class_names), "prelu")
    now = parallel.replicate(state.create(model, optimizer.sgd(0.001), pixels, 0))
    crop = pipeline.Crop(size, size * 8 // 7, size * 16 // 7)  # in the proportions 224 : 256 : 512
    read = pipeline.train_batches(split, crop, batch_size, 0, 0, _READ_AHEAD + steps)

    def milliseconds(batches: Iterable[pipeline.Batch]) -> list[float]:
        nonlocal now
        ends = [time.perf_counter()]
        for batch in batches:
            now, _ = parallel.train_step(now, parallel.split(batch))
            jax.block_until_ready(now)
            ends.append(time.perf_counter())
        return [1e3 * (b - a) for a, b in itertools.pairwise(ends)]

    one = next(read)
    # The first step compiles while batches are read ahead; the steps that use them do not count.
    milliseconds(itertools.islice(read, _READ_AHEAD - 1))
    reading = milliseconds(read)
    having = milliseconds(itertools.repeat(one, steps))
    part = 100 * (1 - statistics.median(having) / statistics.median(reading))
    where = f"{net}, batch {batch_size}"
    return [
        Row(where, "a step that reads", "ms", reading, {"% for the input": part}),
        Row(where, "a step of one batch", "ms", having),
    ]
