import csv
import dataclasses

import numpy as np
import pytest

from experiments import signal_profile
from experiments.harness import profiles, record
from experiments.harness.profiles import Profile
from experiments.signal_profile import (
    ARMS,
    GAUSSIAN,
    HE_IN,
    HE_OUT,
    XAVIER,
    Initialised,
    judge,
    last_stage,
)
from prelu_jax import arch
from tests.experiments.conftest import run

NET = arch.SMALL_14_REDUCED
LAYERS = tuple(layer.name for layer in NET.layers if not layer.name.startswith(("pool", "spp")))


@pytest.mark.slow
def test_from_the_command_to_the_picture(tmp_path):
    done = run(
        "signal_profile",
        *("--scale=laptop", "--seeds=3"),
        *("--config.archs=small_14_reduced", f"--workdir={tmp_path}"),
    )
    assert "compiling]" in done.stderr
    claims = record.read(tmp_path).claims
    assert claims[0].passed
    assert claims[2].passed
    assert claims[3].passed is not False  # intervals of three seeds are wide: they may not decide
    assert "healthy 3" in claims[0].measured
    assert done.returncode == (0 if claims[1].passed else 1), done.stderr
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    rows = list(csv.DictReader((tmp_path / "profile.csv").open()))
    assert len(rows) == len(ARMS) * 2 * len(LAYERS)
    for row in rows:
        # A few narrow nets: the mean of each moment within a factor of ten of the theory.
        assert abs(float(row["log10_measured"]) - float(row["log10_predicted"])) < 1, row
    by_seed = list(csv.DictReader((tmp_path / "seeds.csv").open()))
    assert len(by_seed) == len(rows)
    logs = np.log(10) * np.array(
        [[float(row[f"log10_seed_{i}"]) for i in range(3)] for row in by_seed]
    )
    log, _ = profiles.log_normal_mean(logs.T, 0.95)
    assert log / np.log(10) == pytest.approx(
        [float(row["log10_measured"]) for row in rows], abs=2e-3
    )
    table = (tmp_path / "table.md").read_text()
    assert "99 % interval of the mean over n = 3 seeds" in table
    assert table in done.stdout
    kernels = {r["initialisation"]: r for r in rows if r["layer"] == "conv1"}
    assert set(kernels) == set(ARMS)


@pytest.mark.parametrize(
    ("fields", "seeds", "message"),
    [
        ({}, 1, "--seeds is 1, expected at least 2"),
        ({"archs": ("small_15",)}, 2, "Unknown arch 'small_15'. Did you mean 'small_1"),
        ({"padding": "some"}, 2, "Unknown padding 'some'. Did you mean 'same'"),
        ({"batch_size": 0}, 2, "config.batch_size is 0, expected at least 1"),
    ],
)
def test_bad_input_is_named(fields, seeds, message, tmp_path):
    config = signal_profile.EXPERIMENT.config("laptop", **fields)
    with pytest.raises(ValueError, match=message):
        signal_profile.EXPERIMENT.run(config, tmp_path / "run", seeds)
    assert not (tmp_path / "run").exists()


def test_the_mean_of_a_log_normal_variable_is_found_in_its_interval():
    rng = np.random.default_rng(0)
    logs = rng.normal(1.0, 1.5, (20, 4000))  # 4000 experiments of 20 draws
    log, half = profiles.log_normal_mean(logs, 0.95)
    inside = np.abs(log - (1.0 + 1.5**2 / 2)) < half
    # Near enough to 95 %: the interval takes the estimate's distribution for a Student's.
    assert 0.92 < inside.mean() < 0.98
    assert np.mean(log) == pytest.approx(1.0 + 1.5**2 / 2, abs=0.02)


def test_the_last_stage_has_no_pool_in_it():
    assert last_stage(NET) == [f"conv3_{i}" for i in range(1, 7)]
    assert last_stage(arch.MODEL_B) == [f"conv4_{i}" for i in range(1, 7)]


def initialised(arm, verdicts, factor, spread=0.01):
    """A network whose moments change by a factor a layer, as measured; the theory has ½."""
    depth = np.arange(len(LAYERS))
    wobble = spread * np.linspace(-1, 1, 8)[:, None] * depth
    forward, backward = (
        Profile(
            NET.name,
            arm,
            direction,
            LAYERS,
            sign * depth * np.log(0.5),
            sign * depth * np.log(factor) + wobble,
        )
        for direction, sign in (("forward", 1), ("backward", -1))
    )
    return Initialised(NET.name, arm, (forward, backward), verdicts)


def measured(he="healthy", xavier="vanishing", gaussian="vanishing", factor=0.5):
    verdicts = {HE_IN: he, HE_OUT: "healthy", XAVIER: xavier, GAUSSIAN: gaussian}
    return [initialised(arm, [v, v], factor) for arm, v in verdicts.items()]


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({}, [True, True, True, True]),
        ({"he": "vanishing"}, [False, True, True, True]),
        ({"xavier": "healthy"}, [True, False, True, True]),
        ({"gaussian": "exploding"}, [True, True, False, True]),
        ({"factor": 0.6}, [True, True, True, False]),
    ],
)
def test_each_claim_can_fail(changes, passed):
    assert [claim.passed for claim in judge([NET], measured(**changes))] == passed


def test_the_claim_on_factors_states_how_wide_the_intervals_are():
    narrow, wide = (
        judge([NET], [initialised(arm, ["healthy"], 0.5, spread) for arm in ARMS])[3]
        for spread in (0.01, 0.1)
    )
    # Logs of factors have a deviation of 0.0070, times t(0.9995, 7) / √8 = 5.408 / √8: 1.34 %.
    assert narrow.measured == (
        "all 8 of them; half-widths of the intervals: median 1.3 %, largest 1.3 % of the factor"
    )
    assert narrow.passed
    assert wide.passed
    assert "median 14 %" in wide.measured


def test_the_table_states_how_often_the_theory_holds_and_how_wide_the_intervals_are():
    of_half = initialised(XAVIER, [], 0.5).profiles[0]
    other = initialised(XAVIER, [], 0.6).profiles[0]
    lines = profiles.markdown([of_half, other], 0.99).splitlines()
    n = len(LAYERS)
    widths = np.exp(of_half.interval(0.99)[1])
    row = f"| {NET.name} | Xavier | forward | {n} of {n} | × {np.median(widths):.3g} | "
    assert lines[4] == f"{row}× {widths.max():.3g} |"
    # Of the other, the first layer alone has the same moment.
    assert lines[5].startswith(f"| {NET.name} | Xavier | forward | 1 of {n} | × ")
    assert 1 < np.median(widths) < widths.max()


def test_a_factor_is_that_of_one_layer_in_the_direction_of_the_signal():
    (forward, backward) = initialised(XAVIER, [], 0.6).profiles
    for profile in (forward, backward):
        factor = profile.factor_per_layer(last_stage(NET), 0.99)
        assert (factor.predicted, factor.measured) == pytest.approx((0.5, 0.6), rel=1e-3)
        assert factor.low < factor.measured < factor.high
        assert not factor.agrees
        assert dataclasses.replace(factor, predicted=factor.high).agrees
