"""The tests of the paper's tables on finished runs, kept in the run's folder (He et al. 2015, §3).

Images are mirrored if training did that: ten views, otherwise five. The file has the same name.

scores/labels.npy          of every test example, in order
scores/ten_view_<s>.npy    softmax scores ``[n, classes]`` of images with a shorter side of s
scores/dense_<s>.npy       the same of every window, densely
scores/crops_<s>.npy       the same of every window as a crop of its own
"""

import dataclasses
import functools
import pickle
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from tqdm import tqdm

from experiments.harness import machine, plans, results
from experiments.harness.plans import Arm, Plan
from prelu_jax import arch, evaluation, files
from prelu_jax.data import pipeline
from prelu_jax.runs import finished, identity
from prelu_jax.training import recipe
from prelu_jax.training.config import TrainConfig
from prelu_jax.training.parallel import AXIS, Parallel

# Names of the tests in tables and `Scores`; `errors.label` returns those for people.
TEN_VIEW, MULTI_SCALE = "10-view", "multi-scale"

# Made once: `Parallel` compiles a function once.
_STEPS = {
    (test, mirror): functools.partial(step, axis_name=AXIS, mirror=mirror)
    for test, step in (
        ("ten_view", evaluation.ten_view_step),
        ("dense", evaluation.dense_step),
        ("crops", evaluation.crops_step),
    )
    for mirror in (True, False)
}


@dataclasses.dataclass
class ScoredConfig(TrainConfig):
    """A `TrainConfig`, and how its runs are tested when they are finished.

    Attributes:
        scales: shorter sides in pixels of the images of the dense test; none for no dense test.
        ten_view_scale: shorter side in pixels of the images of the test in ten views.
        test_batch_size: whole images of a batch of these tests, over all devices.
    """

    scales: tuple[int, ...] = evaluation.SCALES
    ten_view_scale: int = evaluation.SCALES[0]
    test_batch_size: int = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """The scores of a run for every test example."""

    labels: np.ndarray  # int32 ``[n]``
    by_test: Mapping[str, np.ndarray]  # test -> softmax scores ``[n, classes]``


def plan(
    config: ScoredConfig,
    workdir: Path,
    seeds: Sequence[int],
    arms: Sequence[Arm],
    tests: Sequence[str],
) -> Plan:
    """Return the plan of runs that are tested afterwards.

    Raises:
        ValueError: they cannot be tested as the configuration asks.
    """
    parallel = machine.devices(config.batch_size)
    for name in dict.fromkeys(arm.fields.get("arch", config.arch) for arm in arms):
        check(config, arch.get(name).image_size, parallel, tests)
    return plans.of_arms(config, workdir, seeds, arms)


def score_all(
    config: ScoredConfig,
    workdir: Path,
    seeds: Sequence[int],
    arms: Sequence[Arm],
    tests: Sequence[str],
) -> dict[str, list[Scores | None]]:
    """Return the scores of the trained runs of a `plan` by arm, in the order of the seeds."""
    parallel = machine.devices(config.batch_size)
    folders = plans.folders(workdir, seeds, arms)
    runs = [(name, folder) for name, of_arm in folders.items() for folder in of_arm]
    by_arm: dict[str, list[Scores | None]] = {name: [] for name in folders}
    for name, folder in tqdm(runs, desc="tests", unit="run"):
        by_arm[name].append(scores(folder, config, parallel, tests))
    return by_arm


def check(config: ScoredConfig, size: int, parallel: Parallel, tests: Sequence[str]) -> None:
    """Raise a ValueError if networks for images of ``size`` pixels cannot be tested so."""
    asked: dict[str, Sequence[int]] = {}
    if TEN_VIEW in tests:
        asked["ten_view_scale"] = [config.ten_view_scale]
    if set(tests) - {TEN_VIEW}:
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


def dense_test_name(side: int) -> str:
    """Return the name of the dense test at a scale, ``side`` pixels of the shorter side."""
    return f"s = {side}"


def crops_test_name(side: int) -> str:
    """Return the name of the test on crops, one for each window of the dense test at a scale."""
    return f"{dense_test_name(side)}, crops"


def scores(
    folder: Path, config: ScoredConfig, parallel: Parallel, tests: Sequence[str]
) -> Scores | None:
    """Return the scores of a run, None if it diverged; its folder keeps those computed before.

    Args:
        folder: of the run.
        config: how it is tested; the run itself is that of the folder.
        parallel: the devices.
        tests: those asked for: `TEN_VIEW`, `MULTI_SCALE`, and names of dense tests and of crops at
            scales of the configuration.

    Raises:
        ValueError: the run is not finished, or its checkpoint is another network's.
    """
    if results.diverged(folder):
        return None
    dense = {dense_test_name(side): ("dense", side) for side in config.scales}
    crops = {crops_test_name(side): ("crops", side) for side in config.scales}
    singles = {TEN_VIEW: ("ten_view", config.ten_view_scale), **dense, **crops}
    needed = [t for t in singles if t in tests or (MULTI_SCALE in tests and t in dense)]
    paths = {test: folder / "scores/{}_{}.npy".format(*singles[test]) for test in needed}
    kept = folder / "scores/labels.npy"
    labels = _load(kept, 1)
    missing = {
        file: singles[test]
        for test, file in paths.items()
        if labels is None or len(there := _load(file, 2, ())) != len(labels) or not len(there)
    }
    if missing:
        _test(folder, missing, config.test_batch_size, parallel)
        labels = np.load(kept)
    by_test = {test: np.load(file) for test, file in paths.items()}
    if MULTI_SCALE in tests:
        by_test[MULTI_SCALE] = evaluation.average({test: by_test[test] for test in dense})
    return Scores(labels, {test: by_test[test] for test in tests})


def _test(
    folder: Path, tests: Mapping[Path, tuple[str, int]], batch_size: int, parallel: Parallel
) -> None:
    """Test the run in a folder, in this process, and write the scores of each test to its file."""
    parallel = parallel.of_this_process()
    run = finished.load(folder)
    train, split = recipe.splits(run.config)
    identity.check_data(folder, run.data, identity.data_facts(train, split))
    model = recipe.network(run.config, len(split.class_names))
    net = parallel.replicate(finished.inference_state(run, model))
    issues = pipeline.ImageIssues(run.config.on_bad_image == "skip", run.config.max_pixels)
    for file, (test, side) in tests.items():
        step = parallel.over_batch(_STEPS[test, run.config.flip])
        # A seventh of the crop is two places of the last map of models A to C: few shapes.
        images = pipeline.whole_images(split, side, model.arch.image_size // 7, issues)
        score = functools.partial(_score, step, net, parallel)
        predicted, labels = evaluation.predict(score, images, batch_size)
        file.parent.mkdir(exist_ok=True)
        _save(file.with_name("labels.npy"), labels)
        _save(file, predicted)


def _score(step: Any, net: Any, parallel: Parallel, batch: Any) -> Any:
    return step(net, parallel.split(batch))


def check_comparable(folders: Iterable[Path], field: str) -> list[TrainConfig]:
    """Return the configurations of finished runs.

    Args:
        folders: of the runs.
        field: of the configuration that names them, for errors.

    Raises:
        ValueError: the runs were tested on other examples, or their classes differ.
    """
    runs = {folder: finished.config(folder, field) for folder in folders}
    data = {}
    for folder, c in runs.items():
        place = f" in {c.data_dir}" if c.data_dir else ""
        data[folder] = f"{c.dataset}/{c.test_split}{place}, classes {c.classes or 'all'}"
    if len(set(data.values())) > 1:
        raise ValueError(
            f"{field}: expected runs with the same test examples and classes, got "
            f"{'; '.join(f'{folder}: {of_run}' for folder, of_run in data.items())}."
        )
    return list(runs.values())


def _load(file: Path, axes: int, missing: Any = None) -> Any:
    """Return the array in a file, or ``missing`` if there is none or it is damaged."""
    try:
        array = np.load(file)
        if isinstance(array, np.ndarray) and array.ndim == axes and np.isfinite(array).all():
            return array
        reason = "no array of numbers of that kind"
    except FileNotFoundError:
        return missing
    except (ValueError, EOFError, TypeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error)
    logging.warning("%s is damaged (%s): the test is made again.", file, reason)
    return missing


def _save(file: Path, array: np.ndarray) -> None:
    with files.replacing(file) as stream:
        np.save(stream, array)
