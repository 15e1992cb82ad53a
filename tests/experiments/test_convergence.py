import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import convergence_30
from experiments.harness import record
from prelu_jax.data import folder
from tests.conftest import write_images
from tests.experiments.conftest import ROOT, SHORT, SHORT_14, environment, run, start
from tests.waiting import PATIENCE, text_so_far, wait_until


@pytest.mark.parametrize("experiment", ["convergence_30", "convergence_22"])
def test_from_a_flag_to_a_picture(experiment, tmp_path):
    done = run(experiment, "--scale=laptop", f"--workdir={tmp_path}", *SHORT)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 1  # eight steps teach nothing: the claims fail
    for text in ("Claims:", "FAIL  ", "n = 1", "figure.png", "figure.pdf", "curves.csv"):
        assert text in done.stdout
    assert "compiling]" in done.stderr
    assert "step/s" in done.stderr
    for name in ("figure.png", "figure.pdf", "curves.csv", "experiment.json"):
        assert (tmp_path / name).stat().st_size > 100
    for arm, rule in (("he", "variance 2 / fan_out"), ("xavier", "variance 1 / fan_out")):
        report = json.loads((tmp_path / arm / "seed_0/init_report.json").read_text())
        rules = {row["parameter"]: row["rule"] for row in report}
        assert rules["conv2/kernel"] == f"normal, {rule}"
        status = json.loads((tmp_path / arm / "seed_0/status.json").read_text())
        assert status["status"] == "done"
    # Again, of another configuration: refused, with the field, and nothing is lost.
    other = run(experiment, f"--workdir={tmp_path}", *SHORT, "--config.momentum=0.8")
    assert other.returncode == 78
    assert "momentum: 0.9 there, 0.8 asked" in other.stderr
    assert "Traceback" not in other.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scale=labtop"], "Unknown scale 'labtop'. Did you mean 'laptop'?"),
        (["--config.learning_rat=1"], "Unknown config field 'learning_rat'. Did you mean 'learn"),
        (["--config.dataset=digit"], "Unknown dataset 'digit'. Did you mean 'digits'?"),
        (["--config.he_initializer=he_norml"], "Unknown initializer 'he_norml'. Did you mean 'he"),
        (["--config.arch=small_31"], "Unknown arch 'small_31'. Did you mean 'small_30'?"),
        (
            ["--config.initializer=he_normal"],
            "is set for each run; leave it as it is. See config.he_init",
        ),
        (["--config.batch_size=large"], "batch_size"),
        (["--config.batch_size=2.5"], "batch_size"),
        (["--seeds=0"], "seeds"),
        (["--config.seed=3000000000"], "config.seed is 3000000000, expected in"),
        (["--config.min_learning_rate=nan"], "config.min_learning_rate is nan, expected a finite"),
        (["--config.num_steps=100000000000000000000"], "config.num_steps is 1000"),
        (["--config.stalled=nan"], "config.stalled is nan, expected a finite number"),
        (["--config.converged=20"], "config.converged is 20.0, expected fractions from 0 to 1"),
        (["--stall_timeout=nan"], "--stall_timeout=nan: expected a number of seconds"),
        (["--flagfile=/no/such"], "--flagfile=/no/such cannot be read"),
        (["--num_steps=2"], "Did you mean --config.num_steps?"),
        (["--noconfig.flipp"], "Unknown config field 'flipp'. Did you mean 'flip'?"),
        (["--config.colour=-1"], "--config.colour is now --config.pca_color_std"),
        (["--config.colour=-1"], "config.pca_color_std is -1.0, expected"),
        (["--config.fresh=fc"], "config.reinit is fc, expected to be empty without config.pret"),
        (["--scale"], "scale"),
        (["--process_id=1"], "Expected all of --coordinator_address, --num_processes"),
        (
            ["--coordinator_address=127.0.0.1:1", "--num_processes=2", "--process_id=2"],
            "--process_id is 2, expected below --num_processes, 2",
        ),
    ],
)
def test_bad_flags_are_refused_before_anything_runs(arguments, message, tmp_path):
    failed = run("convergence_30", f"--workdir={tmp_path / 'run'}", *arguments)
    assert failed.returncode == 78
    assert message in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "run").exists()


def test_devices_of_a_cpu_have_threads_to_spare():
    # With as many threads as devices, steps that are queued wait for each other for ever.
    program = """
import collections, os, pathlib
from experiments.harness import machine
machine.use_every_core(64)
import jax
jax.devices()
names = [task.joinpath("comm").read_text() for task in pathlib.Path("/proc/self/task").iterdir()]
print(sum("XLAEigen" in name for name in names), len(os.sched_getaffinity(0)))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    threads, cores = map(int, done.stdout.split())
    assert threads == 4 * cores


@pytest.mark.parametrize("experiment", ["signal_profile", "data_dependent"])
def test_experiments_for_one_process_say_so(experiment, tmp_path):
    failed = run(experiment, f"--workdir={tmp_path / 'run'}", "--distributed")
    assert failed.returncode == 78
    assert "This experiment is for one process" in failed.stderr


def test_a_batch_that_the_devices_do_not_divide_is_refused(tmp_path):
    four = "--xla_force_host_platform_device_count=4"
    arguments = [f"--workdir={tmp_path / 'run'}", "--config.batch_size=30"]
    failed = run("convergence_30", *arguments, XLA_FLAGS=four)
    assert failed.returncode == 78
    assert "batch_size is 30, expected a multiple of the 4 devices" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_work_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").touch()
    failed = run("convergence_30", f"--workdir={tmp_path / 'file' / 'run'}", *SHORT)
    assert failed.returncode == 78
    assert f"--workdir is {tmp_path / 'file' / 'run'}, but {tmp_path / 'file'} is a file" in (
        failed.stderr
    )
    assert "Traceback" not in failed.stderr


def test_an_empty_work_folder_is_refused():
    failed = run("convergence_30", "--workdir=", *SHORT)
    assert failed.returncode == 78
    assert "--workdir is empty, expected a folder for the runs." in failed.stderr


def test_a_scale_in_a_flag_file_is_refused(tmp_path):
    (tmp_path / "flags").write_text("--scale=cifar10\n")
    failed = run("convergence_30", f"--flagfile={tmp_path / 'flags'}", f"--workdir={tmp_path}")
    assert failed.returncode == 78
    assert "give --scale on the command line" in failed.stderr


def test_help_says_what_flags_and_fields_mean():
    text = run("convergence_30", "--help").stdout
    for part in ("He et al. 2015, Figure 3", "--scale", "--workdir", "--seeds", "--config.FIELD"):
        assert part in text
    assert "learning_rate [0.002]  initial rate of stochastic gradient descent." in text


def test_the_arms_differ_in_their_initialiser_alone():
    config = convergence_30.EXPERIMENT.config()
    he, xavier = (
        run.config for run in convergence_30.EXPERIMENT.plan(config, Path("w"), [3]).values()
    )
    differing = [k for k in vars(he) if getattr(he, k) != getattr(xavier, k)]
    assert differing == ["initializer"]
    assert (he.initializer, xavier.initializer, he.seed) == ("he_normal", "xavier_normal", 3)


def test_ctrl_c_waits_for_no_thread(tmp_path):
    """Nothing ends a thread that was being started when it came."""
    code = (
        "import dataclasses, threading\n"
        "from experiments import convergence_30\n"
        "from experiments.harness import cli\n"
        "def plan(*_): threading.Thread(target=threading.Event().wait).start(); "
        "raise KeyboardInterrupt\n"
        "cli.main(dataclasses.replace(convergence_30.EXPERIMENT, plan=plan))"
    )
    command = [sys.executable, "-c", code, f"--workdir={tmp_path}"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 130
    assert "Interrupted. The same command continues" in done.stderr


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_bytes_of_an_uninterrupted_one(tmp_path):
    longer = [*SHORT_14, "--config.num_steps=60"]
    whole = run("convergence_30", f"--workdir={tmp_path / 'whole'}", *longer)
    assert "Claims:" in whole.stdout, whole.stderr
    metrics = tmp_path / "killed/he/seed_0/metrics.jsonl"
    for stop, step, code in (
        (signal.SIGKILL, 22, -signal.SIGKILL),
        (signal.SIGTERM, 30, 75),
        (signal.SIGINT, 44, 130),
    ):
        process = start("convergence_30", f"--workdir={tmp_path / 'killed'}", *longer)

        def is_there(process=process, step=step):
            assert process.poll() is None, process.communicate()
            return f'"step": {step},' in text_so_far(metrics)

        wait_until(is_there)
        process.send_signal(stop)
        _, said = process.communicate()
        status = json.loads((tmp_path / "killed/he/seed_0/status.json").read_text())
        assert (status["status"], process.returncode) == ("running", code)
    assert "Interrupted. The same command continues where it stopped." in said
    assert "Traceback" not in said
    resumed = run("convergence_30", f"--workdir={tmp_path / 'killed'}", *longer)
    assert "Claims:" in resumed.stdout, resumed.stderr
    for name in ("he/seed_0/metrics.jsonl", "xavier/seed_0/metrics.jsonl", "curves.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert record.read(tmp_path / "killed").resumed
    assert not record.read(tmp_path / "whole").resumed
    again = run("convergence_30", f"--workdir={tmp_path / 'whole'}", *longer)
    assert "Claims:" in again.stdout, again.stderr
    found = record.read(tmp_path / "whole")
    assert (found.resumed, found.commands) == (False, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "limits"),  # for two classes
    [
        ("convergence_30", {"converged": 0.3, "stalled": 0.45}),
        ("convergence_22", {"converged": 0.3, "threshold": 0.4}),
    ],
)
def test_the_papers_own_setting_runs_on_prepared_photos(experiment, limits, tmp_path):
    counts = {"train": {"a": 3, "b": 3}, "validation": {"a": 2, "b": 1}}
    images = write_images(tmp_path / "images", counts, side=260)
    folder.prepare(images, "photos", str(tmp_path / "tfds"))
    # Narrow: at full width the steps are compiled in tests/training/test_full_size.py.
    arguments = {
        "dataset": "photos",
        "data_dir": tmp_path / "tfds",
        "batch_size": 2,
        "width": 1 / 32,
        **limits,
    }
    steps = dict.fromkeys(("num_steps", "log_every", "eval_every", "checkpoint_every"), 1)
    done = run(
        experiment,
        "--scale=imagenet",
        "--seeds=1",
        f"--workdir={tmp_path / 'run'}",
        *(f"--config.{field}={value}" for field, value in {**arguments, **steps}.items()),
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert "Claims:" in done.stdout
    for arm in ("he", "xavier"):
        lines = (tmp_path / "run" / arm / "seed_0/metrics.jsonl").read_text().splitlines()
        final = json.loads(lines[-1])
        assert (final["step"], final["test_examples"]) == (1, 3)
