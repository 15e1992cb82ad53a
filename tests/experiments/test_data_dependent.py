import csv
import dataclasses
import types

import jax
import numpy as np
import pytest

from experiments import data_dependent
from experiments.data_dependent import BOTH, HE, LSUV, METHODS, WITHIN, Condition, Trial
from experiments.harness import record, short_runs
from experiments.harness.results import Curve
from prelu_jax.training.batches import Batches
from prelu_jax.training.parallel import Parallel
from prelu_jax.training.recipe import resolve
from tests.experiments.conftest import SHORT, run

TINY = (
    *(flag for flag in SHORT if not flag.startswith("--config.arch=")),
    "--config.archs=tiny",
    "--config.paddings=same",
    f"--config.methods={data_dependent.JUDGED}",
    "--config.num_steps=6",
    "--config.ladder=0.001",
    "--config.ladder_steps=6",
)


def test_from_a_flag_to_a_picture(tmp_path):
    done = run("data_dependent", "--scale=laptop", f"--workdir={tmp_path}", *TINY)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 1  # six steps teach nothing: the claims fail
    for text in ("Claims:", "FAIL  ", "n = 1", f"| {BOTH} |", "tiny, relu"):
        assert text in done.stdout
    for name in ("errors.png", "errors.pdf", "rates.png", "rates.pdf", "table.md"):
        assert (tmp_path / name).stat().st_size > 100
    assert len(record.read(tmp_path).claims) == 5
    rows = {row["method"]: row for row in csv.DictReader((tmp_path / "runs.csv").open())}
    assert list(rows) == list(data_dependent.JUDGED)
    assert float(rows[HE]["seconds"]) == 0 < float(rows[WITHIN]["seconds"])
    assert float(rows[WITHIN]["first_call_seconds"]) > 0
    assert float(rows[BOTH]["spread_after"]) < 0.05
    assert float(rows[BOTH]["spread"]) < float(rows[WITHIN]["spread"])
    assert len(rows[HE]["change_rates"].split()) == 4
    assert rows[HE]["steps"] == "0 4 6"
    refused = run("data_dependent", f"--workdir={tmp_path / 'other'}", "--config.methods=He")
    assert "config.methods lacks ['LSUV'" in refused.stderr
    refused = run("data_dependent", "--config.ladder_steps=251")
    assert "config.ladder_steps is 251, expected 6 to config.num_steps, 250" in refused.stderr


def test_a_schedule_that_would_make_the_ladder_one_rate_is_refused(tmp_path):
    config = data_dependent.EXPERIMENT.config("laptop", drop_epochs="1")
    with pytest.raises(ValueError, match="config.drop_epochs is 1, expected it to be empty"):
        data_dependent.EXPERIMENT.run(config, tmp_path / "run", 1)
    assert not (tmp_path / "run").exists()


def trials(method, errors, spread=0.5, left=np.nan, status="done"):
    steps = np.array([0, 50, 100])
    return [
        Trial(
            Curve(method, seed, status, steps, steps / 2, np.array([0.9, last, last])),
            *(np.array([1.0, 2.0]), spread, left, 0.1, 1.0, 0.002),
        )
        for seed, last in enumerate(errors)
    ]


def grid(**changed):
    """Runs that end at 40 % with a spread of 0.5; He's at chance, within + between's even."""
    by_method = {method: trials(method, [0.4, 0.4]) for method in METHODS}
    by_method[HE] = trials(HE, [0.9, 0.85])
    by_method[BOTH] = trials(BOTH, [0.4, 0.4], spread=0.2, left=0.04)
    condition = Condition("small_30_reduced", "relu", "same")
    return {condition: {**by_method, **changed}}


@pytest.mark.parametrize(
    ("changed", "passed"),
    [
        ({}, [True] * 5),
        ({HE: trials(HE, [0.9, 0.79])}, [False, True, True, True, True]),
        ({WITHIN: trials(WITHIN, [0.1, 0.51])}, [True, False, True, True, True]),
        ({LSUV: trials(LSUV, [0.1, 0.1], status="diverged")}, [True, True, False, True, True]),
        ({BOTH: trials(BOTH, [0.4, 0.4], 0.2, left=0.06)}, [True, True, True, False, True]),
        ({"PCA": trials("PCA", [0.4, 0.4], spread=0.1)}, [True, True, True, True, False]),
    ],
)
def test_claims(changed, passed):
    claims = data_dependent.judge(data_dependent.EXPERIMENT.config(), grid(**changed))
    assert [claim.passed for claim in claims] == passed


def test_runs_differ_in_what_they_are_called_alone():
    config = data_dependent.EXPERIMENT.config()
    condition = Condition("small_14_reduced", "prelu", "same")
    he, lsuv = (data_dependent.of_run(config, condition, m, 3) for m in (HE, LSUV))
    assert dataclasses.replace(he, datadep="lsuv") == lsuv
    assert (he.arch, he.rectifier, he.padding, he.seed) == ("small_14_reduced", "prelu", "same", 3)


def test_a_start_has_the_mean_image_of_its_own_data_and_is_measured_in_float32(monkeypatch):
    """Every seed has two other images per class; nothing is drawn or measured here."""
    given, precisions = [], []

    def state(recipe, pixels):
        given.append(pixels.mean)
        return types.SimpleNamespace(model=recipe.net, params={})

    def measure(*args, **kwargs):
        precisions.append(jax.config.jax_default_matmul_precision)
        return types.SimpleNamespace(layers=[])

    monkeypatch.setattr(short_runs.start, "initial_state", state)
    monkeypatch.setattr(short_runs.signal, "measure", measure)
    config = data_dependent.EXPERIMENT.config("laptop", examples_per_class=2)
    for seed in (0, 1):
        condition = Condition("small_14_reduced", "relu", "same")
        run = data_dependent.of_run(config, condition, HE, seed)
        short_runs.begin(run, Parallel())
        np.testing.assert_array_equal(given[-1], Batches(resolve(run)).pixel_statistics().mean)
    assert np.abs(given[0] - given[1]).max() > 1
    assert precisions == ["highest"] * 2


def test_the_table_counts_seeds_that_do_not_get_there():
    text = data_dependent.markdown(
        data_dependent.EXPERIMENT.config(), grid(PCA=trials("PCA", [0.4, 0.9]))
    )
    assert "| PCA | in 1 of 2 | 40, 90 | 0.5, 0.5 | 0.1, 0.1 | 2, 2 |" in text
    assert "| He | in 0 of 2 | 90, 85 |" in text
    assert "| steps to 50% error, evaluated every 25 |" in text
    # t(0.975, 4) = 2.776, times 50 / √5 / √5 points.
    five = grid(**{method: trials(method, [0.4] * 4 + [0.9]) for method in METHODS})
    assert "| PCA | in 4 of 5 | 50 ± 27.8 | 0.5 ± 0 |" in data_dependent.markdown(
        data_dependent.EXPERIMENT.config(), five
    )
