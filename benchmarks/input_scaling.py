"""Images per second of the input pipeline, compared with the need of accelerators.

JPEGs of a photo's size and detail, written as a dataset in a temporary folder, are decoded, resized
to a shorter side of 256 to 512 and cropped to 224 pixels, as for models A to C.
"""

import dataclasses
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from benchmarks.scaling import BATCH, H100, LOADS, TPU_V4, step_seconds
from benchmarks.timing import Ratio, Result, Row
from prelu_jax.data import pipeline, sources
from prelu_jax.data.share import Share

SHAPE = (375, 500)  # ImageNet's average
_CROP = pipeline.Crop(224, 256, 512)
_QUALITY = 95  # gives files of about 110 kB, ImageNet's average
_DATASET = "photos"
_HEADROOM = 1.25  # all cores over those that decode: for the training process and for peaks

WAYS = ((1, 1), (1, 2), (2, 1))  # processes, threads in each


@dataclasses.dataclass(frozen=True)
class Rate:
    """Rate at which one or several processes read images.

    Attributes:
        images: images per second.
        per_core_second: images per second of CPU time; other processes on the same cores affect it
            only through caches.
    """

    images: float
    per_core_second: float


def photo(rng: np.random.Generator, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Return noise with a photo's spectrum, coarse in colour: uint8 ``[h, w, 3]``."""
    height, width = shape
    image = np.full((height, width, 3), 127, np.float32)
    for side in (2, 4, 8, 16, 32, 64, 128, 256):
        noise = rng.standard_normal((side, side, 3)).astype(np.float32)
        if side > 32:
            noise[:] = noise[..., :1]
        detail = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        image += 90 / side**0.35 * detail
    return np.clip(image, 0, 255).astype(np.uint8)


def write(root: Path, count: int) -> float:
    """Write photos as a dataset under a folder; return the mean kilobytes of a photo."""
    # Imported here, because it needs TFDS.
    import tensorflow_datasets as tfds

    from prelu_jax.data import folder

    photos = root / "images" / "train" / "photo"
    photos.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        quality = (cv2.IMWRITE_JPEG_QUALITY, _QUALITY)
        cv2.imwrite(str(photos / f"{i}.jpg"), photo(rng), quality)
    tfds.disable_progress_bar()
    folder.prepare(root / "images", _DATASET, str(root / "tfds"))
    return statistics.mean(file.stat().st_size for file in photos.iterdir()) / 1e3


def rate(root: str, threads: int, share: Share, batches: int) -> Rate:
    """Measure the rate of this process for its share of batches; start with the others."""
    split = sources.load(_DATASET, "train", str(Path(root) / "tfds"))
    # Each thread makes its own batch. The first batches fill the pipeline and do not count.
    size, stop = BATCH * share.count, batches + threads
    read = pipeline.train_batches(split, _CROP, size, 0, 0, stop, threads=threads, share=share)
    _begin_together()
    for _ in range(threads):
        next(read)
    start, worked = time.perf_counter(), time.process_time()
    images = sum(len(batch["label"]) for batch in read)
    took, worked = time.perf_counter() - start, time.process_time() - worked
    return Rate(images / took, images / worked)


_begin_together: Callable[[], object] = int  # does nothing


def _join(begin_together: Callable[[], object]) -> None:
    global _begin_together
    _begin_together = begin_together


def measure(root: Path, processes: int, threads: int, batches: int) -> Rate:
    """Measure the rate of several processes at once, each with its share of every batch."""
    context = multiprocessing.get_context("spawn")  # not forked: JAX and Grain have threads
    begin = (context.Barrier(processes).wait,)
    with ProcessPoolExecutor(processes, context, initializer=_join, initargs=begin) as pool:
        reading = [
            pool.submit(rate, str(root), threads, Share(i, processes), batches)
            for i in range(processes)
        ]
        rates = [future.result() for future in reading]
    return Rate(sum(r.images for r in rates), statistics.mean(r.per_core_second for r in rates))


def needs() -> dict[str, float]:
    """Return images per second that hosts need for model A at full speed, by host."""
    model_a, *_ = LOADS
    h100, v4 = (BATCH / step_seconds(model_a, machine, 1, BATCH) for machine in (H100, TPU_V4))
    return {"1 H100": h100, "8 H100 in a host": 8 * h100, "4 TPU v4 in a host": 4 * v4}


def run(
    images: int = 512,
    batches: int = 4,
    repeats: int = 5,
    ways: Sequence[tuple[int, int]] = WAYS,
) -> Result:
    """Print the rates and the cores that feed a device; return ratios of several ways to one."""
    cores, before = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    measured: dict[tuple[int, int], list[Rate]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as name:
        kilobytes = write(Path(name), images)
        for _ in range(repeats):  # the ways take turns
            for way in ways:
                measured[way].append(measure(Path(name), *way, batches))
    print(
        f"\n{images} JPEGs of {SHAPE[1]}×{SHAPE[0]} pixels, {kilobytes:.0f} kB each; "
        f"{cores} cores, load {before:.1f} before; {batches} batches of {BATCH} a process, "
        f"medians of n = {repeats}, lowest and highest.\n"
    )
    wanted = needs()
    of_h100 = wanted["1 H100"]
    print("| processes × threads | images/s | of one H100's need | images a core-second |")
    print("|---|---|---|---|")
    for (processes, threads), rates in measured.items():
        of_all, of_core = [r.images for r in rates], [r.per_core_second for r in rates]
        part = statistics.median(of_all) / of_h100
        print(f"| {processes} × {threads} | {_spread(of_all)} | {part:.3f} | {_spread(of_core)} |")
    one = ways[0]
    per_core = statistics.median(r.per_core_second for r in measured[one])
    print(f"\nCores that decode, at {per_core:.0f} images a core-second, and × {_HEADROOM}:\n")
    print("| host, model A | images/s | cores | with headroom |")
    print("|---|---|---|---|")
    for host, need in wanted.items():
        print(
            f"| {host} | {need:,.0f} | {need / per_core:.1f} "
            f"| {math.ceil(_HEADROOM * need / per_core)} |"
        )
    rates_of = {way: statistics.median(r.images for r in rates) for way, rates in measured.items()}
    rows = [
        Row(_name(way), what, unit, [getattr(r, field) for r in rates])
        for way, rates in measured.items()
        for what, unit, field in (
            ("all", "images/s", "images"),
            ("a core-second", "images", "per_core_second"),
        )
    ]
    return Result(
        rows,
        [
            Ratio("time: 1 process × 1 thread / a core's share", _name(way), value, 2.0)
            for way, value in (
                (way, way[0] * way[1] * rates_of[one] / rates_of[way]) for way in ways[1:]
            )
        ],
    )


def _name(way: tuple[int, int]) -> str:
    return f"{way[0]} × {way[1]}"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"
