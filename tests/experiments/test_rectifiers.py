import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from experiments import rectifiers
from experiments.harness import drawing, slope_figures, slopes
from experiments.harness.slopes import Slopes
from experiments.rectifiers import CHANNEL_WISE, LEAKY, RELU, SHARED
from prelu_jax import arch, models
from tests.experiments.conftest import SHORT_14, run

LAYERS = tuple(slopes.TABLE_1)
PAPER = {arm: np.array(of) for arm, of in slopes.paper(LAYERS, rectifiers.LEARNED).items()}


def test_from_a_flag_to_a_picture(tmp_path):
    done = run("rectifiers", "--scale=laptop", f"--workdir={tmp_path}", *SHORT_14)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 1  # eight steps teach nothing
    for text in (
        "Claims:",
        "FAIL  Every run learns",
        "UNDECIDED  Table 2",
        "n = 1",
        "| PReLU: channel-wise | 32.64 / 12.75 |",
        "Written",
    ):
        assert text in done.stdout
    stems = ("figure", "slopes_training", "slopes_depth")
    pictures = [f"{stem}{suffix}" for stem in stems for suffix in (".png", ".pdf")]
    for name in (*pictures, "table.md", "curves.csv", "slopes.csv", "experiment.json"):
        assert (tmp_path / name).stat().st_size > 100
    with (tmp_path / "errors.csv").open() as file:
        tested = list(csv.DictReader(file))
    assert [(row["arm"], row["test"], row["seed"]) for row in tested] == [
        (arm, "10-view", "0") for arm in rectifiers.ARMS
    ]
    cell = " / ".join(f"{100 * float(tested[0][f'top_{k}_error']):.1f}" for k in (1, 5))
    assert f"| ReLU | 33.82 / 13.34 | {cell} | – |" in done.stdout
    with (tmp_path / "slopes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4 * len(LAYERS)  # arms, logging steps, layers
    assert [row["steps_taken"] for row in rows[:: len(LAYERS)]] == 2 * ["1", "3", "5", "7"]
    # The figures and tables show the slopes that the runs logged, layer by layer.
    last = {of: last_slopes(tmp_path / of / "seed_0") for of in ("prelu_shared", "prelu")}
    for of, written in (
        ("prelu_shared", rows[: len(rows) // 2]),
        ("prelu", rows[len(rows) // 2 :]),
    ):
        found = {row["layer"]: float(row["slope"]) for row in written[-len(LAYERS) :]}
        assert found == pytest.approx(last[of], abs=1e-6)
    shared, channel_wise = (of_arm["conv1"] for of_arm in last.values())
    assert f"| conv1 | 0.681 | {shared:.3f} | 0.596 | {channel_wise:.3f} |" in done.stdout
    refused = run(
        "rectifiers", f"--workdir={tmp_path / 'other'}", *SHORT_14, "--config.rectifier=relu"
    )
    assert "config.rectifier is set for each run" in refused.stderr
    assert not (tmp_path / "other").exists()


def last_slopes(folder):
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    logged = [record["slope_mean"] for record in records if "slope_mean" in record]
    return {name.removesuffix("_prelu"): slope for name, slope in logged[-1].items()}


@pytest.mark.parametrize("scale", ["laptop", "cifar10", "imagenet"])
def test_arms_differ_in_their_rectifier_alone(scale):
    config = rectifiers.EXPERIMENT.config(scale)
    config.ten_view_scale, config.test_batch_size = 256, 100  # also for the suite's four devices
    runs = [vars(run.config) for run in rectifiers.plan(config, Path("w"), [3]).values()]
    names = {"relu", "leaky_relu", "prelu", "prelu_shared"}
    assert {of["rectifier"] for of in runs} == names
    assert all({**of, "rectifier": "relu"} == runs[0] for of in runs)
    assert runs[0]["seed"] == 3


def test_imagenet_is_the_papers_protocol():
    config = rectifiers.EXPERIMENT.config("imagenet")
    assert config.num_steps * 128 == pytest.approx(75 * 1_281_167, abs=64)
    assert (config.batch_size, config.min_side, config.max_side) == (128, 256, 256)
    assert (config.learning_rate, config.weight_decay, config.momentum) == (0.01, 5e-4, 0.9)
    assert config.arch == "small_14"


def test_table_1_has_the_rectified_layers_of_the_network_in_order():
    assert arch.SMALL_14.rectified == arch.SMALL_14_REDUCED.rectified == list(LAYERS)
    assert len(LAYERS) == 13
    parameters = models.build(arch.SMALL_14, 10, rectifier="prelu_shared").slopes({})
    assert tuple(parameters) == LAYERS
    assert slopes.paper(tuple(arch.SMALL_30.rectified), rectifiers.LEARNED) == {}
    printed = slopes.paper(LAYERS, rectifiers.LEARNED)
    # conv1 "significantly greater than 0", the text's two numbers; fc2's, and both columns' sums.
    assert [printed[arm][0] for arm in (SHARED, CHANNEL_WISE)] == [0.681, 0.596]
    assert [printed[arm][-1] for arm in (SHARED, CHANNEL_WISE)] == [0.031, 0.075]
    assert sum(printed[SHARED]) == pytest.approx(2.385)
    assert sum(printed[CHANNEL_WISE]) == pytest.approx(2.977)
    # Gains of the text: 1.2 % channel-wise, 1.1 % shared.
    gains = {arm: rectifiers.TABLE_2[RELU][0] - rectifiers.TABLE_2[arm][0] for arm in PAPER}
    assert gains == pytest.approx({SHARED: 1.11, CHANNEL_WISE: 1.18})


def errors_of(**errors):
    """Top-1 and top-5 errors of every seed by the arm's rectifier; others are as good as ReLU."""
    relu = errors.get("relu", [0.1, 0.1, 0.1])
    return {
        arm: [(one, one / 10) for one in errors.get(rectifier, relu)]
        for arm, rectifier in rectifiers.ARMS.items()
    }


def judge(errors, learned):
    return rectifiers.judge(rectifiers.EXPERIMENT.config(), errors, learned)


def run_with(final, seed=0, status="done"):
    """A run whose slopes go from 0.25 to given ones in two logging steps."""
    values = np.stack([np.full(len(LAYERS), 0.25), final])
    return Slopes(seed, status, LAYERS, np.array([24, 49]), values)


def seeds_of(*finals):
    return [run_with(np.asarray(final), seed) for seed, final in enumerate(finals)]


def around(final, n=3, noise=1e-3):
    rng = np.random.default_rng(0)
    return [final + rng.normal(0, noise, len(LAYERS)) for _ in range(n)]


LEARNED = {arm: seeds_of(*around(final)) for arm, final in PAPER.items()}


@pytest.mark.parametrize(
    ("errors", "passed"),
    [
        # Seeds differ more than arms: the difference within each decides.
        ({"relu": [0.3, 0.34, 0.38], "prelu": [0.28, 0.32, 0.359]}, [True, False]),
        ({"relu": [0.3, 0.34, 0.38], "prelu_shared": [0.28, 0.32, 0.359]}, [False, True]),
        # 95 % of one claim would do, 99 % of five do not.
        ({"relu": [0.3, 0.34, 0.38], "prelu": [0.28, 0.32, 0.35]}, [None, False]),
        ({"relu": [0.3, 0.4, 0.5], "prelu": [0.1, 0.41, 0.49]}, [None, False]),
        ({"relu": [0.1, 0.1], "prelu": [0.2, 0.2], "prelu_shared": [0.2, 0.2]}, [False, False]),
        ({"relu": [0.1, 0.1, 0.1], "leaky_relu": [0.01, 0.01, 0.01]}, [False, False]),
        ({"relu": [0.3], "prelu": [0.1], "prelu_shared": [0.1]}, [None, None]),  # one seed
    ],
)
def test_errors_are_judged_within_seeds(errors, passed):
    claims = judge(errors_of(**errors), LEARNED)
    assert [claim.passed for claim in claims[1:3]] == passed


def test_one_seed_of_one_arm_above_the_regression_band_fails_it():
    at_most = rectifiers.EXPERIMENT.config().learned
    within, above = [at_most] * 3, [at_most, at_most, at_most + 1e-3]
    for arm in ("relu", "prelu"):
        errors = {"relu": within, "prelu": within, arm: above}
        assert not judge(errors_of(**errors), LEARNED)[0].passed
    assert judge(errors_of(relu=within, prelu=within), LEARNED)[0].passed


def changed(layer, value):
    final = PAPER[CHANNEL_WISE].copy()
    final[LAYERS.index(layer)] = value
    return final


GROWING = np.linspace(0.1, 0.4, len(LAYERS))


@pytest.mark.parametrize(
    ("finals", "first", "shrink"),
    [
        (around(PAPER[CHANNEL_WISE]), True, True),
        (around(GROWING), False, False),
        (around(GROWING[::-1]), True, True),
        # One layer of one seed lies above conv1.
        ([*around(PAPER[CHANNEL_WISE], 7), changed("fc2", 0.597)], False, True),
        # Below it in all seeds, in some by a hair: it decides nothing.
        ([changed("fc2", 0.595), changed("fc2", 0.2), changed("fc2", 0.5959)], None, None),
        ([GROWING, GROWING[::-1], GROWING[::-1]], False, None),
        ([PAPER[CHANNEL_WISE]], None, None),  # one seed shows nothing
    ],
)
def test_slopes_are_judged_by_the_interval_over_seeds(finals, first, shrink):
    claims = rectifiers.judge(
        rectifiers.EXPERIMENT.config(), errors_of(), {**LEARNED, CHANNEL_WISE: seeds_of(*finals)}
    )
    of_channel_wise, of_shared, of_depth = (claim.passed for claim in claims[3:])
    assert (of_channel_wise, of_shared, of_depth) == (first, True, shrink)
    shared = rectifiers.judge(
        rectifiers.EXPERIMENT.config(), errors_of(), {**LEARNED, SHARED: seeds_of(*finals)}
    )
    assert [claim.passed for claim in shared[3:]] == [True, first, True]


def test_a_run_that_diverged_fails_its_claims_and_is_counted_in_the_table():
    lost = [dataclasses.replace(LEARNED[CHANNEL_WISE][0], status="diverged")]
    learned = {**LEARNED, CHANNEL_WISE: lost + LEARNED[CHANNEL_WISE][1:]}
    claims = judge(errors_of(), learned)
    assert [claim.passed for claim in claims[3:]] == [False, True, False]
    table = rectifiers.markdown(rectifiers.EXPERIMENT.config(), errors_of(), learned)
    assert "| 0.596 | in 2 of 3 |" in table


def test_the_claim_of_shrinking_says_how_far_slopes_have_moved():
    hardly = [0.25 + 0.001 * GROWING[::-1]]  # in the paper's order, and all grown
    claim = judge(errors_of(), {**LEARNED, CHANNEL_WISE: seeds_of(*3 * hardly)})[-1]
    assert claim.passed
    assert "the paper's -0.868" in claim.measured
    assert "between 0.250 and 0.250, 0.25 before training" in claim.measured


def test_correlation_is_of_ranks_with_depth():
    assert slopes.with_depth(GROWING**3) == pytest.approx(1)
    # Spearman, 1 - 6 Σd² / (n (n² - 1)), of the ranks that Table 1's column has.
    ranks = PAPER[CHANNEL_WISE].argsort().argsort()
    squares = np.sum((ranks - np.arange(13)) ** 2)
    assert slopes.with_depth(PAPER[CHANNEL_WISE]) == pytest.approx(1 - squares / 364)


def test_the_table_has_the_paper_beside_ours_with_differences_within_seeds():
    by_arm = errors_of(relu=[0.3, 0.1], prelu=[0.28, 0.08], leaky_relu=[0.1, 0.1])
    learned = {arm: of[:2] for arm, of in LEARNED.items()}
    learned[SHARED] = seeds_of(np.full(13, 0.2), np.full(13, 0.2))
    lines = rectifiers.markdown(rectifiers.EXPERIMENT.config(), by_arm, learned).splitlines()
    assert f"| {RELU} | 33.82 / 13.34 | 30.0, 10.0 / 3.0, 1.0 | – |" in lines
    assert f"| {CHANNEL_WISE} | 32.64 / 12.75 | 28.0, 8.0 / 2.8, 0.8 | -2.0, -2.0 |" in lines
    assert f"| {LEAKY} | – | 10.0, 10.0 / 1.0, 1.0 | -20.0, 0.0 |" in lines
    assert any(line.startswith("| conv2_4 | 0.561 | 0.200, 0.200 | 0.464 | 0.46") for line in lines)
    assert [line.split(" | ")[0] for line in lines[-13:]] == [f"| {layer}" for layer in LAYERS]
    assert "n = 2 seeds" in lines[0]
    assert "only the scale imagenet compares" in lines[0]


@pytest.mark.parametrize(("flip", "label"), [(False, "5-view"), (True, "10-view")])
def test_the_views_are_named_by_their_number(flip, label, monkeypatch):
    config = rectifiers.EXPERIMENT.config("laptop", flip=flip)
    (claim, *_) = rectifiers.judge(config, errors_of(), LEARNED)
    assert claim.statement.startswith(f"Every run learns: {label} top-1 error")
    title = "10-view" if flip else "10-view in the paper, 5-view here"
    text = rectifiers.markdown(config, errors_of(), LEARNED)
    assert f"Table 2, top-1 / top-5 error, %, {title}:" in text
    assert ("no image is mirrored" in text) == (not flip)
    drawn = []
    monkeypatch.setattr(rectifiers.figures, "errors_by_test", lambda of, *_: drawn.append(of))
    top_1 = {RELU: [0.1, float("nan")]}
    rectifiers.draw(config, [0, 1], top_1, LEARNED)
    assert drawn == [{label: top_1}]


def test_figures_are_drawn_for_one_seed_and_for_runs_that_diverged(tmp_path):
    lost = [
        dataclasses.replace(run_with(PAPER[SHARED]), status="diverged"),
        Slopes(1, "diverged", LAYERS, np.zeros(0), np.zeros((0, len(LAYERS)))),  # before logging
    ]
    several = {SHARED: lost + LEARNED[SHARED], CHANNEL_WISE: lost}
    one = {arm: of[:1] for arm, of in LEARNED.items()}
    for name, learned, paper in (("one", one, PAPER), ("several", several, {})):
        drawn = {
            "training": slope_figures.over_training(learned, 0.25, "caption"),
            "depth": slope_figures.over_depth(learned, 0.25, paper, "caption"),
        }
        written = [
            file
            for stem, figure in drawn.items()
            for file in drawing.save(figure, tmp_path / f"{name}_{stem}")
        ]
        assert [file.suffix for file in written] == 2 * [".png", ".pdf"]
        assert all(file.stat().st_size > 5000 for file in written)


def test_slopes_are_read_in_order_of_depth_at_the_steps_taken(tmp_path):
    records = [
        {"step": 0, "test_error": 0.9},
        # Sorted by name, as in Flax: conv3_10 before conv3_2.
        {"step": 5, "slope_mean": {"conv3_10_prelu": 0.3, "conv3_2_prelu": 0.2}},
        {"step": 10, "slope_mean": {"conv3_10_prelu": 0.5, "conv3_2_prelu": 0.4}},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (tmp_path / "config.json").write_text('{"seed": 7}')
    (tmp_path / "status.json").write_text('{"status": "done"}')
    read = slopes.read(tmp_path, ("conv3_2", "conv3_10"))
    assert (read.seed, read.steps.tolist()) == (7, [4, 9])
    assert read.values.tolist() == [[0.2, 0.3], [0.4, 0.5]]
    assert read.final().tolist() == [0.4, 0.5]
    assert np.isnan(dataclasses.replace(read, status="diverged").final()).all()
