"""He et al. 2015, Tables 1 and 2: do learned slopes beat ReLU, and what slopes are learned?

    python -m experiments.rectifiers --scale=laptop

The 14-layer network with ReLU, with leaky ReLU of the slope that PReLU begins with, and with PReLU,
one slope a layer or one a channel. All arms of a seed share the images, their order and the
schedule; they are tested in ten views, at the scale they were trained at.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments import (
    common,
    convergence,
    figures,
    machine,
    results,
    slope_figures,
    slopes,
    testing,
)
from experiments.results import Claim
from experiments.slopes import Slopes
from experiments.testing import TEN_VIEW, ScoredConfig
from prelu_jax import arch, files, models
from prelu_jax.training.config import TrainConfig

RELU, LEAKY = "ReLU", f"leaky ReLU, a = {models.LEAKY_SLOPE:g}"
SHARED, CHANNEL_WISE = "PReLU: channel-shared", "PReLU: channel-wise"
ARMS = {RELU: "relu", LEAKY: "leaky_relu", SHARED: "prelu_shared", CHANNEL_WISE: "prelu"}
LEARNED = (SHARED, CHANNEL_WISE)

# Table 2: top-1 and top-5 error in %, 10-view. The paper has no row for leaky ReLU.
TABLE_2 = {RELU: (33.82, 13.34), SHARED: (32.71, 12.87), CHANNEL_WISE: (32.64, 12.75)}

_CLAIMS = 5  # that intervals decide

_IMAGES = 1_281_167  # in ImageNet's training set

Errors = Mapping[str, Sequence[tuple[float, float]]]  # arm -> top-1, top-5 of each seed, in order
Learned = Mapping[str, Sequence[Slopes]]  # arm with PReLU -> its slopes of every seed


@dataclasses.dataclass
class Config(ScoredConfig):
    """The training and the test in ten views of every arm, and what the claims ask for."""

    rectifier: str = ""  # set for each arm; leave it empty
    scales: tuple[int, ...] = ()  # Table 2 has no dense test
    learned: float = 0.45  # the regression band: no run ends above this top-1 error


def laptop() -> Config:
    """Digits, crops of 32 of 36 pixels: about half a minute a run on two cores."""
    return Config(
        learned=0.05,
        dataset="digits",
        min_side=36,  # 256 / 224 of the crop, as in the paper
        max_side=36,
        ten_view_scale=36,
        test_batch_size=100,
        flip=False,  # a mirrored digit is another sign
        pixel_rms=convergence.PIXEL_RMS,
        arch="small_14_reduced",
        batch_size=64,
        # Chosen on ReLU alone, so that the baseline is not hurt, on images not cropped, at seeds
        # that the tables do not use: at 100 and 101 mean errors of 1.3, 0.8 and 2.2 % with 0.002,
        # 0.005 and 0.01. 102 to 104, run afterwards, bring the first two to 1.7 and 1.5 %: no
        # clear winner.
        learning_rate=0.005,
        num_steps=500,
        plateau_patience=convergence.NEVER,
        log_every=25,
        eval_every=50,
        checkpoint_every=250,
    )


def cifar10() -> Config:
    """CIFAR-10 photos, the same network."""
    return Config(
        learned=0.60,  # after 1,500 steps, the schedule of docs/results.md
        dataset="cifar10",
        min_side=36,
        max_side=36,
        ten_view_scale=36,
        test_batch_size=100,
        test_examples=3000,
        pixel_rms=convergence.PIXEL_RMS,
        arch="small_14_reduced",
        batch_size=64,
        learning_rate=0.002,  # of convergence_30, where ReLU lives
        num_steps=3000,
        plateau_patience=convergence.NEVER,
        log_every=50,
        eval_every=250,
        checkpoint_every=500,
    )


def imagenet() -> Config:
    """The paper's own setting: 75 epochs at one scale."""
    return Config(
        dataset="imagenet2012",
        test_split="validation",
        min_side=256,
        max_side=256,
        colour=0.1,
        arch="small_14",
        batch_size=128,
        num_steps=round(75 * _IMAGES / 128),
        learning_rate=0.01,
        weight_decay=5e-4,
        drop_epochs="40,60",  # of all arms, as of those of Table 4; the paper gives no epochs
        log_every=100,
        eval_every=5000,
        checkpoint_every=5000,
    )


def run(config: Config, workdir: Path, seeds: int) -> list[Claim]:
    """Trains every arm over the seeds, writes the tables, the figures and the claims."""
    common.check_fractions(config, "learned")
    common.check_unset(config, ["rectifier"])
    arms = {
        arm: {seed: workdir / rectifier / f"seed_{seed}" for seed in _seeds(config, seeds)}
        for arm, rectifier in ARMS.items()
    }
    runs = {
        arms[arm][seed]: (f"{arm} seed {seed}", of_arm(config, arm, seed))
        for seed in _seeds(config, seeds)
        for arm in ARMS
    }
    parallel = machine.devices(config.batch_size)
    testing.check(config, arch.get(config.arch).image_size, parallel, [TEN_VIEW])
    common.train_all(runs, parallel)

    curves = {arm: [results.read_curve(f, arm) for f in of.values()] for arm, of in arms.items()}
    scores = {
        arm: [testing.scores(folder, config, parallel, [TEN_VIEW]) for folder in of.values()]
        for arm, of in arms.items()
    }
    errors = {arm: [testing.errors(one, TEN_VIEW) for one in of] for arm, of in scores.items()}
    top_1 = {arm: [testing.top_1(one, TEN_VIEW) for one in of] for arm, of in scores.items()}
    layers = rectified(config.arch)
    learned = {arm: [slopes.read(f, layers) for f in arms[arm].values()] for arm in LEARNED}
    written = draw(config, top_1, learned, workdir)
    table, points, rows, tested = (
        workdir / name for name in ("table.md", "curves.csv", "slopes.csv", "errors.csv")
    )
    text = markdown(config, errors, learned)
    files.write_text(table, text)
    results.write_csv([curve for of_arm in curves.values() for curve in of_arm], points)
    slopes.write_csv(learned, rows)
    by_test = {arm: {TEN_VIEW: of_arm} for arm, of_arm in errors.items()}
    testing.write_csv(by_test, _seeds(config, seeds), tested)
    print(f"\n{text}\nWritten:", *written, table, points, rows, tested, *runs, sep="\n  ")
    return judge(config, errors, learned)


def _seeds(config: Config, seeds: int) -> range:
    return range(config.seed, config.seed + seeds)


def of_arm(config: Config, arm: str, seed: int) -> TrainConfig:
    """The configuration of one run."""
    return common.train_config(config, rectifier=ARMS[arm], seed=seed)


def rectified(name: str) -> tuple[str, ...]:
    """The names of a network's rectified layers, in order of depth."""
    return tuple(
        layer.name for layer in arch.get(name).layers if isinstance(layer, arch.Conv | arch.Dense)
    )


def judge(config: Config, errors: Errors, learned: Learned) -> list[Claim]:
    """Return the paper's statements on learned slopes, each as a number of every seed.

    A claim passes if the whole interval of the number has the claimed sign, and fails if none of it
    has. A slope of a run that diverged is not a number: its claims fail.
    """
    top_1 = {arm: [one for one, _ in of] for arm, of in errors.items()}
    return [
        testing.learned(top_1, config.learned, config),
        *(_lower_error(errors, arm) for arm in (CHANNEL_WISE, SHARED)),
        *(_first_is_largest(learned, arm) for arm in (CHANNEL_WISE, SHARED)),
        _shrink(learned, CHANNEL_WISE),
    ]


def _lower_error(errors: Errors, arm: str) -> Claim:
    statement = f"Table 2: [{arm}] ends at a lower error than [{RELU}]"
    differences = against_relu(errors, arm)
    return results.below_zero_claim(statement, differences, " points", 100, claims=_CLAIMS)


def against_relu(errors: Errors, arm: str) -> list[float]:
    """The top-1 error of an arm less that of ReLU, within each seed."""
    return [one - relu for (one, _), (relu, _) in zip(errors[arm], errors[RELU], strict=True)]


def _first_is_largest(learned: Learned, arm: str) -> Claim:
    # In every seed, the largest slope after the first layer less the first: negative, if it is.
    after = [float(np.max(run.final()[1:]) - run.final()[0]) for run in learned[arm]]
    first = learned[arm][0].layers[0]
    statement = f"Table 1: [{arm}] the slope of {first} is the largest of all layers in every seed"
    of = f"largest other slope less that of {first}"
    claim = results.below_zero_claim(statement, after, "", of=of, claims=_CLAIMS)
    in_every_seed = all(value < 0 for value in after)
    return claim if in_every_seed else dataclasses.replace(claim, passed=False)


def _shrink(learned: Learned, arm: str) -> Claim:
    finals = np.array([of.final() for of in learned[arm]])
    correlations = [slopes.with_depth(of_seed) for of_seed in finals]
    means = finals.mean(axis=0)  # ranks do not say whether slopes have moved at all
    paper = slopes.paper(learned[arm][0].layers, LEARNED)
    beside = f"; the paper's {slopes.with_depth(paper[arm]):.3g}" if paper else ""
    statement = f"Table 1: [{arm}] slopes shrink with depth: Spearman's correlation is below 0"
    claim = results.below_zero_claim(statement, correlations, "", of="correlation", claims=_CLAIMS)
    more = (
        f"{beside}; means over seeds between {means.min():.3f} and {means.max():.3f}, "
        f"{initial_slope():g} before training"
    )
    return dataclasses.replace(claim, measured=claim.measured + more)


def markdown(config: Config, errors: Errors, learned: Learned) -> str:
    """Return Tables 2 and 1: the paper beside this experiment's seeds."""
    shown = results.heading(len(errors[RELU]))
    lines = [
        f"{shown} of {config.dataset}, {config.arch}; differences are within seeds. The paper's "
        "errors are on ImageNet's validation images: only the scale imagenet compares with them."
        f"{testing.unmirrored(config)} A run that diverged counts 100 %, and has no slopes.",
        "",
        f"Table 2, top-1 / top-5 error, %, {testing.beside_paper(config)}:",
        "",
        "| rectifier | paper | ours | ours against ReLU, top-1, points |",
        "|---|---|---|---|",
    ]
    for arm, of_arm in errors.items():
        paper = " / ".join(f"{error:.2f}" for error in TABLE_2[arm]) if arm in TABLE_2 else "–"
        against = "–" if arm == RELU else results.short(against_relu(errors, arm), 100)
        lines.append(f"| {arm} | {paper} | {testing.cell(of_arm)} | {against} |")
    lines += [
        "",
        f"Table 1, learned slopes (means over channels; {initial_slope():g} before training):",
        "",
        "| layer | channel-shared, paper | channel-shared, ours "
        "| channel-wise, paper | channel-wise, ours |",
        "|---|---|---|---|---|",
    ]
    layers = learned[SHARED][0].layers
    printed = slopes.paper(layers, LEARNED)
    for i, layer in enumerate(layers):
        cells = [layer]
        for arm in LEARNED:
            cells.append(f"{printed[arm][i]:.3f}" if printed else "–")
            cells.append(results.short([of.final()[i] for of in learned[arm]], digits=3))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def initial_slope() -> float:
    """Every slope before training."""
    slope, _ = models.RECTIFIERS[ARMS[CHANNEL_WISE]]
    return slope


def draw(
    config: Config, top_1: Mapping[str, Sequence[float]], learned: Learned, workdir: Path
) -> list[Path]:
    """Draw the figures of both tables and return the files written.

    Args:
        config: of the experiment.
        top_1: arm -> error of every seed; not a number for a run that diverged.
        learned: the slopes.
        workdir: of the figures.
    """
    seeds = figures.seeds(config.seed, len(top_1[RELU]))
    caption = (
        f"{config.dataset}, {config.arch}, width {config.width:g}; {config.num_steps} steps of "
        f"{config.batch_size}, SGD {config.learning_rate:g}, momentum {config.momentum:g};\n"
        f"{seeds}; mean and 95 % interval"
    )
    of_slopes = f"{caption}; dotted: before training"
    initial, paper = initial_slope(), slopes.paper(learned[SHARED][0].layers, LEARNED)
    tested = {testing.name(TEN_VIEW, config): top_1}
    return [
        *figures.errors_by_test(tested, caption, workdir / "figure", "Rectifier"),
        *slope_figures.over_training(learned, initial, of_slopes, workdir / "slopes_training"),
        *slope_figures.over_depth(learned, initial, paper, of_slopes, workdir / "slopes_depth"),
    ]


if __name__ == "__main__":
    scales = {"laptop": laptop, "cifar10": cifar10, "imagenet": imagenet}
    common.main("rectifiers", scales, run, default_seeds=5)
