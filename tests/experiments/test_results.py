import csv
import dataclasses
import json

import pytest

from experiments import convergence_22, convergence_30, transfer
from experiments.harness import figures, results
from experiments.harness.experiment import Report
from tests.experiments.curves import curve


def test_a_curve_is_read_from_its_run_folder(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": 7}')
    (tmp_path / "status.json").write_text('{"status": "done", "step": 20}')
    lines = [
        {"step": 0, "epoch": 0.0, "test_error": 0.9, "test_loss": 2.3},
        {"step": 10, "train_loss": 2.0},
        {"step": 10, "epoch": 0.5, "test_error": 0.4, "test_loss": 1.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    read = results.read_curve(tmp_path, "He")
    assert (read.seed, read.status, read.steps.tolist()) == (7, "done", [0, 10])
    assert (read.epochs.tolist(), read.errors.tolist()) == ([0.0, 0.5], [0.9, 0.4])
    Report([], tables={"curves.csv": results.rows([read])}).write(tmp_path)
    rows = list(csv.DictReader((tmp_path / "curves.csv").open()))
    assert list(rows[1]) == ["arm", "seed", "step", "epoch", "test_error"]
    assert list(rows[1].values()) == ["He", "7", "10", "0.5", "0.4"]


def test_what_curves_say():
    fell = curve([0.9, 0.5, 0.2, 0.3])
    assert (fell.final_error(), fell.lowest_error(), fell.steps_to(0.5)) == (0.3, 0.2, 10)
    assert fell.steps_to(0.1) == float("inf")
    assert curve([0.9, 0.1], status="diverged").final_error() == 1.0


CONVERGES, STALLS, LATE = [0.9, 0.4, 0.05], [0.9, 0.9, 0.9], [0.9, 0.8, 0.1]


@pytest.mark.parametrize(
    ("he", "xavier", "passed"),
    [
        ([CONVERGES, CONVERGES], [STALLS, STALLS], [True, True]),
        ([CONVERGES, STALLS], [STALLS, STALLS], [False, True]),  # every seed, not most
        ([CONVERGES, CONVERGES], [STALLS, [0.9, 0.7, 0.9]], [True, False]),  # at any time
        ([STALLS, STALLS], [CONVERGES, CONVERGES], [False, False]),  # the arms swapped
    ],
)
def test_the_claims_of_figure_3(he, xavier, passed):
    config = convergence_30.EXPERIMENT.config()
    claims = convergence_30.judge(config, list(map(curve, he)), list(map(curve, xavier)))
    assert [claim.passed for claim in claims] == passed
    assert "for the 500 steps of the run" in claims[1].statement  # no more than was seen


@pytest.mark.parametrize(
    ("he", "xavier", "passed"),
    [
        ([CONVERGES[:2]], [[0.9] * 21], True),  # 10 steps against 200
        ([CONVERGES[:2]], [[0.9] * 20], False),  # 190: too few have been seen
        ([CONVERGES[:2], LATE], [[0.9] * 21], False),  # of every seed of He's
        ([CONVERGES[:2]], [[0.9] * 21, [0.9] * 20 + [0.7]], False),
        ([STALLS], [[0.9] * 21], False),
    ],
)
def test_xavier_stalls_for_a_multiple_of_hes_steps(he, xavier, passed):
    config = dataclasses.replace(convergence_30.EXPERIMENT.config("stall"), stop_error=0.41)
    claims = convergence_30.judge(config, list(map(curve, he)), list(map(curve, xavier)))
    assert claims[2].passed is passed  # no np.bool, which JSON refuses
    assert "at least 20 times the steps that He needs to reach 41% error" in claims[2].statement


def test_a_run_that_diverged_did_not_stay_at_chance():
    xavier = [curve(STALLS), curve(STALLS[:2], status="diverged")]
    _, chance = convergence_30.judge(convergence_30.EXPERIMENT.config(), [curve(CONVERGES)], xavier)
    assert not chance.passed


@pytest.mark.parametrize(
    ("he", "xavier", "passed"),
    [
        ([CONVERGES, CONVERGES], [LATE, LATE], [True, True]),
        ([CONVERGES, LATE], [LATE, LATE], [True, False]),  # as early is not earlier
        ([CONVERGES, CONVERGES], [LATE, STALLS], [False, True]),
        ([LATE, LATE], [CONVERGES, CONVERGES], [True, False]),
    ],
)
def test_the_claims_of_figure_2(he, xavier, passed):
    config = convergence_22.EXPERIMENT.config()
    claims = convergence_22.judge(config, list(map(curve, he)), list(map(curve, xavier)))
    assert [claim.passed for claim in claims] == passed
    assert claims[1].measured.endswith("; evaluated every 25 steps")


@pytest.mark.parametrize("logged", ["", '{"step": 2, "train_loss": 2.0}\n'])
def test_a_run_that_diverged_before_its_first_record_is_wrong_in_every_claim(logged, tmp_path):
    (tmp_path / "config.json").write_text('{"seed": 0}')
    (tmp_path / "status.json").write_text('{"status": "diverged", "step": 0}')
    (tmp_path / "metrics.jsonl").write_text(logged)
    lost = results.read_curve(tmp_path, "He")
    assert (lost.final_error(), lost.lowest_error()) == (1.0, 1.0)
    assert lost.steps_to(0.5) == float("inf")
    fine = curve([0.9, 0.05, 0.05])
    for he, xavier in (([lost, fine], [fine, fine]), ([lost, lost], [lost, lost])):
        claims = convergence_30.judge(convergence_30.EXPERIMENT.config(), he, xavier)
        assert not any(claim.passed for claim in claims)
        claims = convergence_30.judge(convergence_30.EXPERIMENT.config("stall"), he, xavier)
        assert not any(claim.passed for claim in claims)
        assert not any(
            c.passed for c in convergence_22.judge(convergence_22.EXPERIMENT.config(), he, xavier)
        )
        for drawn in (he, xavier, [lost]):
            assert figures.error_curves(drawn, "title", "caption")
            by_method = {"condition": {"He": drawn}}
            assert figures.method_errors(by_method, "caption")
    arms = {arm: [lost, lost] for arm in transfer.ARMS}
    assert not any(claim.passed for claim in transfer.judge(transfer.EXPERIMENT.config(), arms))
    assert "in 0 of 2" in transfer.markdown(transfer.EXPERIMENT.config(), arms)
    assert len(results.rows([lost])) == 1
