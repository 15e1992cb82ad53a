"""He et al. 2015, Tables 4, 5 and 6: models A, B and C, tested in ten views and densely.

    python -m experiments.large_models --scale=laptop

Model A with ReLU and with PReLU at one schedule (Table 4), and models B and C with PReLU; each is
tested in ten views (Table 5) and densely at three scales and all of them together (Tables 4, 6).
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.harness import (
    claims,
    cli,
    configs,
    errors,
    figures,
    intervals,
    tables,
    testing,
)
from experiments.harness.claims import Claim
from experiments.harness.configs import CIFAR10, DIGITS, FASHION_MNIST, IMAGENET, every
from experiments.harness.errors import ByTest, Pair, cell
from experiments.harness.experiment import Experiment, Report
from experiments.harness.plans import Arm, Plan
from experiments.harness.testing import MULTI_SCALE, TEN_VIEW, ScoredConfig
from prelu_jax import files

A_RELU, A, B, C = "A, ReLU", "A, PReLU", "B, PReLU", "C, PReLU"
MODELS = {A_RELU: (0, "relu"), A: (0, "prelu"), B: (1, "prelu"), C: (2, "prelu")}  # arch, rectifier

# The paper's tables, top-1 and top-5 error in %.
_PAPER_10_VIEW = {A_RELU: (26.48, 8.59), A: (25.59, 8.23), B: (25.53, 8.13), C: (24.27, 7.38)}
_PAPER_MULTI_SCALE = {A_RELU: (24.02, 6.51), A: (22.97, 6.28), B: (22.85, 6.27), C: (21.59, 5.71)}
_PAPER_TABLE_4 = {
    A_RELU: ((26.25, 8.25), (24.77, 7.26), (25.46, 7.63), (24.02, 6.51)),
    A: ((25.81, 8.08), (24.20, 7.03), (24.83, 7.39), (22.97, 6.28)),
}


@dataclasses.dataclass
class Config(ScoredConfig):
    """The training and the tests of every model, and the limit in the claims.

    Attributes:
        archs: networks for models A, B and C.
        arch: set for each model; leave it empty.
        rectifier: set for each model; leave it empty.
        learned: claim: no run ends above this top-1 error in ten views.
    """

    archs: tuple[str, ...] = ("model_a", "model_b", "model_c")
    arch: str = ""
    rectifier: str = ""
    learned: float = 0.35


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
SCALES = {
    # Digits, narrow models with the paper's maps: about ten minutes a run on two cores.
    "laptop": Config(
        **{**DIGITS, **_NARROW},
        learned=0.10,
        num_steps=2000,
        drop_epochs="25,35",
        **every(50, 100, 500),
    ),
    "fashion_mnist": Config(
        **{**FASHION_MNIST, **_NARROW},
        learned=0.30,
        examples_per_class=1000,
        num_steps=3000,
        drop_epochs="6,8",
        **every(100, 250, 500),
    ),
    # An hour or more a run on two cores.
    "cifar10": Config(
        **{**CIFAR10, **_NARROW},
        learned=0.65,
        pca_color_std=0.1,
        num_steps=12_000,
        drop_epochs="5,7",
        **every(100, 1000, 1000),
    ),
    # The paper's own setting: 80 epochs of 224-pixel crops of images jittered in scale.
    "imagenet": Config(
        **IMAGENET,
        max_side=512,
        num_steps=800_000,
        drop_epochs="40,60",  # the paper gives none; its ReLU and PReLU nets share theirs
        **every(100, 10_000, 5_000),
    ),
}


def arms(config: Config) -> list[Arm]:
    """Return the models.

    Raises:
        ValueError: the configuration names another number of networks.
    """
    if len(config.archs) != 3:
        raise ValueError(
            f"config.archs is {config.archs}, expected networks for models A, B and C, as in "
            "--config.archs=\"'model_a','model_b','model_c'\"."
        )
    return [
        Arm(
            model,
            model.lower().replace(", ", "_"),
            {"arch": config.archs[place], "rectifier": rectifier},
        )
        for model, (place, rectifier) in MODELS.items()
    ]


def check(config: Config) -> None:
    """Raise a ValueError if a field has an impossible value."""
    configs.check_unset(config, ["arch", "rectifier"], "config.archs")
    configs.check_fractions(config, "learned")


def plan(config: Config, workdir: Path, seeds: Sequence[int]) -> Plan:
    """Return the runs of every model."""
    check(config)
    return testing.plan(config, workdir, seeds, arms(config), _tests(config))


def _tests(config: Config) -> list[str]:
    return [TEN_VIEW, *map(testing.dense_test_name, config.scales), MULTI_SCALE]


def folder_of_runs(runs: str, workdir: Path) -> Path:
    """Return the work folder of `large_models` that ``config.runs`` names; without one ``workdir``.

    Raises:
        ValueError: it is not the work folder of a finished `large_models`.
    """
    folder = files.local_path(runs, "config.runs") if runs else workdir
    if runs and not (folder / "a_prelu").is_dir():
        raise ValueError(
            f"config.runs is {runs}, expected the work folder of a finished "
            "experiments.large_models."
        )
    return folder


def report(config: Config, workdir: Path, seeds: Sequence[int]) -> Report:
    """Return the tables, the figure and the claims."""
    tests = _tests(config)
    scores = testing.score_all(config, workdir, seeds, arms(config), tests)
    by_model = errors.by_test(scores, tests)
    drawn = {
        model: {
            errors.label(test, config): [errors.top_1(one, test) for one in of_seeds]
            for test in tests
        }
        for model, of_seeds in scores.items()
    }
    return Report(
        judge(config, by_model),
        markdown(config, by_model),
        {"errors.csv": errors.rows(by_model, seeds)},
        {"figure": figures.errors_by_test(drawn, caption(config, seeds))},
    )


def caption(config: Config, seeds: Sequence[int]) -> str:
    """Return the caption of a figure."""
    return (
        f"{config.dataset}, {', '.join(config.archs)}, width {config.width:g}; "
        f"SGD {config.learning_rate:g}, {config.num_steps} steps of {config.batch_size};\n"
        f"{intervals.seeds(seeds)}; mean and 95 % interval"
    )


def number_of_claims(scales: Sequence[int]) -> int:
    """Return the number of claims on the runs of these models that intervals decide.

    Five here, one in `ensemble`, and in `borders` two for every scale.
    """
    return 5 + 1 + 2 * len(scales)


def judge(config: Config, by_model: ByTest) -> list[Claim]:
    """Return the tables' statements, each as a difference within seeds whose interval decides."""
    top_1 = {
        model: {test: [one for one, _ in pairs] for test, pairs in by_test.items()}
        for model, by_test in by_model.items()
    }
    multi = {model: by_test[MULTI_SCALE] for model, by_test in top_1.items()}
    views = errors.label(TEN_VIEW, config)
    singles = [one for test, one in top_1[A].items() if test not in (TEN_VIEW, MULTI_SCALE)]
    best = min(singles, key=sum)
    tens = {model: by_test[TEN_VIEW] for model, by_test in top_1.items()}
    number = number_of_claims(config.scales)

    def lower(one: str, own: Sequence[float], other: str, others: Sequence[float]) -> Claim:
        statement = f"{one} has a lower error than {other}"
        return claims.lower_error_claim(statement, own, others, number)

    return [
        errors.learned(tens, config.learned, config),
        lower("Table 4: model A, multi-scale: PReLU", multi[A], "ReLU", multi[A_RELU]),
        lower("Table 4: model A, PReLU: multi-scale", multi[A], "the best scale", best),
        lower("Tables 5, 6: model A, PReLU: multi-scale", multi[A], views, tens[A]),
        lower("Table 6: PReLU, multi-scale: model C", multi[C], "model B", multi[B]),
        lower("Table 6: PReLU, multi-scale: model C", multi[C], "model A", multi[A]),
    ]


def markdown(config: Config, by_model: ByTest) -> str:
    """Return Tables 4, 5 and 6: the paper beside this experiment's seeds."""
    heads = ("scale s", "ReLU, paper", "ReLU, ours", "PReLU, paper", "PReLU, ours")
    return tables.document(
        f"Top-1 / top-5 error, %. {intervals.heading(len(by_model[A][MULTI_SCALE]))} of "
        f"{config.dataset}. The paper's are single models on ImageNet: only their order compares "
        f"with other data.{errors.unmirrored(config)} A run that diverged counts 100 %.",
        "Table 4, model A, dense test:",
        tables.markdown((*heads, "difference, ours"), _dense_rows(by_model)),
        f"Table 5, {errors.beside_paper(config)}:",
        _single_test(by_model, TEN_VIEW, _PAPER_10_VIEW),
        "Table 6, dense and multi-scale:",
        _single_test(by_model, MULTI_SCALE, _PAPER_MULTI_SCALE),
    )


def _single_test(by_model: ByTest, test: str, paper: Mapping[str, Pair]) -> str:
    rows = [(model, _paper(paper[model]), cell(by_model[model][test])) for model in MODELS]
    return tables.markdown(("model", "paper", "ours"), rows)


def _dense_rows(by_model: ByTest) -> Iterator[Sequence[str]]:
    dense = [test for test in by_model[A] if test != TEN_VIEW]
    # The paper's scales, in its order, and all together.
    as_many = len(dense) == len(_PAPER_TABLE_4[A])
    papers = {
        model: dict(zip(dense, row, strict=True)) if as_many else {MULTI_SCALE: row[-1]}
        for model, row in _PAPER_TABLE_4.items()
    }
    for test in dense:
        relu, prelu = (by_model[model][test] for model in (A_RELU, A))
        differences = [(a[0] - b[0], a[1] - b[1]) for a, b in zip(prelu, relu, strict=True)]
        cells = [test.removeprefix("s = ")]
        for model in (A_RELU, A):
            paper = _paper(papers[model][test]) if test in papers[model] else "–"
            cells += [paper, cell(by_model[model][test])]
        yield [*cells, cell(differences)]


def _paper(pair: Pair) -> str:
    return " / ".join(f"{error:.2f}" for error in pair)


EXPERIMENT = Experiment("large_models", SCALES, report, plan, default_seeds=5)

if __name__ == "__main__":
    cli.main(EXPERIMENT)
