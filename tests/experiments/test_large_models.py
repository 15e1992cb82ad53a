import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from experiments import borders, ensemble, large_models
from experiments.ensemble import ENSEMBLE
from experiments.harness import errors as error_of
from experiments.harness import figures, record, testing
from experiments.harness.experiment import Report
from experiments.harness.testing import MULTI_SCALE, TEN_VIEW, Scores
from experiments.large_models import A_RELU, MODELS, A, B, C
from prelu_jax.training.parallel import Parallel
from tests.experiments.conftest import SHORT, run

# One network for all three models: less to compile.
TINY = (
    *(flag for flag in SHORT if "config.arch=" not in flag),
    f"--config.archs={('tiny',) * 3}",
    "--config.min_side=36",
    "--config.max_side=48",
    "--config.scales=40,48",
    "--config.ten_view_scale=40",
    "--config.test_batch_size=99",
)
# Of networks for 32 pixels.
AT_32 = {
    "archs": ("model_a_reduced", "model_b_reduced", "model_c_reduced"),
    "min_side": 36,
    "max_side": 48,
    "scales": (40, 44, 48),
    "ten_view_scale": 40,
    "test_batch_size": 100,
    "batch_size": 64,
}


def at_32(**fields):
    return large_models.EXPERIMENT.config("laptop", **{**AT_32, **fields})


@pytest.mark.slow
def test_from_a_flag_to_the_tables_of_models_and_of_their_ensemble(tmp_path):
    done = run("large_models", "--scale=laptop", f"--workdir={tmp_path}", *TINY)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 1  # eight steps teach nothing
    for text in ("Table 4", "| multi-scale | 24.02 / 6.51 |", "Table 6", "| C, PReLU | 21.59"):
        assert text in done.stdout
    assert len(record.read(tmp_path).claims) == 6
    folder = tmp_path / "a_prelu/seed_0"
    labels, dense = (np.load(folder / f"scores/{name}.npy") for name in ("labels", "dense_48"))
    assert (labels.shape, dense.shape) == ((297,), (297, 10))  # every test digit
    np.testing.assert_allclose(dense.sum(axis=1), 1, rtol=1e-5)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*/seed_0/scores/*.npy")}
    assert len(before) == 4 * 4
    rows = list(csv.DictReader((tmp_path / "errors.csv").open()))
    assert len(rows) == 4 * 4  # models, tests
    assert {(row["arm"], row["seed"]) for row in rows} == {(model, "0") for model in MODELS}

    table = (tmp_path / "table.md").read_bytes()
    shared = (f"--workdir={tmp_path / 'ensemble'}", f"--config.runs={tmp_path}")
    together = run("ensemble", "--scale=laptop", *shared, *TINY)
    assert "Traceback" not in together.stderr, together.stderr
    assert "| ensemble | 4.94 (test) |" in together.stdout
    rows = list(csv.DictReader((tmp_path / "ensemble/errors.csv").open()))
    assert [row["arm"] for row in rows[-3:]] == ["A, PReLU, again", "B, PReLU, again", "ensemble"]
    assert {(row["test"], row["seed"]) for row in rows} == {("multi-scale", "0")}
    assert all(file.stat().st_mtime_ns == then for file, then in before.items())
    assert (tmp_path / "table.md").read_bytes() == table
    made = sorted(file.name for file in (tmp_path / "a_prelu/seed_1000/scores").iterdir())
    assert made == ["dense_40.npy", "dense_48.npy", "labels.npy"]

    both = run("borders", f"--workdir={tmp_path / 'borders'}", shared[1], *TINY)
    assert "Traceback" not in both.stderr, both.stderr
    again = [file.name for file, then in before.items() if file.stat().st_mtime_ns != then]
    assert set(again) == {"labels.npy"}
    for side in (40, 48):
        crops = np.load(folder / f"scores/crops_{side}.npy")
        assert crops.shape == (297, 10)
        assert f"| {side} | " in both.stdout
        assert f"A, PReLU, s = {side}: the dense test errs at most 3 points" in both.stdout

    members = f"--config.members={folder},{tmp_path / 'c_prelu/seed_0'}"
    given = run("ensemble", f"--workdir={tmp_path / 'given'}", members, *TINY)
    assert given.returncode == 0, given.stderr
    mean = np.mean([np.load(f"{tmp_path}/{m}_prelu/seed_0/scores/dense_40.npy") for m in "ac"], 0)
    other = np.mean([np.load(f"{tmp_path}/{m}_prelu/seed_0/scores/dense_48.npy") for m in "ac"], 0)
    error = 100 * np.mean((mean + other).argmax(axis=1) != labels)
    assert f"| ensemble | 4.94 (test) | {error:.1f} /" in given.stdout
    rows = list(csv.DictReader((tmp_path / "given/errors.csv").open()))
    assert float(rows[-1]["top_1_error"]) * 100 == pytest.approx(error)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scales": (40, 31)}, r"config.scales is \(40, 31\), expected sides of at least the 32"),
        ({"scales": (40, 40)}, "each once"),
        ({"scales": ()}, r"config.scales is \(\), expected at least one"),
        ({"ten_view_scale": 8}, "config.ten_view_scale is 8"),
        ({"test_batch_size": 3}, "config.test_batch_size is 3, expected a multiple of 4"),
        ({"arch": "model_a"}, "config.arch is set for each run.*See config.archs"),
        ({"archs": ("model_a_reduced",)}, "expected networks for models A, B and C"),
    ],
)
def test_tests_that_cannot_be_are_refused_before_anything_trains(
    fields, message, tmp_path, monkeypatch
):
    monkeypatch.setattr("experiments.harness.machine.devices", lambda batch_size: Parallel())
    config = at_32(**fields)
    with pytest.raises(ValueError, match=message):
        large_models.EXPERIMENT.run(config, tmp_path / "runs", 1)
    assert not (tmp_path / "runs").exists()


def test_models_differ_in_network_and_rectifier_alone():
    config = at_32()
    planned = large_models.plan(config, Path("w"), [3]).values()
    runs = {model: run.config for model, run in zip(MODELS, planned, strict=True)}
    a, b = runs[A_RELU], runs[A]
    assert [k for k in vars(a) if getattr(a, k) != getattr(b, k)] == ["rectifier"]
    assert {run.arch for run in runs.values()} == set(config.archs)
    b, c = runs[B], runs[C]
    assert [k for k in vars(b) if getattr(b, k) != getattr(c, k)] == ["arch"]
    assert {run.seed for run in runs.values()} == {3}


def pairs(*top_1):
    return [(error, error / 10) for error in top_1]


def errors(**multi):
    """Errors of every test, 0.3 but for the multi-scale ones given by model."""
    short = {"a_relu": A_RELU, "a": A, "b": B, "c": C}
    n = len(next(iter(multi.values())))
    tests = (TEN_VIEW, "s = 40", "s = 44", "s = 48", MULTI_SCALE)
    by_model = {model: {test: pairs(*[0.3] * n) for test in tests} for model in MODELS}
    for key, values in multi.items():
        by_model[short[key]][MULTI_SCALE] = pairs(*values)
    return by_model


def test_every_run_has_to_learn():
    config, by_model = at_32(), errors(a=[0.2, 0.2])
    assert not large_models.judge(config, by_model)[0].passed
    for by_test in by_model.values():
        by_test[TEN_VIEW] = pairs(0.01, config.learned)
    assert large_models.judge(config, by_model)[0].passed


@pytest.mark.parametrize(
    ("multi", "passed"),
    [
        # Seeds differ more than models: the difference within each decides.
        (
            {"a_relu": [0.2, 0.3], "a": [0.19, 0.2901], "b": [0.1, 0.2], "c": [0.05, 0.1501]},
            [True, True, None, None, True, True],
        ),
        ({"a": [0.2, 0.2001], "c": [0.1, 0.1]}, [True, True, True, True, True, True]),
        ({"a_relu": [0.2, 0.4], "a": [0.4, 0.2]}, [True, None, None, None, False, None]),
        ({"b": [0.3, 0.9]}, [True, False, False, False, None, False]),
        ({"a": [0.1]}, [True, None, None, None, None, None]),  # one seed shows nothing
        # Alone it would pass, or as one of five; the runs have twelve claims.
        ({"a_relu": [0.2, 0.2], "a": [0.1, 0.102]}, [True, None, True, True, False, False]),
    ],
)
def test_a_claim_is_decided_by_its_interval(multi, passed):
    config = at_32(learned=0.5)
    claims = large_models.judge(config, errors(**multi))
    assert [claim.passed for claim in claims] == passed


def sure(*wrong, classes=6):
    """Sure scores of four examples of two classes; those at ``wrong`` are of the other class."""
    labels = np.array([0, 1, 0, 1])
    said = np.array([1 - label if i in wrong else label for i, label in enumerate(labels)])
    scores = np.eye(classes)[said] * 0.8 + 0.1
    return Scores(labels, dict.fromkeys((TEN_VIEW, "s = 40", "s = 48", MULTI_SCALE), scores))


def test_a_run_that_diverged_is_wrong_everywhere():
    assert error_of.errors(sure(1), TEN_VIEW) == (0.25, 0)
    assert error_of.errors(None, TEN_VIEW) == (1.0, 1.0)


@pytest.mark.parametrize(("classes", "cell"), [(6, "25.0 / 0.0"), (5, "25.0 / –")])
def test_of_five_classes_there_is_no_top_5_error(classes, cell):
    assert error_of.cell([error_of.errors(sure(1, classes=classes), TEN_VIEW)]) == cell


def test_tests_on_disk_are_read_without_the_network_and_alone(tmp_path, monkeypatch):
    (tmp_path / "status.json").write_text('{"status": "done"}')
    (tmp_path / "scores").mkdir()
    for side in (40, 48):
        np.save(tmp_path / f"scores/dense_{side}.npy", np.full((3, 2), side))
    np.save(tmp_path / "scores/labels.npy", np.arange(3))
    config = at_32(scales=(40, 48))
    found = testing.scores(tmp_path, config, None, [MULTI_SCALE, "s = 48"])
    assert {test: of.mean() for test, of in found.by_test.items()} == {
        MULTI_SCALE: 44,
        "s = 48": 48,
    }
    monkeypatch.setattr(testing, "_test", lambda folder, tests, *_: pytest.fail(str([*tests])))
    with pytest.raises(pytest.fail.Exception, match=r"^\[[^,]*ten_view_40.npy'\)\]$"):
        testing.scores(tmp_path, config, None, [TEN_VIEW, MULTI_SCALE])


@pytest.mark.parametrize(("flip", "label"), [(False, "5-view"), (True, "10-view")])
def test_views_are_named_by_their_number_and_a_run_that_diverged_has_no_error_in_the_figure(
    flip, label, tmp_path, monkeypatch
):
    config = at_32(flip=flip, scales=(40, 48))
    drawn = {}
    scores = {model: [sure(1), None if model == B else sure(1)] for model in MODELS}
    monkeypatch.setattr(testing, "score_all", lambda *_: scores)
    monkeypatch.setattr(figures, "errors_by_test", lambda errors, *_: drawn.update(errors))
    report = large_models.report(config, tmp_path, [0, 1])
    other = {"5-view": "10-view", "10-view": "5-view"}[label]
    assert list(drawn[A]) == [label, "s = 40", "s = 48", MULTI_SCALE]
    np.testing.assert_array_equal(drawn[B][label], [0.25, np.nan])
    assert drawn[A][label] == [0.25, 0.25]
    statements = [claim.statement for claim in report.claims]
    assert statements[0].startswith(f"Every run learns: {label} top-1 error")
    assert f"multi-scale has a lower error than {label}" in statements[3]
    assert not any(other in statement.split() for statement in statements)
    table = report.text
    title = "10-view" if flip else "10-view in the paper, 5-view here"
    assert f"Table 5, {title}:" in table
    assert ("no image is mirrored" in table) == (not flip)
    assert "100.0" not in table.split("| B, PReLU |")[0]
    assert "25.0, 100.0 / 0.0, 100.0" in table  # there the run that diverged counts as wrong


def test_scores_of_five_views_are_read_from_the_file_of_ten(tmp_path):
    (tmp_path / "status.json").write_text('{"status": "done"}')
    (tmp_path / "scores").mkdir()
    np.save(tmp_path / "scores/ten_view_40.npy", np.full((3, 2), 0.5))
    np.save(tmp_path / "scores/labels.npy", np.arange(3))
    for flip in (False, True):
        config = at_32(flip=flip)
        assert testing.scores(tmp_path, config, None, [TEN_VIEW]).by_test[TEN_VIEW].shape == (3, 2)


def test_members_and_ensembles_that_diverged_have_no_error_in_the_figure():
    seeds = [{"a": sure(0), "b": None}, {"a": None, "b": None}]
    drawn = ensemble.drawn(seeds, ensemble.errors_of(seeds))
    np.testing.assert_array_equal(drawn["a"], [0.25, np.nan])
    np.testing.assert_array_equal(drawn["b"], [np.nan, np.nan])
    np.testing.assert_array_equal(drawn[ENSEMBLE], [0.25, np.nan])


def test_an_ensemble_outvotes_its_members_and_leaves_out_what_diverged():
    members = {"a": sure(0), "b": sure(1), "c": sure(2), "d": None}
    found = ensemble.errors_of([members, dict.fromkeys(members)])
    wrong = (1.0, 1.0)
    assert found == {
        **{name: [(0.25, 0), wrong] for name in "abc"},
        "d": [wrong, wrong],
        ENSEMBLE: [(0.0, 0.0), wrong],  # of the second seed all diverged
    }


def test_members_of_other_examples_are_refused():
    other = dataclasses.replace(sure(), labels=np.array([0, 1, 1, 0]))
    with pytest.raises(ValueError, match="runs/a and runs/c were tested on .* other labels"):
        ensemble.errors_of([{"runs/a": sure(), "runs/b": None, "runs/c": other}])


@pytest.mark.parametrize(
    ("together", "passed"),
    [([0.1, 0.2], True), ([0.1, 0.102], None), ([0.1, 0.4], None), ([0.2, 0.3], False)],
)
def test_an_ensemble_is_judged_by_its_best_member(together, passed):
    errors = {
        "a": [(0.2, 0), (0.3, 0)],
        "b": [(0.9, 0), (0.9, 0)],
        ENSEMBLE: [(error, 0) for error in together],
    }
    assert [claim.passed for claim in ensemble.judge(at_32(), errors)] == [passed]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"runs": "nowhere"}, "config.runs is nowhere, expected the work folder of"),
        ({"members": "a"}, "config.members is a, expected two folders or more"),
        ({"members": "a,b, a"}, "each once"),
        ({"members": "a,b", "runs": "c"}, "config.runs to be empty"),
    ],
)
def test_members_that_cannot_be_are_refused_before_anything_trains(fields, message, tmp_path):
    config = ensemble.EXPERIMENT.config("laptop", **{**AT_32, **fields})
    with pytest.raises(ValueError, match=message):
        ensemble.EXPERIMENT.run(config, tmp_path / "runs", 1)
    with pytest.raises(ValueError, match="config.members is one ensemble: expected --seeds=1"):
        ensemble.EXPERIMENT.run(dataclasses.replace(config, members="a,b"), tmp_path / "runs", 5)
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_holds_an_ensemble_of_others_is_refused(tmp_path, monkeypatch):
    scores = iter([sure(), sure(1), sure(), sure(2)])
    config = ensemble.EXPERIMENT.config("laptop", **AT_32, arch="model_a_reduced")
    monkeypatch.setattr(testing, "check_comparable", lambda folders, field: [config])
    monkeypatch.setattr(testing, "scores", lambda *args: next(scores))
    monkeypatch.setattr("experiments.harness.machine.devices", lambda batch_size: Parallel())
    for members in ("a,b", "a, b"):
        ensemble.EXPERIMENT.run(dataclasses.replace(config, members=members), tmp_path, 1)
    table = (tmp_path / "table.md").read_bytes()
    for other in ({"members": "a,c"}, {"runs": str(tmp_path)}):
        (tmp_path / "a_prelu").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match="holds the ensemble of a, b, not of .*Choose another"):
            ensemble.EXPERIMENT.run(dataclasses.replace(config, **other), tmp_path, 1)
    assert (tmp_path / "table.md").read_bytes() == table


@pytest.fixture
def members(monkeypatch):
    """Configurations of finished runs, by the folder's name; without their checkpoints."""
    configs = {}

    def config(folder, what):
        return at_32(**configs[folder.name])

    monkeypatch.setattr(testing.finished, "config", config)
    return configs


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ({"classes": "0-4"}, {}, "a: digits/test, classes 0-4; .*b: digits/test, classes all"),
        ({}, {"data_dir": "/d"}, "a: digits/test, classes all; .*b: digits/test in /d, classes"),
    ],
)
def test_members_of_other_classes_or_data_are_refused(a, b, message, tmp_path, members):
    members.update(a=a, b=b)
    with pytest.raises(ValueError, match=message):
        testing.check_comparable([tmp_path / "a", tmp_path / "b"], "config.members")


@pytest.mark.parametrize("scales", [(), (40, 31), (40, 40)])
def test_given_members_are_not_tested_at_scales_that_cannot_be(
    scales, tmp_path, members, monkeypatch
):
    monkeypatch.setattr("experiments.harness.machine.devices", lambda batch_size: Parallel())
    members.update({name: {"arch": "model_a_reduced"} for name in "ab"})
    config = ensemble.EXPERIMENT.config("laptop", **{**AT_32, "scales": scales}, members="a,b")
    with pytest.raises(
        ValueError, match="config.scales is .*expected (sides of at least the 32|at least one)"
    ):
        ensemble.EXPERIMENT.run(config, tmp_path / "runs", 1)
    assert not (tmp_path / "runs").exists()


def test_the_tables_set_the_paper_beside_means_and_intervals():
    text = large_models.markdown(at_32(), errors(a=[0.2, 0.1], c=[0.05, 0.05]))
    row = "| multi-scale | 24.02 / 6.51 | 30.0, 30.0 / 3.0, 3.0 | 22.97 / 6.28 | 20.0, 10.0 /"
    assert row in text
    assert "| 40 | 26.25 / 8.25 |" in text
    assert "| C, PReLU | 21.59 / 5.71 | 5.0, 5.0 / 0.5, 0.5 |" in text
    assert "Values of every seed, in order, n = 2 seeds of digits" in text


def test_a_dense_test_that_errs_more_than_its_crops_is_told():
    config = borders.Config(scales=(40, 48))
    crops, dense = [(0.10, 0.0), (0.12, 0.0)], [(0.11, 0.0), (0.13, 0.0)]
    worse = [(0.20, 0.0), (0.22, 0.0)]
    errors = {
        model: {"s = 40": dense, "s = 40, crops": crops, "s = 48": worse, "s = 48, crops": crops}
        for model in (A_RELU, A)
    }
    assert [claim.passed for claim in borders.judge(config, errors)] == [True, False] * 2
    text = borders.markdown(config, errors)
    assert "| 48 | 10.0, 12.0 / 0.0, 0.0 | 20.0, 22.0 / 0.0, 0.0 |" in text


def test_the_errors_of_every_seed_are_written(tmp_path):
    errors = {"A": {TEN_VIEW: [(0.25, 0.0), (0.5, float("nan"))], MULTI_SCALE: [(0.1, 0.0)] * 2}}
    Report([], tables={"errors.csv": error_of.rows(errors, [3, 4])}).write(tmp_path)
    assert (tmp_path / "errors.csv").read_text().splitlines() == [
        "arm,test,seed,top_1_error,top_5_error",
        "A,10-view,3,0.25,0.0",
        "A,10-view,4,0.5,",
        "A,multi-scale,3,0.1,0.0",
        "A,multi-scale,4,0.1,0.0",
    ]
