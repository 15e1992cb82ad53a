"""He et al. 2015, Table 7: six models together.

    python -m experiments.ensemble --scale=laptop --config.runs=runs/large_models_laptop
    python -m experiments.ensemble --seeds=1 --config.members=DIR,DIR,...

The four models of Table 6 and two more of A and B, each tested densely at all scales; their softmax
scores are averaged. With ``runs``, those of `experiments.large_models` are not trained again; with
``members``, it is the ensemble of any finished runs.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments import large_models
from experiments.harness import claims, cli, errors, figures, intervals, machine, tables, testing
from experiments.harness.claims import Claim
from experiments.harness.errors import Pair
from experiments.harness.experiment import Experiment, Report
from experiments.harness.plans import Arm, Plan
from experiments.harness.testing import MULTI_SCALE, Scores
from experiments.large_models import A, B, C
from prelu_jax import arch, evaluation, files

ENSEMBLE = "ensemble"
# "Six models including those of Table 6", "only one model C" (§4): the paper does not name the
# others.
_AGAIN = (A, B)
_OTHER_SEED = 1000  # of the fifth and the sixth member: ensembles of several seeds share none
_MEMBERS = "members.txt"  # in the work folder: names the members of its ensemble
_MODELS = "the models in "
_PAPER_TOP_5 = {C: "5.71 (validation)", ENSEMBLE: "4.94 (test)"}

Errors = Mapping[str, Sequence[Pair]]  # member or ensemble -> of each seed
Ensembles = Sequence[Mapping[str, Scores | None]]  # of each seed: member -> scores


@dataclasses.dataclass
class Config(large_models.Config):
    """The members' training and tests.

    Attributes:
        runs: work folder of large_models, whose runs are taken; empty for none.
        members: folders of finished runs, separated by commas: their ensemble, nothing is trained.
    """

    runs: str = ""
    members: str = ""


SCALES = {
    scale: Config(**dataclasses.asdict(config)) for scale, config in large_models.SCALES.items()
}


def plan(config: Config, workdir: Path, seeds: Sequence[int]) -> Plan:
    """Return the runs of the members; none where ``members`` names finished ones."""
    _check_members(workdir, _members(config, workdir, seeds))
    if config.members:
        return {}
    large_models.check(config)
    runs = large_models.folder_of_runs(config.runs, workdir)
    return testing.plan(config, runs, seeds, _arms(config), [MULTI_SCALE])


def _arms(config: Config) -> list[Arm]:
    """Return the members of every ensemble."""
    models = large_models.arms(config)
    return models + [
        dataclasses.replace(model, name=f"{model.name}, again", offset=_OTHER_SEED)
        for model in models
        if model.name in _AGAIN
    ]


def _members(config: Config, workdir: Path, seeds: Sequence[int]) -> str:
    """Return the content of members.txt, or raise a ValueError if there cannot be such members."""
    if config.members:
        return ", ".join(map(str, _folders(config, seeds)))
    # The same for every path of the folder.
    runs = large_models.folder_of_runs(config.runs, workdir)
    return f"{_MODELS}{os.path.relpath(os.path.realpath(runs), os.path.realpath(workdir))}"


def _folders(config: Config, seeds: Sequence[int]) -> list[Path]:
    """Return the finished runs that ``members`` names."""
    folders = [
        files.local_path(folder.strip(), "config.members") for folder in config.members.split(",")
    ]
    if len(seeds) > 1:
        raise ValueError("config.members is one ensemble: expected --seeds=1.")
    if config.runs or not 1 < len(folders) == len(set(folders)):
        raise ValueError(
            f"config.members is {config.members}, expected two folders or more, each once, and "
            "config.runs to be empty."
        )
    return folders


def report(config: Config, workdir: Path, seeds: Sequence[int]) -> Report:
    """Return the table, the figure and the claims; finished runs of the user claim nothing."""
    if config.members:
        ensembles, caption = _test_given(config, _folders(config, seeds))
        labels: Sequence[int | str] = [""]  # the members' seeds are their own
    else:
        runs = large_models.folder_of_runs(config.runs, workdir)
        scores = testing.score_all(config, runs, seeds, _arms(config), [MULTI_SCALE])
        ensembles = [
            dict(zip(scores, one, strict=True)) for one in zip(*scores.values(), strict=True)
        ]
        caption, labels = large_models.caption(config, seeds), seeds
    members = errors_of(ensembles)
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_text(workdir / _MEMBERS, f"{_members(config, workdir, seeds)}\n")
    rows = errors.rows({name: {MULTI_SCALE: pairs} for name, pairs in members.items()}, labels)
    top_1 = {MULTI_SCALE: drawn(ensembles, members)}
    return Report(
        [] if config.members else judge(config, members),
        markdown(members),
        {"errors.csv": rows},
        {"figure": figures.errors_by_test(top_1, caption, "Model")},
    )


def _test_given(config: Config, folders: Sequence[Path]) -> tuple[Ensembles, str]:
    """Return the scores of finished runs, and the caption of their figure."""
    parallel = machine.devices(config.test_batch_size)  # before anything is read on them
    runs = testing.check_comparable(folders, "config.members")
    for run in runs:
        testing.check(config, arch.get(run.arch).image_size, parallel, [MULTI_SCALE])
    tested = {str(f): testing.scores(f, config, parallel, [MULTI_SCALE]) for f in folders}
    steps = ", ".join(str(n) for n in sorted({run.num_steps for run in runs}))
    return [tested], f"{runs[0].dataset}; {len(runs)} finished runs of {steps} steps; n = 1"


def _check_members(workdir: Path, members: str) -> None:
    """Raise a ValueError if the work folder holds the ensemble of other members."""
    file = workdir / _MEMBERS
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


def errors_of(ensembles: Ensembles) -> dict[str, list[Pair]]:
    """Return multi-scale errors of every member, and of the ensemble without diverged members.

    Raises:
        ValueError: two members were tested on other examples.
    """
    by_member: dict[str, list[Pair]] = {member: [] for member in (*ensembles[0], ENSEMBLE)}
    for members in ensembles:
        for member, tested in {**members, ENSEMBLE: _together(members)}.items():
            by_member[member].append(errors.errors(tested, MULTI_SCALE))
    return by_member


def _together(members: Mapping[str, Scores | None]) -> Scores | None:
    """Return the scores of an ensemble; None if all its members diverged."""
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


def judge(config: Config, members: Errors) -> list[Claim]:
    """Return Table 7's statement, as a difference within seeds whose interval decides."""
    top_1 = {name: [one for one, _ in pairs] for name, pairs in members.items()}
    ensemble = top_1.pop(ENSEMBLE)
    best = min(top_1.values(), key=sum)
    statement = "Table 7: the ensemble has a lower top-1 error than its best member"
    number = large_models.number_of_claims(config.scales)
    return [claims.lower_error_claim(statement, ensemble, best, number)]


def drawn(ensembles: Ensembles, members: Errors) -> dict[str, list[float]]:
    """Return the top-1 errors for the figure; not a number for a member that diverged, or all."""
    top_1: dict[str, list[float]] = {}
    for name, of_seeds in members.items():
        tested = [[one[name]] if name in one else list(one.values()) for one in ensembles]
        top_1[name] = [
            error if any(scores is not None for scores in of_seed) else math.nan
            for (error, _), of_seed in zip(of_seeds, tested, strict=True)
        ]
    return top_1


def markdown(members: Errors) -> str:
    """Return Table 7: the paper beside this experiment's seeds."""
    rows = [
        (name, _PAPER_TOP_5.get(name, "–"), errors.cell(of_seeds))
        for name, of_seeds in members.items()
    ]
    return tables.document(
        "Dense test, multi-scale; top-1 / top-5 error, %. "
        f"{intervals.heading(len(members[ENSEMBLE]))}. A member that diverged counts 100 % and is "
        "left out of its ensemble; an ensemble of none counts 100 % too.",
        tables.markdown(("", "paper, ImageNet, top-5", "ours"), rows),
    )


EXPERIMENT = Experiment("ensemble", SCALES, report, plan, default_seeds=5)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
