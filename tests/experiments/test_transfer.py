import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from experiments import transfer
from experiments.harness import drawing, figures
from experiments.harness.results import Curve
from tests.experiments.conftest import ROOT, SHORT, run

TINY = (*SHORT, "--config.pretrain_steps=4", "--config.examples_per_class=3")


def test_from_a_flag_to_a_picture(tmp_path):
    done = run("transfer", "--scale=laptop", f"--workdir={tmp_path}", *TINY)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0  # one seed refutes nothing
    for text in ("Claims:", "UNDECIDED  ", "n = 1", "| frozen | within + between |"):
        assert text in done.stdout
    for name in ("figure.png", "figure.pdf", "table.md", "curves.csv", "experiment.json"):
        assert (tmp_path / name).stat().st_size > 100
    for arm, frozen in (("trained_plain", False), ("frozen_within_between", True)):
        report = json.loads((tmp_path / arm / "seed_0/init_report.json").read_text())
        rows = {row["parameter"]: row for row in report}
        for layer, pretrained in (("conv1", True), ("fc1", False), ("fc2", False)):
            assert rows[f"{layer}/kernel"]["pretrained"] == pretrained
            assert rows[f"{layer}/kernel"]["frozen"] == (frozen and pretrained)
        lines = (tmp_path / arm / "seed_0/metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["epoch"] == 8 * 8 / 15
    for arm, calibrated in (("from_scratch", False), ("from_scratch_within_between", True)):
        report = json.loads((tmp_path / arm / "seed_0/init_report.json").read_text())
        assert not any(row["pretrained"] or row["frozen"] for row in report)
        biases = [row["measured_std"] for row in report if row["parameter"].endswith("/bias")]
        assert len(biases) == 4
        assert all((std > 0) == calibrated for std in biases)  # within-layer centres every layer
    moved = tmp_path.with_name(f"{tmp_path.name}_moved")
    tmp_path.rename(moved)
    (moved / "trained_plain/seed_0/status.json").unlink()  # to be continued
    (moved / "frozen_plain/seed_0/metrics.jsonl").write_bytes(b"")
    here = os.path.relpath(moved, ROOT)
    again = run("transfer", "--scale=laptop", f"--workdir={here}", *TINY, "--strict")
    assert again.returncode == 1, again.stderr
    assert "FAIL  " not in again.stdout
    assert "frozen_plain/seed_0/metrics.jsonl lacks records" in again.stderr
    refused = run("transfer", f"--workdir={tmp_path / 'other'}", *TINY, "--config.pretrained=x")
    assert "config.pretrained is set for each run" in refused.stderr
    assert not (tmp_path / "other").exists()


def differing(a, b):
    return {k: (getattr(a, k), getattr(b, k)) for k in vars(a) if getattr(a, k) != getattr(b, k)}


def test_arms_differ_in_what_they_are_called_alone():
    config = transfer.EXPERIMENT.config()
    arms = {arm: transfer.of_arm(config, arm, 3, Path("first")) for arm in transfer.ARMS}
    plain = arms["trained: plain"]
    assert differing(plain, arms["frozen: plain"]) == {"frozen": ("", "conv")}
    assert differing(plain, arms["trained: within + between"]) == {
        "datadep": ("none", "within_layer,between_layer"),
        "datadep_only": ("", "fc"),
    }
    assert differing(plain, arms["from scratch"]) == {
        "pretrained": ("first", ""),
        "reinit": ("fc", ""),
    }
    # The control differs from the baseline as the rescaled arm does from the plain one, but for
    # the layers that within-layer calibrates: none is pre-trained.
    assert differing(arms["from scratch"], arms["from scratch: within + between"]) == {
        "datadep": ("none", "within_layer,between_layer")
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


DIVERGING = ("--config.pixel_rms=1e30", "--config.pretrain_steps=8")
PLAIN, BOTH = "trained: plain", "trained: within + between"
CONTROL = "from scratch: within + between"


@pytest.mark.parametrize(
    ("errors", "passed"),
    [
        # Seeds differ more than arms: the difference within each decides.
        (
            {PLAIN: [0.26, 0.28, 0.3], BOTH: [0.24, 0.26, 0.279]},
            [True, True, False, False, True],
        ),
        ({PLAIN: [0.3, 0.4, 0.6], BOTH: [0.1, 0.41, 0.49]}, [None, None, None, False, None]),
        ({PLAIN: [0.3, 0.31, 0.3], BOTH: [0.1, 0.11, 0.1]}, [True, True, True, False, True]),
        ({PLAIN: [0.6, 0.61, 0.6], BOTH: [0.7, 0.71, 0.7]}, [False, False, False, False, False]),
        (
            {"frozen: plain": [0.4, 0.41, 0.4], "frozen: within + between": [0.3, 0.3, 0.3]},
            [False, False, False, True, False],
        ),
        # Rescaling helps as much without pre-training.
        ({BOTH: [0.1, 0.11, 0.1], CONTROL: [0.1, 0.1, 0.11]}, [False, True, True, False, None]),
        ({PLAIN: [0.3], BOTH: [0.1]}, [None] * 5),  # one seed shows nothing
        # 95 % of one claim would do, 99 % of five do not.
        ({PLAIN: [0.5, 0.5, 0.5], BOTH: [0.4, 0.4, 0.3]}, [False, None, False, False, None]),
    ],
)
def test_a_claim_is_decided_by_its_interval(errors, passed):
    claims = transfer.judge(transfer.EXPERIMENT.config(), curves(**errors))
    assert [claim.passed for claim in claims] == passed
    assert "difference, evaluated every 5 steps: " in claims[2].measured
    assert claims[4].statement == f"[{BOTH}] ends at a lower error than [{CONTROL}]"


def test_the_table_has_a_row_for_each_arm_with_differences_within_seeds():
    config = transfer.EXPERIMENT.config()
    text = transfer.markdown(config, curves(**{PLAIN: [0.3, 0.1], BOTH: [0.28, 0.08]}))
    rows = {tuple(row.split(" | ")[:2]): row for row in text.splitlines()[4:]}
    assert len(rows) == len(transfer.ARMS)
    assert rows["| trained", "plain"].endswith("| 30.0, 10.0 | – | in 1 of 2 |")
    assert "| 28.0, 8.0 | -2.0, -2.0 | in 1 of 2 |" in rows["| trained", "within + between"]
    assert rows["| from scratch", "plain"].endswith("| 50.0, 50.0 | – | in 0 of 2 |")
    scratch = rows["| from scratch", "within + between"]
    assert scratch.endswith("| 50.0, 50.0 | 0.0, 0.0 | in 0 of 2 |")
    assert text.startswith("Values of every seed, in order, n = 2 seeds; differences")
    assert "| steps to 20% error, evaluated every 5 |" in text
    five = transfer.markdown(config, curves(**{BOTH: [0.01, 0.02, 0.03, 0.04, 0.05]}))
    assert "| within + between | 3.0 ± 2.0 | -47.0 ± 2.0 | 50.0 ± 0.0 |" in five


def test_the_figure_is_drawn_for_one_seed_and_for_one_that_diverged(tmp_path):
    several = curves(**{PLAIN: [0.3, 0.1]})
    several[BOTH][0] = dataclasses.replace(several[BOTH][0], status="diverged")
    for name, by_arm in (("one", curves(**{PLAIN: [0.3]})), ("several", several)):
        written = drawing.save(figures.final_errors(by_arm, "title", "caption"), tmp_path / name)
        assert [file.suffix for file in written] == [".png", ".pdf"]
        assert all(file.stat().st_size > 5000 for file in written)


@pytest.mark.slow
def test_arms_of_a_pre_training_that_diverged_count_as_diverged(tmp_path):
    done = run("transfer", "--scale=laptop", f"--workdir={tmp_path}", *SHORT, *DIVERGING)
    assert done.returncode == 0, done.stderr
    assert ": 0 points, n = 1" in done.stdout
    assert "PASS" not in done.stdout
    assert (tmp_path / "table.md").exists()
