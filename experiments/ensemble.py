"""He et al. 2015, Table 7: six models together.

    python -m experiments.ensemble --scale=laptop --config.runs=runs/large_models_laptop
    python -m experiments.ensemble --seeds=1 --config.members=DIR,DIR,...

The four models of Table 6 and two more of A and B, each tested densely at all scales; their softmax
scores are averaged. With ``runs``, those of `experiments.large_models` are not trained again; with
``members``, it is the ensemble of any finished runs.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments import common, figures, large_models, machine, results, testing
from experiments.large_models import A_RELU, A, B, C
from experiments.results import Claim
from experiments.testing import MULTI_SCALE, Scores
from prelu_jax import arch, evaluation, files
from prelu_jax.runs import finished
from prelu_jax.training.config import TrainConfig

ENSEMBLE = "ensemble"
_OTHER_SEED = 1000  # of the fifth and the sixth member: ensembles of several seeds share none
# "Six models including those of Table 6", "only one model C" (§4): what the others are, it leaves
# open.
MEMBERS = ((A_RELU, 0), (A, 0), (B, 0), (C, 0), (A, _OTHER_SEED), (B, _OTHER_SEED))
_CLAIMS = 1 + large_models.CLAIMS  # that intervals decide on the runs of these models
_CLAIM = "members.txt"  # in the work folder: whose ensemble is there
_MODELS = "the models in "
_PAPER_TOP_5 = {C: "5.71 (validation)", ENSEMBLE: "4.94 (test)"}

Errors = Mapping[str, Sequence[tuple[float, float]]]  # member or ensemble -> of each seed


@dataclasses.dataclass
class Config(large_models.Config):
    """The members' training and tests."""

    runs: str = ""  # work folder of large_models, whose runs are taken; empty for none
    members: str = ""  # folders of finished runs, comma-separated: their ensemble, nothing trained


def of_scale(scale: str) -> Config:
    """The configuration of `experiments.large_models`."""
    return Config(**dataclasses.asdict(large_models.SCALES[scale]()))


def run(config: Config, workdir: Path, seeds: int) -> list[Claim]:
    """Trains and tests the members, or reads them; writes the table and the figure."""
    if config.members:
        return _given(config, workdir, seeds)
    # The same folder by whatever path: members.txt lists the members of this ensemble.
    runs = large_models.folder_of_runs(config.runs, workdir)
    members = f"{_MODELS}{os.path.relpath(os.path.realpath(runs), os.path.realpath(workdir))}"
    check_claim(workdir, members)
    first = range(config.seed, config.seed + seeds)
    which = [(model, seed + other) for seed in first for model, other in MEMBERS]
    tested = large_models.train_and_test(config, which, runs, [MULTI_SCALE])
    ensembles = [
        {name(member): tested[member[0], seed + member[1]] for member in MEMBERS} for seed in first
    ]
    errors = errors_of(ensembles)
    _write(workdir, members, ensembles, errors, large_models.caption(config, seeds), first)
    return judge(errors)


def _given(config: Config, workdir: Path, seeds: int) -> list[Claim]:
    """The ensemble of finished runs; it claims nothing."""
    folders = [
        files.local_path(folder.strip(), "config.members") for folder in config.members.split(",")
    ]
    common.check_in_one_piece("config.members")
    if seeds > 1:
        raise ValueError("config.members is one ensemble: expected --seeds=1.")
    if config.runs or not 1 < len(folders) == len(set(folders)):
        raise ValueError(
            f"config.members is {config.members}, expected two folders or more, each once, and "
            "config.runs to be empty."
        )
    members = ", ".join(map(str, folders))
    check_claim(workdir, members)
    parallel = machine.devices(config.test_batch_size)  # before anything is read on them
    tests = [MULTI_SCALE]
    runs = check_alike(folders)
    for of_run in runs:
        testing.check(config, arch.get(of_run.arch).image_size, parallel, tests)
    tested = {str(folder): testing.scores(folder, config, parallel, tests) for folder in folders}
    steps = ", ".join(str(n) for n in sorted({of_run.num_steps for of_run in runs}))
    caption = f"{runs[0].dataset}; {len(runs)} finished runs of {steps} steps; n = 1"
    no_seeds = [""]  # the members' seeds are their own
    _write(workdir, members, [tested], errors_of([tested]), caption, no_seeds)
    return []


def check_claim(workdir: Path, members: str) -> None:
    """Raises a ValueError if the work folder holds the ensemble of others."""
    file = workdir / _CLAIM
    there = files.read_text(file, "Remove it.").strip() if file.exists() else members
    if there != members and _places(workdir, there) != _places(workdir, members):
        raise ValueError(
            f"{workdir} holds the ensemble of {there}, not of {members}. Choose another --workdir."
        )


def _places(workdir: Path, members: str) -> list[str]:
    """Return the folders that members.txt names, whatever path leads to them.

    The work folder of `experiments.large_models` is a path from this one's, so that both may move;
    in those of earlier versions, from the current directory, as config.members is.
    """
    models = members.removeprefix(_MODELS)
    start = workdir if models != members and (workdir / models / "a_prelu").is_dir() else Path()
    return [os.path.realpath(start / folder) for folder in models.split(", ")]


def check_alike(folders: Iterable[Path]) -> list[TrainConfig]:
    """Raises a ValueError unless the runs were tested on the same examples of the same classes.

    Returns:
        Their configurations.
    """
    configs = {folder: finished.config(folder, "config.members") for folder in folders}
    about = {}
    for folder, c in configs.items():
        place = f" in {c.data_dir}" if c.data_dir else ""
        about[folder] = f"{c.dataset}/{c.test_split}{place}, classes {c.classes or 'all'}"
    if len(set(about.values())) > 1:
        raise ValueError(
            "config.members: expected runs with the same test examples and classes, got "
            f"{'; '.join(f'{folder}: {of}' for folder, of in about.items())}."
        )
    return list(configs.values())


def name(member: tuple[str, int]) -> str:
    """What a member of every ensemble is called."""
    model, other = member
    return f"{model}, again" if other else model


def errors_of(
    ensembles: Sequence[Mapping[str, Scores | None]],
) -> dict[str, list[tuple[float, float]]]:
    """Multi-scale errors of every member, and of the ensemble of those that did not diverge.

    Args:
        ensembles: of each seed: member -> what it says of the test examples.

    Raises:
        ValueError: two members were tested on other examples.
    """
    errors: dict[str, list[tuple[float, float]]] = {m: [] for m in (*ensembles[0], ENSEMBLE)}
    for members in ensembles:
        for member, tested in {**members, ENSEMBLE: _together(members)}.items():
            errors[member].append(testing.errors(tested, MULTI_SCALE))
    return errors


def _together(members: Mapping[str, Scores | None]) -> Scores | None:
    """What an ensemble says; None if all its members diverged."""
    sound = {member: tested for member, tested in members.items() if tested is not None}
    if not sound:
        return None
    first, *others = sound
    labels = sound[first].labels
    for other in others:
        if not np.array_equal(sound[other].labels, labels):
            raise ValueError(f"{first} and {other} were tested on examples with other labels.")
    average = evaluation.average({m: tested.by_test[MULTI_SCALE] for m, tested in sound.items()})
    return Scores(labels, {MULTI_SCALE: average})


def judge(errors: Errors) -> list[Claim]:
    """Return Table 7's statement, as a difference within seeds whose interval decides."""
    top_1 = {name: [one for one, _ in of] for name, of in errors.items()}
    members = [of for name, of in top_1.items() if name != ENSEMBLE]
    best = min(members, key=sum)
    differences = [a - b for a, b in zip(top_1[ENSEMBLE], best, strict=True)]
    statement = "Table 7: the ensemble has a lower top-1 error than its best member"
    return [results.below_zero_claim(statement, differences, " points", 100, claims=_CLAIMS)]


def drawn(
    ensembles: Sequence[Mapping[str, Scores | None]], errors: Errors
) -> dict[str, list[float]]:
    """Return the top-1 errors for the figure; not a number for a member that diverged, or all."""
    top_1: dict[str, list[float]] = {}
    for name, of_seeds in errors.items():
        tested = [[one[name]] if name in one else list(one.values()) for one in ensembles]
        top_1[name] = [
            error if any(scores is not None for scores in of_seed) else math.nan
            for (error, _), of_seed in zip(of_seeds, tested, strict=True)
        ]
    return top_1


def _write(
    workdir: Path,
    members: str,
    ensembles: Sequence[Mapping[str, Scores | None]],
    errors: Errors,
    caption: str,
    seeds: Sequence[int | str],
) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_text(workdir / _CLAIM, f"{members}\n")
    of_test = {MULTI_SCALE: drawn(ensembles, errors)}
    written = figures.errors_by_test(of_test, caption, workdir / "figure", "Model")
    table, rows = workdir / "table.md", workdir / "errors.csv"
    text = markdown(errors)
    files.write_text(table, text)
    testing.write_csv({name: {MULTI_SCALE: of} for name, of in errors.items()}, seeds, rows)
    print(f"\n{text}\nWritten:", *written, table, rows, sep="\n  ")


def markdown(errors: Errors) -> str:
    """Return Table 7: the paper beside this experiment's seeds."""
    shown = results.heading(len(errors[ENSEMBLE]))
    lines = [
        f"Dense test, multi-scale; top-1 / top-5 error, %. {shown}. A member that diverged counts "
        "100 % and is left out of its ensemble; an ensemble of none counts 100 % too.",
        "",
        "| | paper, ImageNet, top-5 | ours |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {_PAPER_TOP_5.get(name, '–')} | {testing.cell(of)} |"
        for name, of in errors.items()
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    scales = {scale: functools.partial(of_scale, scale) for scale in large_models.SCALES}
    common.main("ensemble", scales, run, default_seeds=5)
