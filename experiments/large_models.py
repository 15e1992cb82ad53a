"""He et al. 2015, Tables 4, 5 and 6: models A, B and C, tested in ten views and densely.

    python -m experiments.large_models --scale=laptop

Model A with ReLU and with PReLU at one schedule (Table 4), and models B and C with PReLU; each is
tested in ten views (Table 5) and densely at three scales and all of them together (Tables 4, 6).
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.harness import (
    claims,
    cli,
    configs,
    drawing,
    figures,
    intervals,
    machine,
    plans,
    tables,
    testing,
)
from experiments.harness.claims import Claim
from experiments.harness.configs import CIFAR10, DIGITS, FASHION_MNIST, IMAGENET
from experiments.harness.experiment import Experiment, Report
from experiments.harness.plans import Plan, Run
from experiments.harness.testing import MULTI_SCALE, TEN_VIEW, Pair, ScoredConfig, Scores, cell
from prelu_jax import arch, files

A_RELU, A, B, C = "A, ReLU", "A, PReLU", "B, PReLU", "C, PReLU"
MODELS = {A_RELU: (0, "relu"), A: (0, "prelu"), B: (1, "prelu"), C: (2, "prelu")}  # arch, rectifier

CLAIMS = 5  # that intervals decide

# The paper's tables, top-1 and top-5 error in %.
_PAPER_10_VIEW = {A_RELU: (26.48, 8.59), A: (25.59, 8.23), B: (25.53, 8.13), C: (24.27, 7.38)}
_PAPER_MULTI_SCALE = {A_RELU: (24.02, 6.51), A: (22.97, 6.28), B: (22.85, 6.27), C: (21.59, 5.71)}
_PAPER_TABLE_4 = {
    A_RELU: ((26.25, 8.25), (24.77, 7.26), (25.46, 7.63), (24.02, 6.51)),
    A: ((25.81, 8.08), (24.20, 7.03), (24.83, 7.39), (22.97, 6.28)),
}

Errors = Mapping[str, Mapping[str, Sequence[Pair]]]  # model -> test -> of each seed
Tested = Mapping[tuple[str, int], Scores | None]  # (model, seed) -> scores; None if it diverged


@dataclasses.dataclass
class Config(ScoredConfig):
    """The training and the tests of every model, and what the claims ask for."""

    archs: tuple[str, ...] = ("model_a", "model_b", "model_c")
    arch: str = ""  # set for each model; leave it empty
    rectifier: str = ""  # the same
    learned: float = 0.35  # the regression band: no run ends above this 10-view top-1 error


# A quarter of the paper's sides: its jitter, its scales of Table 4, its 10-view scale.
_NARROW: dict[str, Any] = {
    "archs": ("model_a_narrow", "model_b_narrow", "model_c_narrow"),
    "min_side": 64,
    "max_side": 128,
    "scales": (64, 96, 120),
    "ten_view_scale": 64,
    "test_batch_size": 50,
    "batch_size": 32,
    "learning_rate": 0.003,  # of convergence_22, where He's runs all live
}


def laptop() -> Config:
    """Digits, narrow models with the paper's maps: about ten minutes a run on two cores."""
    return Config(
        **{**DIGITS, **_NARROW},
        learned=0.10,
        num_steps=2000,
        drop_epochs="25,35",
        log_every=50,
        eval_every=100,
        checkpoint_every=500,
    )


def fashion_mnist() -> Config:
    """Fashion-MNIST, a thousand images of each class, the same models."""
    return Config(
        **{**FASHION_MNIST, **_NARROW},
        learned=0.30,
        examples_per_class=1000,
        num_steps=3000,
        drop_epochs="6,8",
        log_every=100,
        eval_every=250,
        checkpoint_every=500,
    )


def cifar10() -> Config:
    """CIFAR-10 photos, the same models: an hour or more a run on two cores."""
    return Config(
        **{**CIFAR10, **_NARROW},
        learned=0.65,
        colour=0.1,
        num_steps=12_000,
        drop_epochs="5,7",
        log_every=100,
        eval_every=1000,
        checkpoint_every=1000,
    )


def imagenet() -> Config:
    """The paper's own setting: 80 epochs of 224-pixel crops of images jittered in scale."""
    return Config(
        **IMAGENET,
        max_side=512,
        num_steps=800_000,
        drop_epochs="40,60",  # the paper gives none; its ReLU and PReLU nets share theirs
        eval_every=10_000,
        checkpoint_every=5_000,
    )


def plan(config: Config, workdir: Path, seeds: Sequence[int]) -> Plan:
    """Return the runs of every model."""
    return plan_of(config, workdir, _runs(seeds), _tests(config))


def _runs(seeds: Sequence[int]) -> list[tuple[str, int]]:
    return [(model, seed) for seed in seeds for model in MODELS]


def _tests(config: Config) -> list[str]:
    return [TEN_VIEW, *map(testing.dense_test_name, config.scales), MULTI_SCALE]


def plan_of(
    config: Config, workdir: Path, runs: Iterable[tuple[str, int]], tests: Sequence[str]
) -> Plan:
    """Return the plan of some models and seeds.

    Args:
        config: of the experiment.
        workdir: holds a folder for each run.
        runs: models and seeds.
        tests: of the trained models, as in `testing.scores`.

    Raises:
        ValueError: a model cannot be trained or tested as the configuration asks.
    """
    configs.check_unset(config, ["arch", "rectifier"], "config.archs")
    configs.check_fractions(config, "learned")
    if len(config.archs) != 3:
        raise ValueError(
            f"config.archs is {config.archs}, expected networks for models A, B and C, as in "
            "--config.archs=\"'model_a','model_b','model_c'\"."
        )
    parallel = machine.devices(config.batch_size)
    for name in config.archs:
        testing.check(config, arch.get(name).image_size, parallel, tests)
    planned = {}
    for model, seed in runs:
        place, rectifier = MODELS[model]
        fields = {"arch": config.archs[place], "rectifier": rectifier, "seed": seed}
        run = Run(f"{model} seed {seed}", configs.train_config(config, **fields))
        planned[_folder(workdir, model, seed)] = run
    return planned


def _folder(workdir: Path, model: str, seed: int) -> Path:
    return plans.folder(workdir, model.lower().replace(", ", "_"), seed)


def test(
    config: Config, workdir: Path, runs: Iterable[tuple[str, int]], tests: Sequence[str]
) -> Tested:
    """Return the scores of trained models, computed where their folders do not hold them."""
    parallel = machine.devices(config.batch_size)
    return {
        (model, seed): testing.scores(_folder(workdir, model, seed), config, parallel, tests)
        for model, seed in tqdm(list(runs), desc="tests", unit="run")
    }


def folder_of_runs(runs: str, workdir: Path) -> Path:
    """Return the work folder of `large_models` that ``config.runs`` names; without one ``workdir``.

    Raises:
        ValueError: it is none.
    """
    folder = files.local_path(runs, "config.runs") if runs else workdir
    if runs and not (folder / "a_prelu").is_dir():
        raise ValueError(
            f"config.runs is {runs}, expected the work folder of a finished "
            "experiments.large_models."
        )
    return folder


def errors_of(tested: Tested, tests: Sequence[str]) -> Errors:
    """Return the errors of every model in every test; a run that diverged is wrong everywhere."""
    errors: dict[str, dict[str, list[Pair]]] = {}
    for (model, _), scores in tested.items():
        by_test = errors.setdefault(model, {test: [] for test in tests})
        for test, of_seeds in by_test.items():
            of_seeds.append(testing.errors(scores, test))
    return errors


def report(config: Config, workdir: Path, seeds: Sequence[int]) -> Report:
    """Return the tables, the figure and the claims."""
    tests = _tests(config)
    tested = test(config, workdir, _runs(seeds), tests)
    errors = errors_of(tested, tests)
    drawn = {
        model: {
            testing.label(name, config): [testing.top_1(tested[model, s], name) for s in seeds]
            for name in tests
        }
        for model in MODELS
    }
    top_1 = {
        model: {name: [one for one, _ in of] for name, of in by_test.items()}
        for model, by_test in errors.items()
    }
    return Report(
        judge(config, top_1),
        markdown(config, errors),
        {"errors.csv": testing.rows(errors, seeds)},
        {"figure": figures.errors_by_test(drawn, caption(config, seeds))},
    )


def caption(config: Config, seeds: Sequence[int]) -> str:
    """Return the caption of a figure."""
    return (
        f"{config.dataset}, {', '.join(config.archs)}, width {config.width:g}; "
        f"SGD {config.learning_rate:g}, {config.num_steps} steps of {config.batch_size};\n"
        f"{drawing.seeds(seeds)}; mean and 95 % interval"
    )


def judge(config: Config, top_1: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Claim]:
    """Return the tables' statements, each as a difference within seeds whose interval decides."""
    multi = {model: by[MULTI_SCALE] for model, by in top_1.items()}
    views = testing.label(TEN_VIEW, config)
    singles = [of for test, of in top_1[A].items() if test not in (TEN_VIEW, MULTI_SCALE)]
    best_single = min(singles, key=lambda of: sum(of))
    return [
        testing.learned(
            {model: by[TEN_VIEW] for model, by in top_1.items()}, config.learned, config
        ),
        _lower("Table 4: model A, multi-scale: PReLU", multi[A], "ReLU", multi[A_RELU]),
        _lower("Table 4: model A, PReLU: multi-scale", multi[A], "the best scale", best_single),
        _lower("Tables 5, 6: model A, PReLU: multi-scale", multi[A], views, top_1[A][TEN_VIEW]),
        _lower("Table 6: PReLU, multi-scale: model C", multi[C], "model B", multi[B]),
        _lower("Table 6: PReLU, multi-scale: model C", multi[C], "model A", multi[A]),
    ]


def _lower(one: str, errors: Sequence[float], other: str, than: Sequence[float]) -> Claim:
    differences = [a - b for a, b in zip(errors, than, strict=True)]
    statement = f"{one} has a lower error than {other}"
    return claims.below_zero_claim(statement, differences, " points", 100, claims=CLAIMS)


def markdown(config: Config, errors: Errors) -> str:
    """Return Tables 4, 5 and 6: the paper beside this experiment's seeds."""
    heads = ("scale s", "ReLU, paper", "ReLU, ours", "PReLU, paper", "PReLU, ours")
    lines = [
        f"Top-1 / top-5 error, %. {intervals.heading(len(errors[A][MULTI_SCALE]))} of "
        f"{config.dataset}. The paper's are single models on ImageNet: only their order compares "
        f"with other data.{testing.unmirrored(config)} A run that diverged counts 100 %.",
        "",
        "Table 4, model A, dense test:",
        "",
        *tables.markdown((*heads, "difference, ours"), _dense_rows(errors)),
    ]
    for title, test, paper in (
        (f"Table 5, {testing.beside_paper(config)}", TEN_VIEW, _PAPER_10_VIEW),
        ("Table 6, dense and multi-scale", MULTI_SCALE, _PAPER_MULTI_SCALE),
    ):
        rows = [(model, _paper(paper[model]), cell(errors[model][test])) for model in MODELS]
        lines += ["", f"{title}:", "", *tables.markdown(("model", "paper", "ours"), rows)]
    return "\n".join(lines) + "\n"


def _dense_rows(errors: Errors) -> Iterator[Sequence[str]]:
    dense = [test for test in errors[A] if test != TEN_VIEW]
    for place, test in enumerate(dense):
        row = -1 if test == MULTI_SCALE else min(place, 2)
        differences = [
            (a[0] - b[0], a[1] - b[1])
            for a, b in zip(errors[A][test], errors[A_RELU][test], strict=True)
        ]
        cells = [test.removeprefix("s = ")]
        for model in (A_RELU, A):
            cells += [_paper(_PAPER_TABLE_4[model][row]), cell(errors[model][test])]
        yield [*cells, cell(differences)]


def _paper(errors: Pair) -> str:
    return " / ".join(f"{error:.2f}" for error in errors)


SCALES = {
    "laptop": laptop,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "imagenet": imagenet,
}
EXPERIMENT = Experiment("large_models", SCALES, report, plan, default_seeds=5)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
