import csv
import json

import numpy as np
import pytest

from experiments import convergence_22, convergence_30, figures, results
from experiments.results import Claim, Curve


def curve(errors, arm="He", seed=0, status="done"):
    steps = np.arange(len(errors)) * 10
    return Curve(arm, seed, status, steps, steps / 20, np.array(errors, float))


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
    results.write_csv([read], tmp_path / "curves.csv")
    rows = list(csv.DictReader((tmp_path / "curves.csv").open()))
    assert list(rows[1]) == ["arm", "seed", "step", "epoch", "test_error"]
    assert list(rows[1].values()) == ["He", "7", "10", "0.5", "0.4"]


def test_what_curves_say():
    fell = curve([0.9, 0.5, 0.2, 0.3])
    assert (fell.final_error(), fell.lowest_error(), fell.steps_to(0.5)) == (0.3, 0.2, 10)
    assert fell.steps_to(0.1) == float("inf")
    assert curve([0.9, 0.1], status="diverged").final_error() == 1.0


def test_a_summary_has_n_and_the_students_interval():
    # Mean 2, standard deviation 1, t(0.975, 2) = 4.303: half-width 4.303 / √3 = 2.48.
    assert results.summary([0.01, 0.02, 0.03], " %", 100) == (
        "mean 2 %, 95 % interval ± 2.5 %, range 1 to 3 %, n = 3 seeds"
    )
    assert results.summary([0.5], " %", 100) == "50 %, n = 1"
    never = results.summary([200.0, float("inf")], " steps")
    assert never == "reached in 1 of n = 2 seeds (200 steps)"


def test_what_an_interval_has_to_decide_is_not_decided_by_one_seed():
    one = results.below_zero_claim("It falls", [-0.5], " points", 100)
    assert not one.passed
    assert one.measured == ("difference: -50 points, n = 1; not decided: one seed has no interval")
    two = results.below_zero_claim("It falls", [-1.0, -1.0], "", of="correlation")
    assert two.passed
    assert two.measured.startswith("correlation: mean -1, 95 % interval ± 0, ")


def test_a_claim_reads_as_a_verdict():
    assert str(Claim("It works", True, "n = 3")).startswith("PASS  It works\n")
    assert str(Claim("It works", False, "n = 3")).startswith("FAIL  It works\n")


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
    config = convergence_30.laptop()
    claims = convergence_30.judge(config, list(map(curve, he)), list(map(curve, xavier)))
    assert [claim.passed for claim in claims] == passed


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
    config = convergence_22.laptop()
    claims = convergence_22.judge(config, list(map(curve, he)), list(map(curve, xavier)))
    assert [claim.passed for claim in claims] == passed


def test_the_figure_is_drawn_for_one_seed_and_for_one_that_diverged(tmp_path):
    he = [curve(CONVERGES, seed=s) for s in range(3)]
    xavier = [curve(STALLS[:2], "Xavier", status="diverged"), curve(STALLS, "Xavier", 1)]
    for name, curves in (("several", he + xavier), ("one", [he[0], xavier[1]])):
        written = figures.error_curves(curves, "title", "caption", tmp_path / name)
        assert [file.suffix for file in written] == [".png", ".pdf"]
        assert all(file.stat().st_size > 5000 for file in written)


def drawn_by_test(stem):
    return figures.errors_by_test({"A": {"10-view": [0.0, 0.0]}}, "caption", stem)


def drawn_by_arm(stem):
    return figures.final_errors({"A": [curve([0.0])] * 2}, "title", "caption", stem)


def drawn_over_steps(stem):
    return figures.method_errors({"c": {"He": [curve([0.9, 0.0])] * 2}}, "caption", stem)


@pytest.mark.parametrize("draw", [drawn_by_test, drawn_by_arm, drawn_over_steps])
def test_a_mark_at_no_error_is_whole_and_its_interval_ends_at_the_frame(
    draw, tmp_path, monkeypatch
):
    monkeypatch.setattr(figures, "save", lambda figure, stem: figure)
    figure = draw(tmp_path / "x")
    figures.pyplot().close(figure)
    axes = figure.axes[0]
    marks = [line for line in axes.lines if line.get_marker() in ("o", "D")]
    assert marks
    assert not any(mark.get_clip_on() for mark in marks)
    assert all(bar.get_clip_on() for bar in axes.collections)


def test_seeds_in_a_caption():
    assert figures.seeds(3, 5) == "seeds 3 to 7, n = 5"
    assert figures.seeds(3, 1) == "seed 3, n = 1"
