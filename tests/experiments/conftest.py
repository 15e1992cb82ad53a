"""Running experiments as a user does, from a shell."""

import atexit
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from tests.experiments import command
from tests.training.conftest import tiny_arch

__all__ = ["tiny_arch"]

ROOT = Path(__file__).parents[2]
# Five layers compile in seconds; nothing is learned in so few steps.
SHORT = (
    "--seeds=1",
    "--config.arch=tiny",  # of `command`
    "--config.num_steps=8",
    "--config.batch_size=8",
    "--config.log_every=2",
    "--config.eval_every=4",
    "--config.checkpoint_every=4",
    "--config.test_examples=20",
)
SHORT_14 = (*SHORT, "--config.arch=small_14_reduced")  # for processes without `command`
# A process that has imported what takes seconds to import, and is forked for every command.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [command.__name__, "experiments.harness.cli", "matplotlib.figure", "sklearn.datasets"]
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
    return run_module(f"experiments.{experiment}", *arguments, **variables)


def run_module(module: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    process = Forked(module, *arguments, **variables)
    out, err = process.communicate()
    return subprocess.CompletedProcess([module, *arguments], process.returncode, out, err)


class Forked:
    """A command like a `subprocess.Popen`, in a process that has imported most of what it needs."""

    def __init__(self, module: str, *arguments: str, **variables: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._files = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        given = (module, arguments, environment(**variables), self._files)
        self._process = _FORKS.Process(target=_command, args=given)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self._process.join(timeout)
        assert self.returncode is not None, f"it has not ended in {timeout} s"
        out, err = (file.read_text() for file in self._files)
        self._folder.cleanup()
        return out, err


def _command(
    module: str, arguments: tuple[str, ...], variables: dict[str, str], files: list[Path]
) -> None:
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(variables)
    warnings.simplefilter("ignore")  # $PYTHONWARNINGS, which is read when Python starts
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in `start`
    for descriptor, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    try:
        command.main(module, *arguments)
    finally:
        atexit._run_exitfuncs()  # which `multiprocessing` leaves out
