"""The tests of the paper's tables on finished runs, kept in the run's folder (He et al. 2015, §3).

Images are mirrored too if they were in training.

scores/labels.npy          of every test example, in order
scores/ten_view_<s>.npy    softmax scores ``[n, classes]`` of images with a shorter side of s
scores/dense_<s>.npy       the same of every window, densely
"""

import dataclasses
import functools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import results
from experiments.results import Claim
from prelu_jax import evaluation
from prelu_jax.data import pipeline
from prelu_jax.training import finished, run_data, start
from prelu_jax.training.config import TrainConfig
from prelu_jax.training.parallel import AXIS, Parallel

TEN_VIEW, MULTI_SCALE = "10-view", "multi-scale"

# Made once: `Parallel` compiles a function once.
_STEPS = {
    (test, mirror): functools.partial(step, axis_name=AXIS, mirror=mirror)
    for test, step in (("ten_view", evaluation.ten_view_step), ("dense", evaluation.dense_step))
    for mirror in (True, False)
}


@dataclasses.dataclass
class ScoredConfig(TrainConfig):
    """A `TrainConfig`, and how its runs are tested when they are finished."""

    scales: tuple[int, ...] = evaluation.SCALES  # shorter sides of the dense test's images, if any
    ten_view_scale: int = evaluation.SCALES[0]  # the same of the 10-view test's
    test_batch_size: int = 16  # whole images over all devices


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """What a run says of every test example.

    Attributes:
        labels: int32 ``[n]``.
        by_test: test -> softmax scores ``[n, classes]``.
    """

    labels: np.ndarray
    by_test: Mapping[str, np.ndarray]


def check(config: ScoredConfig, size: int, parallel: Parallel, tests: Sequence[str]) -> None:
    """Raises a ValueError if networks for images of a size cannot be tested so.

    Args:
        config: how they are tested.
        size: of the images, pixels.
        parallel: the devices.
        tests: see `scores`.
    """
    asked: dict[str, Sequence[int]] = {}
    if TEN_VIEW in tests:
        asked["ten_view_scale"] = [config.ten_view_scale]
    if MULTI_SCALE in tests:
        asked["scales"] = config.scales
    for field, sides in asked.items():
        if min(sides, default=0) < size or len(set(sides)) < len(sides):
            raise ValueError(
                f"config.{field} is {getattr(config, field)}, expected sides of at least the "
                f"{size} pixels of the networks, each once."
            )
    if config.test_batch_size < 1 or config.test_batch_size % len(parallel.devices):
        raise ValueError(
            f"config.test_batch_size is {config.test_batch_size}, expected a multiple of "
            f"{len(parallel.devices)}, the number of devices."
        )


def at(side: int) -> str:
    """What the dense test at a scale is called, ``side`` pixels of the shorter side."""
    return f"s = {side}"


def scores(
    folder: Path, config: ScoredConfig, parallel: Parallel, tests: Sequence[str]
) -> Scores | None:
    """Tests of a run, None if it diverged; those that its folder holds are not made again.

    Args:
        folder: of the run.
        config: how it is tested; the run itself is that of the folder.
        parallel: the devices.
        tests: those asked for: `TEN_VIEW`, `at` a scale of ``config.scales``, `MULTI_SCALE`.

    Raises:
        ValueError: the run is not finished, or its checkpoint is another network's.
    """
    if results.diverged(folder):
        return None
    dense = {at(side): ("dense", side) for side in config.scales}
    singles = {TEN_VIEW: ("ten_view", config.ten_view_scale), **dense}
    needed = [t for t in singles if t in tests or (MULTI_SCALE in tests and t in dense)]
    files = {test: folder / "scores/{}_{}.npy".format(*singles[test]) for test in needed}
    if missing := {file: singles[test] for test, file in files.items() if not file.exists()}:
        _test(folder, missing, config.test_batch_size, parallel)
    found = {test: np.load(file) for test, file in files.items()}
    if MULTI_SCALE in tests:
        found[MULTI_SCALE] = evaluation.average({test: found[test] for test in dense})
    labels = np.load(folder / "scores/labels.npy")
    return Scores(labels, {test: found[test] for test in tests})


def _test(
    folder: Path, tests: Mapping[Path, tuple[str, int]], batch_size: int, parallel: Parallel
) -> None:
    """Tests the run in a folder, in this process; each test's scores go to its file."""
    parallel = parallel.of_this_process()
    run = finished.load(folder)
    _, split = run_data.splits(run.config)
    model = start.model(run.config, len(split.class_names))
    net = parallel.replicate(finished.network(run, model))
    tally = pipeline.Tally(run.config.on_bad_image == "skip")
    for file, (test, side) in tests.items():
        step = parallel.over_batch(_STEPS[test, run.config.flip])
        # A seventh of the crop is two places of the last map of models A to C: few shapes.
        images = pipeline.whole_images(split, side, model.arch.image_size // 7, tally)
        score = functools.partial(_score, step, net, parallel)
        found, labels = evaluation.predict(score, images, batch_size)
        file.parent.mkdir(exist_ok=True)
        _save(file.with_name("labels.npy"), labels)
        _save(file, found)


def _score(step: Any, net: Any, parallel: Parallel, batch: Any) -> Any:
    return step(net, parallel.split(batch))


def errors(scores: Scores | None, test: str) -> tuple[float, float]:
    """Top-1 and top-5 error of a run, fractions; of five classes or fewer no top-5: not a number.

    A run that diverged, of which there are no scores, is wrong everywhere.
    """
    if scores is None:
        return 1.0, 1.0
    found, labels = scores.by_test[test], scores.labels
    top_5 = evaluation.top_error(found, labels, 5) if found.shape[1] > 5 else math.nan
    return evaluation.top_error(found, labels, 1), top_5


def learned(top_1: Mapping[str, Sequence[float]], at_most: float) -> Claim:
    """The regression band: that every run learns, by its 10-view top-1 error."""
    return Claim(
        f"Every run learns: {TEN_VIEW} top-1 error at most {at_most:.0%} in every seed",
        max(error for of in top_1.values() for error in of) <= at_most,
        "\n      ".join(f"{arm}: {results.summary(of, ' %', 100)}" for arm, of in top_1.items()),
    )


def cell(of_seeds: Sequence[tuple[float, float]]) -> str:
    """A cell of a table: top-1 / top-5 error in %, means and intervals; – for what there is not."""
    by_k = zip(*of_seeds, strict=True)
    return " / ".join("–" if np.isnan(of_k).any() else results.short(of_k, 100) for of_k in by_k)


def _save(file: Path, array: np.ndarray) -> None:
    temporary = file.with_suffix(".tmp")
    with temporary.open("wb") as stream:
        np.save(stream, array)
    os.replace(temporary, file)
