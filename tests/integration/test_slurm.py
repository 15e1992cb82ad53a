"""Tests of `launch.slurm` with real SLURM daemons: preemption, requeueing, arrays."""

import json
import re
import subprocess
import sys

import pytest

from tests.experiments.conftest import ROOT, SHORT_14, environment
from tests.integration import slurm
from tests.waiting import text_so_far, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(slurm.missing()), reason=f"SLURM is not installed: {', '.join(slurm.missing())}"
    ),
]
EXPERIMENT = ("experiments.convergence_22", "--scale=laptop", *SHORT_14)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm.running(tmp_path_factory.mktemp("slurm")) as variables:
        yield environment(**variables)


def call(cluster, *command):
    done = subprocess.run(command, cwd=ROOT, env=cluster, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def command(launcher, *own):
    return [sys.executable, "-m", f"launch.{launcher}", *own]


def submit(cluster, logs, *arguments):
    """Submit the experiment and return SLURM's job numbers."""
    output = call(cluster, *command("slurm", f"--logs={logs}", *arguments))
    return re.findall(r"\d+", output.partition(";")[0])


def submit_planned(cluster, folder, plan, *own):
    """Submit the test experiment with a plan of its ends; see tests.launch.experiment."""
    (folder / "plan.json").write_text(json.dumps(plan))
    return submit(cluster, folder, *own, "--", "tests.launch.experiment", str(folder))


def state(cluster, number):
    """Return a job's state by SLURM and its number of restarts."""
    expected = call(cluster, "scontrol", "show", "job", number)
    (job,) = set(re.findall(r"JobState=(\w+)", expected))
    (restarts,) = set(re.findall(r"Restarts=(\d+)", expected))
    return job, int(restarts)


def wait(done, logs):
    def report():
        return "\n".join(f"{file}:\n{text_so_far(file)[-3000:]}" for file in logs.glob("*.out"))

    wait_until(done, report, pause=0.05)


def end(cluster, number, logs):
    """Wait for the end of a job and return its state."""
    ends = ("COMPLETED", "FAILED", "CANCELLED")
    wait(lambda: state(cluster, number)[0] in ends, logs)
    return state(cluster, number)


def wrote(file, text):
    return text in text_so_far(file)


@pytest.fixture(scope="module")
def near_its_limit(cluster, tmp_path_factory):
    """Submit a job of two minutes that gets SIGTERM after one; return it and its folder.

    After a minute its signal handlers are set, even on a slow machine.
    """
    folder = tmp_path_factory.mktemp("limit")
    own = ("--time=2", "--warning=60", "--max_restarts=0")
    (number,) = submit_planned(cluster, folder, [["wait"], [0]], *own)
    return number, folder


@pytest.mark.usefixtures("near_its_limit")  # runs meanwhile: SLURM checks limits twice a minute
def test_a_preempted_job_is_requeued_and_continues(cluster, tmp_path):
    longer = ("--config.num_steps=200", "--config.checkpoint_every=180")
    logs, folder, whole = (tmp_path / name for name in ("logs", "preempted", "whole"))
    two = ("--tasks_per_node=2", "--max_restarts=0")  # a preemption is no crash
    training = ["--", *EXPERIMENT, *longer]
    (number,) = submit(cluster, logs, *two, *training, f"--workdir={folder}")
    metrics = folder / "he/seed_0/metrics.jsonl"
    wait(lambda: wrote(metrics, '"step": 10,'), logs)
    call(cluster, "scancel", "--signal=TERM", number)
    wait(lambda: state(cluster, number)[1] == 1, logs)
    assert '"step": 200,' not in metrics.read_text()
    job, restarts = end(cluster, number, logs)
    output = (logs / f"{number}_0_log.out").read_text()
    (stopped,) = re.findall(r"Stopped .*step (\d+)", output)
    assert 10 <= int(stopped) < 180  # before the next regular checkpoint
    assert restarts == 1

    assert "Claims:" in output
    assert job == ("FAILED" if "FAIL " in output else "COMPLETED")

    # The run that was stopped is the first of two.
    training += [f"--workdir={whole}", "--part=0/2"]
    call(cluster, *command("local", "--num_processes=2"), *training)
    metrics = "he/seed_0/metrics.jsonl"
    assert (folder / metrics).read_bytes() == (whole / metrics).read_bytes()


def test_parts_train_concurrently_and_the_last_job_draws(cluster, tmp_path):
    logs, folder = tmp_path / "logs", tmp_path / "runs"
    training = ["--", *EXPERIMENT, f"--workdir={folder}"]
    array, last = submit(cluster, logs, "--array=2", *training)
    end(cluster, last, logs)
    parts = [(logs / f"{array}_{i}_0_log.out").read_text() for i in (0, 1)]
    output = (logs / f"{last}_0_log.out").read_text()
    for arm, text in zip(("He", "Xavier"), parts, strict=True):
        assert set(re.findall(r"(\w+) +seed 0", text)) == {arm}
        assert "This part is trained." in text
    assert "Claims:" in output
    assert (folder / "figure.png").exists()
    assert json.loads((folder / "experiment.json").read_text())["resumed"]


def test_which_ends_are_requeued(cluster, tmp_path):
    expected = {
        "crash": ([[-9], [0]], ["--max_restarts=1"], ("COMPLETED", 1)),
        "no restart is left": ([[3]] * 2, ["--max_restarts=1"], ("FAILED", 1)),
        "claim": ([[1]], [], ("FAILED", 0)),
    }
    numbers = {}
    for name, (plan, own, _) in expected.items():
        (tmp_path / name).mkdir()
        (numbers[name],) = submit_planned(cluster, tmp_path / name, plan, *own)
    ends = {name: end(cluster, number, tmp_path / name) for name, number in numbers.items()}
    assert ends == {name: then for name, (_, _, then) in expected.items()}


def test_only_the_crashed_part_of_an_array_is_requeued(cluster, tmp_path):
    array, last = submit_planned(cluster, tmp_path, [[0, -9], [0, 0]], "--array=2")
    assert end(cluster, last, tmp_path) == ("COMPLETED", 0)
    # The last job is the second start of process 0; it runs after the requeued part.
    assert [(tmp_path / f"starts_{i}").read_text() for i in (0, 1)] == ["xx", "xx"]
    ends = [(tmp_path / f"process_{i}.txt").stat().st_mtime for i in (0, 1)]
    assert ends[1] < ends[0]
    assert state(cluster, f"{array}_1") == ("COMPLETED", 1)


def test_a_cancelled_job_stays_cancelled(cluster, tmp_path):
    (number,) = submit_planned(cluster, tmp_path, [["wait"]])
    wait(lambda: (tmp_path / "process_0.txt").exists(), tmp_path)
    call(cluster, "scancel", number)
    wait(lambda: wrote(tmp_path / "process_0.txt", "stopped"), tmp_path)
    wait(lambda: not call(cluster, "squeue", "--noheader"), tmp_path)
    assert state(cluster, number) == ("CANCELLED", 0)


def test_a_job_near_its_limit_is_requeued(cluster, near_its_limit):
    number, folder = near_its_limit
    assert end(cluster, number, folder) == ("COMPLETED", 1)
    assert "stopped" in (folder / "process_0.txt").read_text()
