"""Runs that end when they train: rates and variants, judged on made-up steps; one real command."""

import csv
import functools
import math

import pytest

from experiments import late_start, rates
from experiments.harness import configs, drawing, until_trained
from experiments.harness.convergence import HE, XAVIER
from prelu_jax.training import recipe
from tests.experiments.conftest import run
from tests.experiments.curves import curve as curve_of

NEVER = math.inf


curve = functools.partial(curve_of, every=50)


def test_a_cell_has_every_seed_and_what_became_of_it():
    config = rates.EXPERIMENT.config()
    given = [
        curve([0.9, 0.9]),
        curve([0.9, 0.9, 0.4]),
        curve([0.9, 0.3], status="diverged"),  # below the limit once, and lost
        curve([0.9, 0.45]),
    ]
    assert until_trained.steps(config, given) == [NEVER, 100, NEVER, 50]
    assert until_trained.cell(config, given) == "50, 100, –, ×"


def test_a_run_without_an_end_is_refused(tmp_path):
    config = rates.EXPERIMENT.config()
    config.stop_error = 0.0
    with pytest.raises(ValueError, match="config.stop_error is 0"):
        until_trained.plan(config, tmp_path, [0], {})


@pytest.mark.parametrize(
    ("he", "xavier", "passed"),
    [
        ([[100, 200], [80, NEVER]], [[900, NEVER], [950, NEVER]], [True, True]),
        ([[100, NEVER], [80, NEVER]], [[900, NEVER], [950, NEVER]], [False, True]),
        ([[100, 300], [80, 90]], [[900, 85], [950, NEVER]], [False, False]),  # one run of Xavier
        ([[NEVER, NEVER]] * 2, [[NEVER, NEVER]] * 2, [False, True]),
        # Runs at the highest rate end after 1,000 steps: what comes later is not known of all.
        ([[1500, 1600], [NEVER] * 2], [[2000, NEVER], [NEVER] * 2], [None, True]),
    ],
)
def test_rates_are_judged_by_the_slowest_seed_and_the_first_run(he, xavier, passed):
    needed = {}
    for i, rate in enumerate(("rate 0.001", "rate 0.01")):
        needed[HE, rate], needed[XAVIER, rate] = he[i], xavier[i]
    assert [claim.passed for claim in rates.judge(rates.EXPERIMENT.config(), needed)] == passed


def test_rates_are_above_0(tmp_path):
    config = rates.EXPERIMENT.config("laptop", rates=(0.01, 0.0))
    with pytest.raises(ValueError, match="config.rates is .*expected rates above 0"):
        rates.EXPERIMENT.plan(config, tmp_path, [0])


def test_a_run_that_is_below_the_limit_at_once_needs_one_step():
    config = rates.EXPERIMENT.config()
    assert until_trained.steps(config, [curve([0.4, 0.3])]) == [1]
    # As the run itself, which ends below the limit, not at it.
    assert until_trained.steps(config, [curve([0.9, 0.5, 0.4])]) == [100]


def test_variants_are_judged_by_every_seed():
    needed = {variant: [500.0, 600.0] for variant in late_start.VARIANTS}
    assert [claim.passed for claim in late_start.judge(needed)] == [False, True]
    needed[late_start.NO_BIASES] = [NEVER, NEVER]
    needed[late_start.NEITHER] = [500.0, NEVER]
    assert [claim.passed for claim in late_start.judge(needed)] == [True, False]


def test_kernels_are_in_the_order_of_depth():
    names = ["conv1", "conv2_1", "conv3_2", "conv3_10", "fc1", "fc2"]
    kernels = [f"{name}/kernel" for name in names]
    shuffled = [kernels[i] for i in (3, 0, 5, 1, 4, 2)]
    assert sorted(shuffled, key=late_start._place) == kernels


def test_gradients_and_kernels_are_drawn_for_a_run_that_logged_nothing_too(tmp_path):
    for name, text in (
        ("run", '{"step": 1, "grad_rms": {"conv1/kernel": 1.0, "fc1/kernel": 0.1}, '
         '"param_rms": {"conv1/kernel": 1.0, "fc1/kernel": 0.1}}\n'),
        ("empty", ""),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(text)
    folders = {name: tmp_path / name for name in ("run", "empty")}
    written = drawing.save(
        late_start.draw(late_start.EXPERIMENT.config(), folders), tmp_path / "figure"
    )
    assert [file.suffix for file in written] == [".png", ".pdf"]
    assert all(file.stat().st_size > 5000 for file in written)


TWO_STEPS = (
    *("--config.num_steps=2", "--config.log_every=1", "--config.eval_every=1"),
    *("--config.checkpoint_every=2", "--config.arch=tiny", "--seeds=1"),
)


def read_steps(folder):
    rows = list(csv.DictReader((folder / "steps.csv").open()))
    assert [(row["steps"], row["last_step"]) for row in rows] == [("", "2")] * len(rows)
    assert "–" in (folder / "table.md").read_text()
    return [(row["arm"], row["case"]) for row in rows]


@pytest.mark.slow
def test_rates_from_a_flag_to_a_table(tmp_path):
    flags = ("--scale=laptop", f"--workdir={tmp_path}", "--config.rates=(0.002,)")
    done = run("rates", *flags, *TWO_STEPS)
    assert done.returncode == 1, done.stderr  # nothing trains in two steps
    assert read_steps(tmp_path) == [("He", "rate 0.002"), ("Xavier", "rate 0.002")]


@pytest.mark.parametrize("variant", late_start.VARIANTS)
def test_every_variant_can_be_trained(variant):
    """Its net is built, and the digits have the examples that it asks for."""
    fields = late_start.VARIANTS[variant]
    config = late_start.EXPERIMENT.config("laptop", **fields)
    resolved = recipe.resolve(configs.train_config(config, initializer=config.xavier_initializer))
    assert len(resolved.train) >= resolved.config.batch_size


@pytest.mark.slow
def test_variants_from_a_flag_to_a_picture(tmp_path):
    flags = ("--scale=laptop", f"--workdir={tmp_path}")
    done = run("late_start", *flags, "--config.variants='as it is','biases frozen'", *TWO_STEPS)
    assert done.returncode == 0, done.stderr  # two variants alone make no claim
    assert read_steps(tmp_path) == [("Xavier", "as it is"), ("Xavier", "biases frozen")]
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_an_unknown_variant_is_told_the_nearest(tmp_path):
    config = late_start.EXPERIMENT.config()
    config.variants = ("biases froze",)
    with pytest.raises(ValueError, match="biases froze'.*'biases frozen'"):
        late_start.plan(config, tmp_path, [0])


def test_rates_end_where_rate_times_steps_is_equal_but_not_too_early():
    config = rates.EXPERIMENT.config()
    lasts = {rate: rates.last_step(config, rate) for rate in config.rates}
    assert lasts == {
        0.0005: 6000,
        0.001: 6000,
        0.002: 6000,
        0.005: 4000,
        0.01: 2000,
        0.03: 1000,
        0.1: 1000,
    }
