import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.experiments.conftest import ROOT, SHORT_14, environment
from tests.test_readme import commands
from tests.waiting import PATIENCE, lines_so_far, text_so_far, wait_until


def start(folder, plan, *arguments):
    (folder / "plan.json").write_text(json.dumps(plan))
    command = [*(sys.executable, "-m", "launch.local"), *arguments]
    return subprocess.Popen(
        [*command, "--", "tests.launch.experiment", str(folder)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def left(folder, index):
    return (folder / f"process_{index}.txt").read_text().splitlines()


@pytest.mark.parametrize(
    ("plan", "status", "starts"),
    [
        ([[0, 0]], 0, 1),
        ([[1, 0]], 1, 1),  # a claim failed
        ([[-9, "wait"], [0, 0]], 0, 2),  # one is killed: the other is ended, both start again
        ([["wait", 75], ["wait", 134], [1, 0]], 1, 3),
        ([["wait", 3]] * 3, 3, 3),  # no restart is left
        ([[70, 78]], 78, 1),  # an invalid configuration wins over a crash
        ([[70, "late"]], 78, 1),  # ... even if it is reported after the crash
        ([[70, 1]], 1, 1),  # a failed claim wins, too
    ],
)
def test_processes_end_and_start_together(plan, status, starts, tmp_path):
    process = start(tmp_path, plan, "--num_processes=2", "--max_restarts=2")
    _, output = process.communicate(timeout=PATIENCE)
    assert process.returncode == status, output
    assert output.count("restart ") - output.count("no restart") == starts - 1
    for index in (0, 1):
        ends = [f"2 {ends[index]}" for ends in plan]
        assert [line for line in left(tmp_path, index) if line != "stopped"] == ends
        waited = sum(ends[index] == "wait" for ends in plan)
        assert left(tmp_path, index).count("stopped") == waited


CRASHING = """
import os, sys
from prelu_jax import entry

def main(argv):
    with open(sys.argv[1], "a") as starts:
        starts.write("x")
    if os.path.getsize(sys.argv[1]) < 3:
        raise RuntimeError("CUDA error: an illegal memory access")
    raise SystemExit("error: --config.dataset")

with entry.command():
    main(entry.parse_flags())
"""


def test_a_single_process_that_crashes_starts_again_until_it_is_refused(tmp_path):
    (tmp_path / "crashing.py").write_text(CRASHING)
    done = subprocess.run(
        [sys.executable, "-m", "launch.local", "--", "crashing", str(tmp_path / "starts")],
        cwd=ROOT,
        env=environment(PYTHONPATH=os.pathsep.join([str(ROOT), str(tmp_path)])),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 78, done.stderr
    assert done.stderr.count("a process ended with status 70; restart") == 2
    assert (tmp_path / "starts").read_text() == "xxx"


def test_sigterm_is_handed_on_and_nothing_starts_again(tmp_path):
    process = start(tmp_path, [["wait", "wait"]], "--num_processes=2")
    wait_until(lambda: all(lines_so_far(tmp_path / f"process_{i}.txt") for i in (0, 1)))
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 75
    assert [left(tmp_path, i) for i in (0, 1)] == [["2 wait", "stopped"]] * 2


def test_a_dry_run_prints_the_commands(tmp_path):
    def printed(*arguments):
        process = start(tmp_path, [], "--dry_run", *arguments)
        out, _ = process.communicate(timeout=PATIENCE)
        return out.splitlines()

    alone = f"python -m tests.launch.experiment {tmp_path}"
    assert printed() == [alone]
    several = f"{alone} --coordinator_address=127.0.0.1:PORT --num_processes=2"
    assert printed("--num_processes=2") == [f"{several} --process_id={i}" for i in (0, 1)]


def test_the_experiment_is_required():
    for arguments in ([], ["--", "--scale=laptop"]):
        command = [sys.executable, "-m", "launch.local", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 78
        assert "the module of an experiment" in done.stdout + done.stderr


@pytest.mark.slow
def test_a_killed_process_takes_no_step_with_it(tmp_path):
    (line,) = commands("python -m launch.local ")  # of docs/robustness.md

    def launch(folder):
        arguments = [*shlex.split(line)[1:], f"--workdir={folder}", *SHORT_14]
        arguments += ["--config.num_steps=30", "--config.checkpoint_every=10"]
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    whole = launch(tmp_path / "whole")
    _, output = whole.communicate(timeout=PATIENCE)
    assert "restart" not in output
    killed = launch(tmp_path / "killed")
    metrics = tmp_path / "killed/he/seed_0/metrics.jsonl"
    wait_until(lambda: '"step": 16,' in text_so_far(metrics) or killed.poll() is not None)
    assert killed.poll() is None, killed.communicate()
    children = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    out, output = killed.communicate(timeout=PATIENCE)
    assert "restart 1 of 10" in output, output
    assert "Claims:" in out
    assert killed.returncode == whole.returncode
    for name in ("he/seed_0/metrics.jsonl", "xavier/seed_0/metrics.jsonl", "curves.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
