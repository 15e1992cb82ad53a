import functools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import tpu_commands
from tests.experiments.conftest import ROOT, environment
from tests.waiting import PATIENCE, lines_so_far, wait_until

GOLDEN = Path(__file__).parent / "golden"
EXPERIMENT = ("--", "experiments.convergence_22", "--scale=imagenet", "--workdir=/mnt/share/run")
POD = ("--name=pod", "--zone=us-central2-b")
COMMAND = (sys.executable, "-m", "launch.tpu_pod")


def launch(*arguments, **variables):
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.mark.parametrize("action", ["create", "run", "resume", "delete"])
def test_a_dry_run_prints_the_commands(action):
    experiment = EXPERIMENT if action in ("run", "resume") else ()
    arguments = [*POD, "--project=lab", "--accelerator_type=v4-32", f"--action={action}"]
    arguments += ["--spot", "--setup=mountpoint -q /mnt/share || sudo mount /mnt/share"]
    done = launch("--dry_run", *arguments, *experiment, PATH="")  # no gcloud
    assert done.stdout == (GOLDEN / f"{action}.sh").read_text(), done.stderr


@pytest.mark.parametrize(
    ("name", "gclouds", "hosts"),
    [
        ("v4-8", "v4-8", 1),
        ("v4-512", "v4-512", 64),
        ("v5p-16", "v5p-16", 2),
        ("v5e-8", "v5litepod-8", 1),
        ("v5litepod-64", "v5litepod-64", 16),
        ("v6e-1", "v6e-1", 1),
        ("v6e-256", "v6e-256", 64),
    ],
)
def test_accelerators(name, gclouds, hosts):
    found = tpu_commands.accelerator(name)
    assert (found.name, found.hosts) == (gclouds, hosts)
    assert tpu_commands.accelerator(name, "other").runtime_version == "other"


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["--zone=z", *EXPERIMENT], "--name=NAME"),
        (["--name=n", *EXPERIMENT], "--zone=ZONE"),
        (POD, "the module of an experiment"),
        ([*POD, "--", "--scale=imagenet"], "the module of an experiment"),
        ([*POD, "--action=delete", *EXPERIMENT], "takes no experiment"),
        ([*POD, *EXPERIMENT[:-1]], "an absolute path"),
        ([*POD, *EXPERIMENT[:-1], "--workdir=gs://bucket/run"], "gs:// is not a file system"),
        *(
            ([*POD, f"--accelerator_type={name}", *EXPERIMENT], f"{name}: expected v4-N")
            for name in ("v4-12", "v4-0", "v5e-24", "v9-8", "h100", "v4")
        ),
        ([*POD, *EXPERIMENT], "gcloud is not on the PATH"),
    ],
)
def test_bad_input_is_refused_with_a_message(arguments, output):
    done = launch(*arguments, PATH="")
    assert done.returncode == 78
    assert output in done.stderr
    assert "Traceback" not in done.stderr


class Cloud:
    """A folder with the fake gcloud, its plan and the record of its calls."""

    def __init__(self, folder, pods, ends=((0,),), follows=("run",), workers=1, now=None):
        self.folder = folder
        self.workers = workers
        plan = {"pods": pods, "follows": follows, "workers": workers}
        (folder / "plan.json").write_text(json.dumps(plan))
        if now:
            (folder / "pod.json").write_text(json.dumps(now))
        for program in ("gcloud", "git"):
            script = folder / "bin" / program
            script.parent.mkdir(exist_ok=True)
            fake = shlex.join([sys.executable, str(Path(__file__).parent / "gcloud.py"), program])
            script.write_text(f'#!/bin/sh\nexec {fake} "$@"\n')
            script.chmod(0o755)
        # The folder in which `experiment.py` reads its ends and counts its starts.
        self.runs = folder / "runs"
        self.runs.mkdir()
        (self.runs / "plan.json").write_text(json.dumps(ends))

    def start(self, *arguments, action="run"):
        arguments = [*POD, f"--action={action}", "--poll_seconds=0.05", *arguments]
        arguments += [f"--accelerator_type=v4-{8 * self.workers}"]
        if action in ("run", "resume"):
            experiment = ("tests.launch.experiment", str(self.runs), f"--workdir={self.runs}")
            arguments += ["--", *experiment]
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=ROOT,
            env=environment(PATH=path, FAKE_GCLOUD=str(self.folder)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # If a shell started the tests in the background, children would ignore Ctrl-C.
            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
            start_new_session=True,
        )

    def launch(self, *arguments, action="run"):
        process = self.start(*arguments, action=action)
        out, output = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(process.args, process.returncode, out, output)

    def wait_for(self, call, times=1):
        wait_until(lambda: self.calls().count(call) >= times)

    def calls(self):
        """Return the verbs of all calls; for an ssh, its purpose."""
        lines = lines_so_far(self.folder / "calls.txt")
        return [
            next((word for word in ("install", "start", "follow") if f" {word}" in line), verb)
            for line in lines
            for verb in [line.split()[4 if line.startswith("gcloud") else 1]]
        ]

    def ends(self):
        """Return how each start of the experiment ended."""
        return (self.runs / "process_0.txt").read_text().splitlines()


PREPARATION = ["archive", "scp", "install"]
STARTED = ["start", "follow"]


def test_a_run_waits_for_the_pod_and_runs_the_commands_of_the_dry_run(tmp_path):
    cloud = Cloud(
        tmp_path, [["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]], [[0], [0]], workers=2
    )
    done = cloud.launch()
    assert done.returncode == 0, done.stderr
    waits = ["describe", "create", "describe", "describe", "describe"]
    assert cloud.calls() == [*waits, *PREPARATION, *STARTED]
    assert "pod is PROVISIONING" in done.stderr
    assert "at home in worker_0" in done.stdout
    assert "worker_1" not in done.stdout

    dry = [line for line in cloud.launch("--dry_run").stdout.splitlines() if line[0] != "#"]
    dry.remove("mkdir -p runs")
    given = (tmp_path / "calls.txt").read_text().splitlines()
    assert list(dict.fromkeys(given)) == list(dict.fromkeys(dry))
    for worker in (0, 1):
        log = tmp_path / f"worker_{worker}/state/log"
        assert (log.exists(), log.with_name("status").read_text()) == (True, "0\n")


@pytest.mark.parametrize(("status", "final"), [(0, 0), (1, 1), (2, 2), (78, 78), (130, 130)])
def test_nothing_starts_again_after_a_final_status(status, final, tmp_path):
    cloud = Cloud(tmp_path, [["ACTIVE"]], ends=[[status]])
    done = cloud.launch()
    assert done.returncode == final, done.stderr
    assert cloud.calls() == ["describe", "create", "describe", *PREPARATION, *STARTED]


def test_a_pod_that_was_taken_away_is_deleted_and_requested_again(tmp_path):
    cloud = Cloud(
        tmp_path,
        [["ACTIVE", "SUSPENDED"], ["WAITING_FOR_RESOURCES", "ACTIVE"]],
        follows=["broken", "run"],
        ends=[["wait"], [0]],
    )
    done = cloud.launch()
    assert done.returncode == 0, done.stderr
    assert "the pod is lost: it is SUSPENDED; restart 1 of 10" in done.stderr
    assert cloud.calls() == [
        *["describe", "create", "describe", *PREPARATION, *STARTED],
        *["describe", "describe", "delete", "describe", "create", "describe", "describe"],
        *[*PREPARATION, *STARTED],
    ]
    assert cloud.ends() == ["1 wait", "stopped", "1 0"]  # SIGTERM stopped the first


def test_a_connection_that_breaks_costs_no_restart(tmp_path):
    cloud = Cloud(tmp_path, [["ACTIVE"]], follows=["broken", "broken", "run"])
    done = cloud.launch("--max_restarts=0")
    assert done.returncode == 0, done.stderr
    assert cloud.ends() == ["1 0"]


def test_a_run_that_crashes_starts_again_where_it_was(tmp_path):
    cloud = Cloud(tmp_path, [["ACTIVE"]], ends=[[75], [-9], [70], [1]])
    done = cloud.launch("--max_restarts=2")
    assert done.returncode == 70, done.stderr
    assert "status 75; restart 1 of 2" in done.stderr
    assert "status 70; no restart is left" in done.stderr
    assert cloud.calls().count("install") == 1
    assert cloud.ends() == ["1 75", "1 -9", "1 70"]


def test_a_request_that_fails_again_and_again_ends(tmp_path):
    cloud = Cloud(tmp_path, [["FAILED"]])
    done = cloud.launch("--max_restarts=1")
    assert done.returncode == 75
    assert done.stderr.count("the request for it ended as FAILED") == 2
    assert cloud.calls().count("create") == 2


def test_resume_follows_a_running_experiment_and_starts_one_if_none_runs(tmp_path):
    cloud = Cloud(tmp_path, [["ACTIVE"]], ends=[[75], [0]])
    assert cloud.launch("--max_restarts=0").returncode == 75
    done = cloud.launch(action="resume")
    assert done.returncode == 0, done.stderr
    assert cloud.calls()[-3:] == ["follow", "start", "follow"]
    assert cloud.ends() == ["1 75", "1 0"]
    again = cloud.launch(action="resume")
    assert (again.returncode, cloud.calls()[-2:]) == (0, ["follow", "follow"])


def test_the_experiment_continues_when_the_launcher_is_interrupted(tmp_path):
    cloud = Cloud(tmp_path, [["ACTIVE"]], ends=[["wait"]])
    watching = cloud.start()
    cloud.wait_for("follow")
    os.killpg(watching.pid, signal.SIGINT)  # as a terminal does
    _, output = watching.communicate(timeout=PATIENCE)
    assert (watching.returncode, "--action=resume" in output) == (130, True)

    resumed = cloud.start("--max_restarts=0", action="resume")
    cloud.wait_for("follow", times=2)
    time.sleep(1)
    assert resumed.poll() is None, (resumed.communicate(), output)  # the experiment still runs
    state = {"PRELU_JAX_STATE": str(tmp_path / "worker_0/state"), "HOME": str(tmp_path)}
    subprocess.run(
        ["bash", ROOT / "launch/tpu_worker.sh", "stop"], env={**os.environ, **state}, check=True
    )
    _, output = resumed.communicate(timeout=PATIENCE)
    assert (resumed.returncode, "status 75" in output) == (75, True)
    assert cloud.calls().count("start") == 1
    assert cloud.ends() == ["1 wait", "stopped"]


def test_create_prepares_and_delete_gives_back(tmp_path):
    cloud = Cloud(tmp_path, [["ACTIVE"]], now=["SUSPENDED"])
    done = cloud.launch(action="create")
    assert done.returncode == 0, done.stderr
    made = ["describe", "delete", "describe", "create", "describe", *PREPARATION]
    assert cloud.calls() == made
    assert cloud.launch(action="delete").returncode == 0
    assert cloud.calls() == [*made, "delete"]
    assert not (tmp_path / "pod.json").exists()


def test_a_failed_setup_is_an_error(tmp_path):
    cloud = Cloud(tmp_path, [["ACTIVE"]])
    done = cloud.launch("--setup=echo no such share; false")
    assert done.returncode == 78
    assert "no such share" in done.stdout
    assert "ended with status 65" in done.stderr
    assert "start" not in cloud.calls()
