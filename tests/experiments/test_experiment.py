"""Experiments as a notebook runs them: without a command line."""

import csv
import dataclasses
import subprocess
import sys
import traceback

import pytest

from experiments import convergence_30
from experiments.harness import schedule
from experiments.harness.experiment import Experiment, Report
from experiments.harness.schedule import Part
from tests.experiments.conftest import ROOT, environment

pytestmark = pytest.mark.usefixtures("tiny_arch")
TINY = {
    "arch": "tiny",
    "num_steps": 2,
    "batch_size": 8,
    "log_every": 1,
    "eval_every": 1,
    "checkpoint_every": 2,
    "test_examples": 20,
}


def tiny():
    return convergence_30.EXPERIMENT.config("laptop", **TINY)


@pytest.mark.slow
def test_a_report_is_returned_and_written(tmp_path, capsys):
    report = convergence_30.EXPERIMENT.run(tiny(), tmp_path, seeds=1)
    assert [claim.outcome for claim in report.claims] == ["FAIL", "PASS"]
    with (tmp_path / "curves.csv").open() as file:
        written = list(csv.reader(file))
    assert [list(map(str, row)) for row in report.tables["curves.csv"]] == written
    assert {row[0] for row in written[1:]} == {"He", "Xavier"}
    (axes,) = report.figures["figure"].axes
    assert axes.get_ylabel() == "Test error (%)"
    assert (tmp_path / "figure.png").stat().st_size > 5000
    assert str(tmp_path / "curves.csv") in capsys.readouterr().out
    # Finished runs are read, and a part of them is no report.
    assert convergence_30.EXPERIMENT.run(tiny(), tmp_path, seeds=1, part=Part(0, 2)) is None
    assert not (tmp_path / "experiment.json").exists()


@pytest.mark.slow
def test_a_second_experiment_runs_on_the_devices_of_the_first(tmp_path):
    code = (
        "import sys\n"
        "from experiments import convergence_30\n"
        "from prelu_jax import arch\n"
        "from tests.training.conftest import TINY\n"
        "arch.REGISTRY['tiny'] = TINY\n"
        "for batch_size, folder in ((64, 'first'), (32, 'second')):\n"
        f"    fields = {{**{TINY}, 'batch_size': batch_size}}\n"
        "    config = convergence_30.EXPERIMENT.config('laptop', **fields)\n"
        "    report = convergence_30.EXPERIMENT.run(config, f'{sys.argv[1]}/{folder}', seeds=1)\n"
        "    assert report.claims\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_experiment_that_yields_reports_writes_each(tmp_path, capsys):
    def report(config, workdir, seeds):
        for n in range(1, 1 + len(seeds)):
            rows = [["seed"], *([seed] for seed in seeds)]
            yield Report([], f"{n} of {len(seeds)}\n", {"seeds.csv": rows})

    last = Experiment("measured", {}, report, default_seeds=2).run(tiny(), tmp_path / "new")
    assert last.text == "2 of 2\n"
    assert (tmp_path / "new/table.md").read_text() == "2 of 2\n"
    assert (tmp_path / "new/seeds.csv").read_text().split() == ["seed", "0", "1"]
    assert capsys.readouterr().out.count("Written:") == 2


def test_without_runs_there_are_no_parts(tmp_path):
    experiment = Experiment("measured", {}, lambda *_: Report([]), plan=lambda *_: {})
    with pytest.raises(ValueError, match="give no --part"):
        experiment.run(tiny(), tmp_path / "new", part=Part(0, 2))
    assert not (tmp_path / "new").exists()


def test_parts_are_all_runs_that_wait_for_no_other(tmp_path):
    runs = convergence_30.EXPERIMENT.plan(tiny(), tmp_path, range(3))
    parts = [schedule.select(runs, Part(i, 4)) for i in range(4)]
    assert [len(part) for part in parts] == [2, 2, 1, 1]
    assert sorted(folder for part in parts for folder in part) == sorted(runs)


def test_two_calls_lie_between_the_command_and_the_training_of_a_run(tmp_path, monkeypatch):
    calls = []

    def train(*args):
        calls.append([frame.name for frame in traceback.extract_stack()])
        return {"status": "done", "step": 2}

    monkeypatch.setattr(schedule.trainer, "train", train)
    experiment = dataclasses.replace(convergence_30.EXPERIMENT, report=lambda *_: Report([]))
    experiment.run(tiny(), tmp_path, seeds=1)
    assert [names[-3:] for names in calls] == [["run", "train_all", "train"]] * 2


def test_every_part_has_runs_of_both_arms(tmp_path):
    """Xavier's runs are the longer ones: a part that had them all would be the last to end."""
    runs = convergence_30.EXPERIMENT.plan(tiny(), tmp_path, range(4))
    for part in (Part(0, 2), Part(1, 2)):
        arms = {folder.parent.name for folder in schedule.select(runs, part)}
        assert arms == {"he", "xavier"}


@pytest.mark.parametrize("seeds", [0, -1])
def test_a_run_needs_a_seed(seeds, tmp_path):
    with pytest.raises(ValueError, match=f"seeds is {seeds}, expected at least 1"):
        convergence_30.EXPERIMENT.run(tiny(), tmp_path, seeds=seeds)


def test_a_function_checks_numbers_as_the_command_does(tmp_path):
    config = convergence_30.EXPERIMENT.config(stalled=float("nan"))
    with pytest.raises(ValueError, match=r"config.stalled is nan, expected a finite number"):
        convergence_30.EXPERIMENT.run(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()
