"""The tests of the paper's tables on finished runs, kept in the run's folder (He et al. 2015, §3).

Images are mirrored too if they were in training.

scores/labels.npy          of every test example, in order
scores/ten_view_<s>.npy    softmax scores ``[n, classes]`` of images with a shorter side of s
scores/dense_<s>.npy       the same of every window, densely
"""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

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
        ten_view: softmax scores ``[n, classes]``.
        dense: the same by scale; there may be none.
    """

    labels: np.ndarray
    ten_view: np.ndarray
    dense: Mapping[int, np.ndarray]

    @functools.cached_property
    def multi_scale(self) -> np.ndarray:
        """Softmax scores averaged over the scales ``[n, classes]``."""
        return evaluation.average(self.dense)

    def error(self, scores: np.ndarray, k: int) -> float:
        """Top-k error of scores, a fraction; of k classes or fewer, none."""
        return evaluation.top_error(scores, self.labels, min(k, scores.shape[1]))


def check(config: ScoredConfig, size: int, parallel: Parallel) -> None:
    """Raises a ValueError if networks for images of a size cannot be tested so."""
    for field, scales in (("scales", config.scales), ("ten_view_scale", [config.ten_view_scale])):
        if min(scales, default=size) < size or len(set(scales)) < len(scales):
            raise ValueError(
                f"config.{field} is {getattr(config, field)}, expected sides of at least the "
                f"{size} pixels of the networks, each once."
            )
    if config.test_batch_size < 1 or config.test_batch_size % len(parallel.devices):
        raise ValueError(
            f"config.test_batch_size is {config.test_batch_size}, expected a multiple of the "
            f"{len(parallel.devices)} devices that share it."
        )


def scores(folder: Path, config: ScoredConfig, parallel: Parallel) -> Scores | None:
    """The tests of a run, None if it diverged; those that its folder holds are not made again.

    Args:
        folder: of the run.
        config: how it is tested; the run itself is that of the folder.
        parallel: the devices.

    Raises:
        ValueError: the run is not finished, or its checkpoint is another network's.
    """
    if results.diverged(folder):
        return None
    run = finished.load(folder)
    _, split = run_data.splits(run.config)
    model = start.model(run.config, len(split.class_names))
    net = parallel.replicate(finished.network(run, model))
    tally = pipeline.Tally(run.config.on_bad_image == "skip")
    kept = folder / "scores"
    kept.mkdir(exist_ok=True)

    def of_test(test: str, side: int) -> np.ndarray:
        file = kept / f"{test}_{side}.npy"
        if not file.exists():
            step = parallel.over_batch(_STEPS[test, run.config.flip])
            # A seventh of the crop is two places of the last map of models A to C: few shapes.
            trimmed = model.arch.image_size // 7
            images = pipeline.whole_images(split, side, trimmed, tally)
            found, labels = evaluation.predict(
                lambda batch: step(net, parallel.split(batch)), images, config.test_batch_size
            )
            _save(kept / "labels.npy", labels)
            _save(file, found)
        return np.load(file)

    ten_view = of_test("ten_view", config.ten_view_scale)
    dense = {side: of_test("dense", side) for side in config.scales}
    return Scores(np.load(kept / "labels.npy"), ten_view, dense)


def errors(scores: Scores | None, scales: Sequence[int]) -> list[tuple[float, float]]:
    """Top-1 and top-5 error of a run in ten views, at every scale, and at all of them together.

    A run that diverged, of which there are no scores, is wrong everywhere.
    """
    if scores is None:
        return [(1.0, 1.0)] * (1 + len(scales) + bool(scales))
    tests = [scores.ten_view, *(scores.dense[side] for side in scales)]
    if scales:
        tests.append(scores.multi_scale)
    return [(scores.error(test, 1), scores.error(test, 5)) for test in tests]


def learned(top_1: Mapping[str, Sequence[float]], at_most: float) -> Claim:
    """The regression band: that every run learns, by its 10-view top-1 error."""
    return Claim(
        f"Every run learns: {TEN_VIEW} top-1 error at most {at_most:.0%} in every seed",
        max(error for of in top_1.values() for error in of) <= at_most,
        "\n      ".join(f"{arm}: {results.summary(of, ' %', 100)}" for arm, of in top_1.items()),
    )


def cell(of_seeds: Sequence[tuple[float, float]]) -> str:
    """A cell of a table: top-1 / top-5 error in %, means and intervals."""
    return " / ".join(results.short(of_k, 100) for of_k in zip(*of_seeds, strict=True))


def _save(file: Path, array: np.ndarray) -> None:
    temporary = file.with_suffix(".tmp")
    with temporary.open("wb") as stream:
        np.save(stream, array)
    os.replace(temporary, file)
