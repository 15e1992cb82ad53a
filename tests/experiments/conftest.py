"""Running experiments as a user does, from a shell."""

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Fourteen layers compile in a few seconds; nothing is learned in so few steps.
SHORT = (
    "--seeds=1",
    "--config.arch=small_14_reduced",
    "--config.num_steps=8",
    "--config.batch_size=8",
    "--config.log_every=2",
    "--config.eval_every=4",
    "--config.checkpoint_every=4",
    "--config.test_examples=20",
)


def environment(**variables: str) -> dict[str, str]:
    # Devices and threads as on a user's machine: the suite itself runs with four and 16.
    of_suite = {name: value for name, value in os.environ.items() if name != "NPROC"}
    return {**of_suite, "XLA_FLAGS": "", "PYTHONWARNINGS": "ignore", **variables}


def start(experiment: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{experiment}", *arguments],
        cwd=ROOT,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A suite that a shell started in the background ignores Ctrl-C, and so would its children.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def run(experiment: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    process = start(experiment, *arguments, **variables)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
