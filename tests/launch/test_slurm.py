import subprocess
import sys

import pytest

from launch.slurm import task
from tests.experiments.conftest import ROOT, environment

EXPERIMENT = ("--", "experiments.convergence_22", "--scale=imagenet")


def launch(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "launch.slurm", *arguments],
        cwd=ROOT,
        env=environment(PATH="/nowhere"),  # without SLURM
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("one", ["--partition=long", "--mem=64GB", "--setup=module load cuda"]),
        ("pod", ["--nodes=2", "--tasks_per_node=8", "--gpus_per_node=8", "--cpus_per_task=12"]),
        ("array", ["--array=2", "--max_restarts=3", "--sbatch=account=mine", "--time=60"]),
    ],
)
def test_a_dry_run_prints_what_would_be_submitted(name, arguments, check_golden):
    done = launch("--dry_run", *arguments, *EXPERIMENT)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.replace(sys.executable, "PYTHON").replace(str(ROOT), "ROOT")
    check_golden(f"slurm_{name}.txt", printed)


@pytest.mark.parametrize(
    ("status", "expected"),
    [(0, None), (1, 200), (2, 200), (78, 200), (130, 200), (75, 75), (70, 70), (-9, 137)],
)
def test_the_status_of_a_task_encodes_the_end_of_its_experiment(status, expected):
    end = f"os._exit({status})" if status >= 0 else f"os.kill(os.getpid(), {-status})"
    command = [sys.executable, "-c", f"import os; {end}"]
    if expected is None:
        task(command)
        return
    with pytest.raises(SystemExit) as stop:
        task(command)
    assert stop.value.code == expected


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        ([], "the module of an experiment"),
        (["--tasks_per_node=4", "--gpus_per_node=8", *EXPERIMENT], "--gpus_per_node is 8"),
        (["--sbatch=account", *EXPERIMENT], "expected NAME=VALUE"),
        (["--array=1", *EXPERIMENT], "integer >= 2"),
        ([*EXPERIMENT], "sbatch is not on the PATH"),
    ],
)
def test_a_bad_submission_is_refused(arguments, output):
    done = launch(*arguments)
    assert done.returncode == 78
    assert output in done.stdout + done.stderr
