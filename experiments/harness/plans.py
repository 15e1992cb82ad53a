"""Plans: which runs an experiment trains, and in which folders."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.harness import configs
from prelu_jax.training.config import TrainConfig


class Run(NamedTuple):
    """One training run: its label for people, and its configuration."""

    label: str
    config: TrainConfig


Plan = Mapping[Path, Run]  # folder -> run, in the order of training


@dataclasses.dataclass(frozen=True)
class Arm:
    """One of the settings that an experiment compares; it has a run for every seed."""

    name: str  # for people
    folder: str  # path of its folder in that of the experiment
    fields: Mapping[str, Any]  # of the configuration that it sets
    offset: int = 0  # of its seeds from those of the experiment


def folder(workdir: Path, arm: str, seed: int) -> Path:
    """Return the folder of a run, in the folder of its arm."""
    return workdir / arm / f"seed_{seed}"


def folders(workdir: Path, seeds: Iterable[int], arms: Iterable[Arm]) -> dict[str, list[Path]]:
    """Return the run folders of every arm by its name, in the order of the seeds."""
    return {
        arm.name: [folder(workdir, arm.folder, seed + arm.offset) for seed in seeds] for arm in arms
    }


def of_arms(config: TrainConfig, workdir: Path, seeds: Sequence[int], arms: Sequence[Arm]) -> Plan:
    """Return the plan that trains every arm with every seed, the first seed of all arms first.

    Each seed begins with another arm, so that every part of the runs (`--part`) has all arms.
    """
    runs = {}
    for i, first in enumerate(seeds):
        turn = i % len(arms)
        for arm in (*arms[turn:], *arms[:turn]):
            seed = first + arm.offset
            own = configs.train_config(config, **{**arm.fields, "seed": seed})
            runs[folder(workdir, arm.folder, seed)] = Run(f"{arm.name} seed {seed}", own)
    return runs
