"""The cost of depth: the fit, the claims and the table, on made-up runs; and one real command."""

import csv
import math

import numpy as np
import pytest

from experiments import takeoff
from experiments.harness.convergence import HE, XAVIER
from tests.experiments.conftest import run

NEVER = math.inf
DEPTHS = (14, 22, 30, 44)


def by_theory(noise=0.0, limit=NEVER):
    rng = np.random.default_rng(0)
    of = {
        n: [
            float(100 * 2 ** (n / 2) / (n - 2) * np.exp(noise * rng.standard_normal()))
            for _ in range(5)
        ]
        for n in DEPTHS
    }
    return {n: [s if s <= limit else NEVER for s in each] for n, each in of.items()}


FLAT = {n: [100.0, 110.0, 90.0, 105.0, 95.0] for n in DEPTHS}


def passed(he, xavier):
    return [
        claim.passed
        for claim in takeoff.judge(takeoff.EXPERIMENT.config(), {HE: he, XAVIER: xavier})
    ]


def test_claims_hold_for_runs_as_the_theory_has_them():
    assert passed(FLAT, by_theory(noise=0.1)) == [True] * 5


def test_the_arms_swapped_fail():
    assert passed(by_theory(noise=0.1), FLAT) == [False, False, False, False, False]


def test_runs_that_did_not_train_are_later_than_any_and_not_fitted():
    xavier = by_theory(noise=0.1, limit=1e6)
    assert xavier[44] == [NEVER] * 5
    assert passed(FLAT, xavier) == [True] * 5
    assert takeoff.growth(xavier).depths == (14, 22, 30)
    never = dict.fromkeys(DEPTHS, [NEVER] * 5)
    assert passed(FLAT, never) == [True, True, True, None, None]
    assert str(takeoff.growth(never)).startswith("no factor: it needs two depths")
    assert takeoff.predicted(dict.fromkeys(DEPTHS, [NEVER] * 5)) == {}


def test_the_prediction_has_the_slope_of_theory_and_the_level_of_the_runs():
    exact = by_theory()
    for depth, value in takeoff.predicted(exact).items():
        assert value == pytest.approx(exact[depth][0])
    found = takeoff.growth(exact)
    assert found.factor == pytest.approx(found.theory)
    # ln 2 / 2 a layer, less the logarithm of the depth: about 1 / (L - 2).
    assert math.exp(math.log(2) / 2 - 1 / 12) < found.theory < math.sqrt(2)


def test_an_interval_that_contains_no_growth_confirms_no_theory():
    assert takeoff.Growth(1.3, 0.9, 1.9, 1.35, (14, 22)).holds_theory() is None
    assert takeoff.Growth(1.3, 1.2, 1.4, 1.35, (14, 22)).holds_theory() is True
    assert takeoff.Growth(1.3, 0.9, 1.4, 1.5, (14, 22)).holds_theory() is False


@pytest.mark.slow
def test_from_a_flag_to_a_picture(tmp_path):
    short = ("--config.num_steps=2", "--config.log_every=1", "--config.eval_every=1")
    fields = (*short, "--config.checkpoint_every=2", "--config.depths=(14,)")
    done = run("takeoff", "--scale=laptop", f"--workdir={tmp_path}", "--seeds=1", *fields)
    assert done.returncode == 1, done.stderr  # nothing trains in two steps
    rows = list(csv.DictReader((tmp_path / "steps.csv").open()))
    assert [(r["arm"], r["case"], r["steps"], r["last_step"]) for r in rows] == [
        ("He", "layers 14", "", "2"),
        ("Xavier", "layers 14", "", "2"),
    ]
    assert (tmp_path / "figure.png").stat().st_size > 5000
    assert "| 14 | – | – | – |" in (tmp_path / "table.md").read_text()
