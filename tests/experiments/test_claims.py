import numpy as np
import pytest
from scipy import stats

from experiments import borders, convergence_30, ensemble, large_models, rectifiers, transfer
from experiments.harness import claims, cli, intervals, results
from experiments.harness.claims import Claim
from experiments.harness.testing import crops_test_name, dense_test_name
from experiments.large_models import A_RELU, MODELS, A
from tests.experiments.test_large_models import errors as errors_of_models
from tests.experiments.test_rectifiers import LEARNED, errors_of
from tests.experiments.test_transfer import curves

FIVE = [-1.0, -2.0, -3.0, -4.0, -5.0]


@pytest.mark.parametrize(
    ("passed", "outcome"), [(True, "PASS"), (False, "FAIL"), (None, "UNDECIDED")]
)
def test_a_claim_reads_as_a_verdict(passed, outcome):
    claim = Claim("It works", passed, "n = 3")
    assert claim.outcome == outcome
    assert str(claim) == f"{outcome}  It works\n      n = 3"


@pytest.mark.parametrize(
    ("values", "passed"),
    [
        ([-1.0, -1.1, -0.9], True),
        ([-0.1, 0.2, -0.1], None),  # the interval holds 0
        ([-1.0, -1.0, 0.9], None),
        ([1.0, 1.1, 0.9], False),  # refuted
        ([0.0, 0.0, 0.0], False),  # at 0 is not below
        ([-0.5], None),  # one seed has no interval
        ([0.5], None),
        ([-1.0, -1.0, float("nan")], False),  # a run that diverged
        ([-1.0, -1.0, float("-inf")], False),
        ([float("inf")], False),
    ],
)
def test_an_interval_passes_refutes_or_leaves_a_claim_undecided(values, passed):
    claim = claims.below_zero_claim("It falls", values, " points", 100)
    assert claim.passed is passed


def test_the_whole_interval_has_to_lie_on_one_side():
    # t(0.975, 4) = 2.776, times √2.5 / √5: the half-width is 1.963.
    for shift, passed in ((1.03, True), (1.04, None), (4.95, None), (4.97, False)):
        assert claims.below_zero([value + shift for value in FIVE]) is passed


def test_what_decides_is_shown():
    def measured(values, **kwargs):
        return claims.below_zero_claim("It falls", values, " points", **kwargs).measured

    assert (
        measured([-50.0]) == "difference: -50 points, n = 1; not decided: one seed has no interval"
    )
    assert measured([-1.0, -2.0, -3.0], quantity="correlation") == (
        "correlation: -1, -2, -3 points, n = 3 seeds; mean -2 points, 95 % interval ± 2.5 points"
    )
    assert measured(FIVE) == (
        "difference: mean -3 points, 95 % interval ± 2 points, range -5 to -1 points, n = 5 seeds"
    )
    for values in ([-1.0, -2.0, -3.0], FIVE):
        several = measured(values, claims=5)
        assert ", 99 % interval ± " in several
        assert several.endswith("; 5 claims are judged on these runs")
    assert "98.33 % interval" in measured(FIVE, claims=3)


@pytest.mark.parametrize("number", [1, 2, 5, 20])
def test_several_claims_together_are_wrong_as_seldom_as_one(number):
    """The chance that one interval, of noise around 0, lies below 0, over many experiments."""
    level = intervals.confidence(number)
    assert number * (1 - level) == pytest.approx(0.05)
    x = np.random.default_rng(number).normal(size=(20_000, 4))
    half = stats.t.ppf((1 + level) / 2, 3) * x.std(axis=1, ddof=1) / 2
    passed = [claims.below_zero(list(row), number) is True for row in x[:500]]
    assert passed == (x.mean(axis=1) + half < 0)[:500].tolist()
    below = np.mean(x.mean(axis=1) + half < 0) * 2 * number
    # The standard error of a frequency p of n draws is √(p / n).
    assert abs(below - 0.05) < 5 * 2 * number * np.sqrt(0.025 / number / 20_000)


def test_a_claim_that_passes_alone_may_be_undecided_among_others():
    values = [value + 1.0 for value in FIVE]
    assert claims.below_zero_claim("It falls", values, "").passed
    assert claims.below_zero_claim("It falls", values, "", claims=5).passed is None
    refuted = [-value for value in values]
    assert claims.below_zero_claim("It falls", refuted, "").passed is False
    assert claims.below_zero_claim("It falls", refuted, "", claims=5).passed is None


def claims_of_large_models():
    return large_models.judge(large_models.EXPERIMENT.config(), errors_of_models(a=[0.2, 0.3, 0.4]))


def claims_of_the_ensemble():
    errors = {name: [(0.1 * i, 0.0) for i in range(3)] for name in (*MODELS, ensemble.ENSEMBLE)}
    return ensemble.judge(ensemble.EXPERIMENT.config(), errors)


def claims_on_borders():
    config, of_seeds = borders.EXPERIMENT.config(), [(0.1 * i, 0.0) for i in range(3)]
    tests = [name(n) for n in config.scales for name in (dense_test_name, crops_test_name)]
    return borders.judge(config, {model: dict.fromkeys(tests, of_seeds) for model in (A_RELU, A)})


def claims_on_the_runs_of_the_models():
    return [*claims_of_large_models(), *claims_on_borders(), *claims_of_the_ensemble()]


@pytest.mark.parametrize(
    ("judged", "of_one"),
    [
        (lambda: rectifiers.judge(rectifiers.EXPERIMENT.config(), errors_of(), LEARNED), 5),
        (
            lambda: transfer.judge(
                transfer.EXPERIMENT.config(), curves(**{"from scratch": [0.3, 0.4, 0.5]})
            ),
            5,
        ),
        (claims_on_the_runs_of_the_models, 12),
    ],
)
def test_experiments_correct_for_all_the_intervals_that_they_judge(judged, of_one):
    measured = [claim.measured for claim in judged() if "interval" in claim.measured]
    assert len(measured) == of_one
    level = f"{100 * (1 - 0.05 / of_one):.4g} % interval"
    for text in measured:
        assert level in text
        assert f"{of_one} claims are judged on these runs" in text


def test_fewer_than_five_seeds_are_shown_one_by_one():
    few = [0.010, 0.019, 0.037]
    assert intervals.summary(few, " %", 100) == "1.0, 1.9, 3.7 %, n = 3 seeds"
    assert intervals.short(few, 100) == "1.0, 1.9, 3.7"
    assert intervals.heading(3) == "Values of every seed, in order, n = 3 seeds"
    assert intervals.short([0.5], 100) == "50.0"
    assert intervals.summary([0.5], " %", 100) == "50 %, n = 1"
    # No more digits than four, and the same place after the point for all of them.
    assert intervals.summary([3 / 297, 11 / 297], " %", 100) == "1.010, 3.704 %, n = 2 seeds"
    assert intervals.summary([200, 1225, 200], " steps") == "200, 1225, 200 steps, n = 3 seeds"
    assert intervals.summary([0.0, -0.0], "") == "0, 0, n = 2 seeds"
    assert intervals.short([-1e-9, 0.0], 1) == "0.0, 0.0"
    assert intervals.short([12.345, 0.0001], digits=3, form="g") == "12.3, 0.0001"


def test_five_seeds_and_more_have_a_mean_and_its_interval():
    # Mean 3, standard deviation √2.5, t(0.975, 4) = 2.776: half-width 1.96.
    values = [0.01, 0.02, 0.03, 0.04, 0.05]
    assert intervals.summary(values, " %", 100) == (
        "mean 3 %, 95 % interval ± 2 %, range 1 to 5 %, n = 5 seeds"
    )
    assert intervals.short(values, 100) == "3.0 ± 2.0"
    assert intervals.heading(5) == "Means and 95 % Student intervals over n = 5 seeds"


@pytest.mark.parametrize("n", [2, 5])
def test_what_did_not_happen_in_every_seed_is_counted(n):
    values = [200.0, *[float("inf")] * (n - 1)]
    assert intervals.summary(values, " steps") == f"reached in 1 of n = {n} seeds (200 steps)"
    assert intervals.short(values) == f"in 1 of {n}"


@pytest.mark.parametrize(
    ("passed", "strict", "status"),
    [
        ([True, True], False, 0),
        ([True, None], False, 0),
        ([True, False], False, 1),
        ([None, False], False, 1),
        ([True, True], True, 0),
        ([True, None], True, 1),
        ([False, None], True, 1),
        ([], True, 0),
    ],
)
def test_a_refuted_claim_is_the_exit_status_and_with_strict_an_undecided_one(
    passed, strict, status
):
    judged = [Claim("x", verdict, "y") for verdict in passed]
    assert cli.exit_status(judged, strict) == status


def test_a_line_is_that_of_the_usual_formulas():
    rng = np.random.default_rng(0)
    x = np.repeat([1.0, 2.0, 4.0], 4)
    inside = 0
    for _ in range(500):
        slope, half = intervals.line(x, 3 * x + 2 + rng.standard_normal(len(x)))
        inside += abs(slope - 3) <= half
    # 95 % of 500, with a standard deviation of 4.9.
    assert 455 <= inside <= 495
    assert intervals.line(x, 3 * x)[0] == pytest.approx(3)


def test_a_quantity_is_below_a_limit_above_it_or_neither():
    assert claims.is_below(1.0, 0.1, 0.9) is True
    assert claims.is_below(1.0, 1.0, 2.0) is False
    assert claims.is_below(1.0, 0.9, 1.1) is None
    assert claims.is_below(1.0, np.nan, np.nan) is None


def ended(arm, steps, *errors):
    at = np.linspace(0, steps, len(errors)).astype(int)
    return results.Curve(arm, 0, "done", at, at / 20, np.array(errors))


def test_the_headline_is_a_claim_about_the_steps_of_the_run_and_no_more():
    config = convergence_30.EXPERIMENT.config()
    xavier = [ended("Xavier", config.num_steps, 0.9, 0.92)]
    judged = convergence_30.judge(config, [ended("He", config.num_steps, 0.9, 0.03)], xavier)
    assert [claim.passed for claim in judged] == [True, True]
    assert "stays at chance for the 500 steps of the run" in judged[1].statement


@pytest.mark.parametrize(("needed", "passed"), [(200, True), (400, False)])
def test_a_stall_is_twenty_times_the_steps_that_he_needs(needed, passed):
    config = convergence_30.EXPERIMENT.config("stall")
    xavier = [ended("Xavier", config.num_steps, 0.9, 0.9)]
    *_, stalled = convergence_30.judge(config, [ended("He", needed, 0.9, 0.09)], xavier)
    assert stalled.passed is passed
    assert f"at most {needed} steps; Xavier's runs have 6,000" in stalled.measured
