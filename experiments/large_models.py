"""He et al. 2015, Tables 4, 5 and 6: models A, B and C, tested in ten views and densely.

    python -m experiments.large_models --scale=laptop

Model A with ReLU and with PReLU at one schedule (Table 4), and models B and C with PReLU; each is
tested in ten views (Table 5) and densely at three scales and all of them together (Tables 4, 6).
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from experiments import common, convergence, figures, machine, results, testing
from experiments.results import Claim
from experiments.testing import MULTI_SCALE, TEN_VIEW, ScoredConfig, Scores, cell
from prelu_jax import arch, files
from prelu_jax.training.config import TrainConfig

A_RELU, A, B, C = "A, ReLU", "A, PReLU", "B, PReLU", "C, PReLU"
MODELS = {A_RELU: (0, "relu"), A: (0, "prelu"), B: (1, "prelu"), C: (2, "prelu")}  # arch, rectifier

CLAIMS = 5  # that intervals decide

# What the paper's tables say, top-1 and top-5 error in %.
_PAPER_10_VIEW = {A_RELU: (26.48, 8.59), A: (25.59, 8.23), B: (25.53, 8.13), C: (24.27, 7.38)}
_PAPER_MULTI_SCALE = {A_RELU: (24.02, 6.51), A: (22.97, 6.28), B: (22.85, 6.27), C: (21.59, 5.71)}
_PAPER_TABLE_4 = {
    A_RELU: ((26.25, 8.25), (24.77, 7.26), (25.46, 7.63), (24.02, 6.51)),
    A: ((25.81, 8.08), (24.20, 7.03), (24.83, 7.39), (22.97, 6.28)),
}

Errors = Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]  # model -> test -> of each seed


@dataclasses.dataclass
class Config(ScoredConfig):
    """The training and the tests of every model, and what the claims ask for."""

    archs: tuple[str, ...] = ("model_a", "model_b", "model_c")
    arch: str = ""  # set for each model; leave it empty
    rectifier: str = ""  # the same
    learned: float = 0.35  # the regression band: no run ends above this 10-view top-1 error


def laptop() -> Config:
    """Digits, narrow models with the paper's maps: about ten minutes a run on two cores."""
    return dataclasses.replace(
        _narrow(),
        dataset="digits",
        learned=0.10,
        flip=False,  # a mirrored digit is another sign
        num_steps=2000,
        drop_epochs="25,35",
        log_every=50,
        eval_every=100,
        checkpoint_every=500,
    )


def fashion_mnist() -> Config:
    """Fashion-MNIST, a thousand images of each class, the same models."""
    return dataclasses.replace(
        _narrow(),
        dataset="fashion_mnist",
        learned=0.30,
        examples_per_class=1000,
        test_examples=3000,
        num_steps=3000,
        drop_epochs="6,8",
        log_every=100,
        eval_every=250,
        checkpoint_every=500,
    )


def cifar10() -> Config:
    """CIFAR-10 photos, the same models: an hour or more a run on two cores."""
    return dataclasses.replace(
        _narrow(),
        dataset="cifar10",
        learned=0.65,
        colour=0.1,
        test_examples=3000,
        num_steps=12_000,
        drop_epochs="5,7",
        log_every=100,
        eval_every=1000,
        checkpoint_every=1000,
    )


def _narrow() -> Config:
    return Config(
        archs=("model_a_narrow", "model_b_narrow", "model_c_narrow"),
        # A quarter of the paper's sides: its jitter, its scales of Table 4, its 10-view scale.
        min_side=64,
        max_side=128,
        scales=(64, 96, 120),
        ten_view_scale=64,
        test_batch_size=50,
        pixel_rms=convergence.PIXEL_RMS,
        batch_size=32,
        learning_rate=0.003,  # of convergence_22, where He's runs all live
    )


def imagenet() -> Config:
    """The paper's own setting: 80 epochs of 224-pixel crops of images jittered in scale."""
    return Config(
        dataset="imagenet2012",
        test_split="validation",
        min_side=256,
        max_side=512,
        colour=0.1,
        batch_size=128,
        num_steps=800_000,
        drop_epochs="40,60",  # the paper gives none; its ReLU and PReLU nets share theirs
        log_every=100,
        eval_every=10_000,
        checkpoint_every=5_000,
    )


def run(config: Config, workdir: Path, seeds: int) -> list[Claim]:
    """Trains and tests every model over the seeds, writes the tables, the figure, the claims."""
    which = [(m, seed) for seed in range(config.seed, config.seed + seeds) for m in MODELS]
    tests = [TEN_VIEW, *map(testing.at, config.scales), MULTI_SCALE]
    errors: dict[str, dict[str, list[tuple[float, float]]]] = {
        model: {test: [] for test in tests} for model in MODELS
    }
    labels = {test: testing.name(test, config) for test in tests}
    drawn: dict[str, dict[str, list[float]]] = {
        model: {label: [] for label in labels.values()} for model in MODELS
    }
    for (model, _), tested in train_and_test(config, which, workdir, tests).items():
        for test, label in labels.items():
            errors[model][test].append(testing.errors(tested, test))
            drawn[model][label].append(testing.top_1(tested, test))
    workdir.mkdir(parents=True, exist_ok=True)
    top_1 = {
        model: {test: [one for one, _ in of] for test, of in by.items()}
        for model, by in errors.items()
    }
    written = figures.errors_by_test(drawn, caption(config, seeds), workdir / "figure")
    table, rows = workdir / "table.md", workdir / "errors.csv"
    text = markdown(config, errors)
    files.write_text(table, text)
    testing.write_csv(errors, range(config.seed, config.seed + seeds), rows)
    print(f"\n{text}\nWritten:", *written, table, rows, sep="\n  ")
    return judge(config, top_1)


def caption(config: Config, seeds: int) -> str:
    """What a figure shows."""
    return (
        f"{config.dataset}, {', '.join(config.archs)}, width {config.width:g}; "
        f"SGD {config.learning_rate:g}, {config.num_steps} steps of {config.batch_size};\n"
        f"{figures.seeds(config.seed, seeds)}; mean and 95 % interval"
    )


def train_and_test(
    config: Config, which: Iterable[tuple[str, int]], workdir: Path, tests: Sequence[str]
) -> dict[tuple[str, int], Scores | None]:
    """Every model of every seed, trained and tested unless its folder holds it.

    Args:
        config: of the experiment.
        which: models and seeds.
        workdir: holds a folder for each run.
        tests: see `testing.scores`.

    Returns:
        What each run says of the test examples; None of one that diverged.
    """
    common.check_unset(config, ["arch", "rectifier"], "config.archs")
    common.check_fractions(config, "learned")
    if len(config.archs) != 3:
        raise ValueError(
            f"config.archs is {config.archs}, expected networks for models A, B and C, as in "
            "--config.archs=\"'model_a','model_b','model_c'\"."
        )
    parallel = machine.devices(config.batch_size)
    for name in config.archs:
        testing.check(config, arch.get(name).image_size, parallel, tests)
    folders = {
        (model, seed): workdir / model.lower().replace(", ", "_") / f"seed_{seed}"
        for model, seed in which
    }
    common.train_all(
        {
            folder: (f"{model} seed {seed}", of_model(config, model, seed))
            for (model, seed), folder in folders.items()
        },
        parallel,
    )
    return {
        run: testing.scores(folder, config, parallel, tests)
        for run, folder in tqdm(folders.items(), desc="tests", unit="run")
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


def of_model(config: Config, model: str, seed: int) -> TrainConfig:
    """The configuration of one run."""
    place, rectifier = MODELS[model]
    return common.train_config(config, arch=config.archs[place], rectifier=rectifier, seed=seed)


def judge(config: Config, top_1: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Claim]:
    """Return the tables' statements, each as a difference within seeds whose interval decides."""
    multi = {model: by[MULTI_SCALE] for model, by in top_1.items()}
    views = testing.name(TEN_VIEW, config)
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
    return results.below_zero_claim(statement, differences, " points", 100, claims=CLAIMS)


def markdown(config: Config, errors: Errors) -> str:
    """Return Tables 4, 5 and 6: the paper beside this experiment's seeds."""
    shown = results.heading(len(errors[A][MULTI_SCALE]))
    lines = [
        f"Top-1 / top-5 error, %. {shown} of {config.dataset}. The paper's are single models on "
        f"ImageNet: only their order compares with other data.{testing.unmirrored(config)} "
        "A run that diverged counts 100 %.",
        "",
        "Table 4, model A, dense test:",
        "",
        "| scale s | ReLU, paper | ReLU, ours | PReLU, paper | PReLU, ours | difference, ours |",
        "|---|---|---|---|---|---|",
    ]
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
        cells.append(cell(differences))
        lines.append(f"| {' | '.join(cells)} |")
    for title, test, paper in (
        (f"Table 5, {testing.beside_paper(config)}", TEN_VIEW, _PAPER_10_VIEW),
        ("Table 6, dense and multi-scale", MULTI_SCALE, _PAPER_MULTI_SCALE),
    ):
        lines += ["", f"{title}:", "", "| model | paper | ours |", "|---|---|---|"]
        lines += [f"| {m} | {_paper(paper[m])} | {cell(errors[m][test])} |" for m in MODELS]
    return "\n".join(lines) + "\n"


def _paper(errors: tuple[float, float]) -> str:
    return " / ".join(f"{error:.2f}" for error in errors)


SCALES = {
    "laptop": laptop,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "imagenet": imagenet,
}

if __name__ == "__main__":
    common.main("large_models", SCALES, run, default_seeds=5)
