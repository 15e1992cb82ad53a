import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from experiments import figures, transfer
from experiments.results import Curve
from tests.experiments.conftest import SHORT, run

TINY = (*SHORT, "--config.pretrain_steps=4", "--config.examples_per_class=3")


def test_from_a_flag_to_a_picture(tmp_path):
    done = run("transfer", "--scale=laptop", f"--workdir={tmp_path}", *TINY)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 1  # eight steps teach nothing: the claims fail
    for text in ("Claims:", "FAIL  ", "n = 1", "| frozen | within + between |"):
        assert text in done.stdout
    for name in ("figure.png", "figure.pdf", "table.md", "curves.csv", "experiment.json"):
        assert (tmp_path / name).stat().st_size > 100
    for arm, frozen in (("trained_plain", False), ("frozen_within_between", True)):
        report = json.loads((tmp_path / arm / "seed_0/init_report.json").read_text())
        rows = {row["parameter"]: row for row in report}
        for layer, pretrained in (("conv1", True), ("fc1", False), ("fc3", False)):
            assert rows[f"{layer}/kernel"]["pretrained"] == pretrained
            assert rows[f"{layer}/kernel"]["frozen"] == (frozen and pretrained)
        lines = (tmp_path / arm / "seed_0/metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["epoch"] == 8 * 8 / 15
    refused = run("transfer", f"--workdir={tmp_path / 'other'}", *TINY, "--config.pretrained=x")
    assert "config.pretrained is set for each run" in refused.stderr
    assert not (tmp_path / "other").exists()


def differing(a, b):
    return {k: (getattr(a, k), getattr(b, k)) for k in vars(a) if getattr(a, k) != getattr(b, k)}


def test_arms_differ_in_what_they_are_called_alone():
    config = transfer.laptop()
    arms = {arm: transfer.of_arm(config, arm, 3, Path("first")) for arm in transfer.ARMS}
    plain = arms["trained: plain"]
    assert differing(plain, arms["frozen: plain"]) == {"frozen": ("", "conv")}
    assert differing(plain, arms["trained: within + between"]) == {
        "datadep": ("none", "within_layer,between_layer"),
        "datadep_only": ("", "fc"),
    }
    assert differing(plain, arms["from scratch"]) == {
        "pretrained": ("first", ""),
        "fresh": ("fc", ""),
    }
    first = transfer.pretraining(config, 3)
    assert (first.classes, plain.classes, first.seed, plain.seed) == ("0-4", "5-9", 3, 3)
    assert (first.examples_per_class, plain.examples_per_class) == (0, 10)


def curves(**errors):
    """Final errors by arm, others 0.5 in every seed; the error falls to its end at step 50."""
    n = len(next(iter(errors.values())))
    by_arm = {arm: errors.get(arm, [0.5] * n) for arm in transfer.ARMS}
    steps = np.array([0, 50, 100])
    return {
        arm: [
            Curve(arm, seed, "done", steps, steps / 2, np.array([0.9, last, last]))
            for seed, last in enumerate(finals)
        ]
        for arm, finals in by_arm.items()
    }


PLAIN, BOTH = "trained: plain", "trained: within + between"


@pytest.mark.parametrize(
    ("errors", "passed"),
    [
        # Seeds differ more than arms: what counts is the difference within each.
        ({PLAIN: [0.3, 0.34, 0.38], BOTH: [0.28, 0.32, 0.35]}, [True, True, False, False]),
        ({PLAIN: [0.3, 0.4, 0.5], BOTH: [0.1, 0.41, 0.49]}, [False, False, False, False]),
        ({PLAIN: [0.3, 0.31, 0.3], BOTH: [0.1, 0.11, 0.1]}, [True, True, True, False]),
        ({PLAIN: [0.6, 0.61, 0.6], BOTH: [0.7, 0.71, 0.7]}, [False, False, False, False]),
        (
            {"frozen: plain": [0.4, 0.41, 0.4], "frozen: within + between": [0.3, 0.3, 0.3]},
            [False, False, False, True],
        ),
        ({PLAIN: [0.3], BOTH: [0.1]}, [False, False, False, False]),  # one seed shows nothing
    ],
)
def test_a_claim_passes_if_its_interval_lies_below_zero(errors, passed):
    claims = transfer.judge(transfer.laptop(), curves(**errors))
    assert [claim.passed for claim in claims] == passed


def test_the_table_has_a_row_for_each_arm_with_differences_within_seeds():
    config = transfer.laptop()
    text = transfer.markdown(config, curves(**{PLAIN: [0.3, 0.1], BOTH: [0.28, 0.08]}))
    rows = {tuple(row.split(" | ")[:2]): row for row in text.splitlines()[4:]}
    assert len(rows) == len(transfer.ARMS)
    # t(0.975, 1) = 12.706, times √2 · 10 / √2 points.
    assert rows["| trained", "plain"].endswith("| 20.0 ± 127.1 | – | in 1 of 2 |")
    assert "| 18.0 ± 127.1 | -2.0 ± 0.0 | in 1 of 2 |" in rows["| trained", "within + between"]
    assert "n = 2 seeds" in text


def test_the_figure_is_drawn_for_one_seed_and_for_one_that_diverged(tmp_path):
    several = curves(**{PLAIN: [0.3, 0.1]})
    several[BOTH][0] = dataclasses.replace(several[BOTH][0], status="diverged")
    for name, by_arm in (("one", curves(**{PLAIN: [0.3]})), ("several", several)):
        written = figures.final_errors(by_arm, "title", "caption", tmp_path / name)
        assert [file.suffix for file in written] == [".png", ".pdf"]
        assert all(file.stat().st_size > 5000 for file in written)
