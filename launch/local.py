"""Command that runs an experiment as local processes and restarts it after a failure.

    python -m launch.local --num_processes=2 -- experiments.convergence_30 --scale=laptop

The experiment and its flags follow `--`. Each process also gets the address of the first process,
the number of processes and its own index. If one is killed, crashes or gets SIGTERM, the others are
ended and all start again from the last checkpoint, up to --max_restarts times. There is no restart
after a failed claim (exit status 1) or an invalid flag, dataset or folder (78): the command ends
with the experiment's status. SIGTERM to this command is passed on to the processes; the command
then ends with their status, 75, without a restart.
"""

import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from absl import app, flags

from launch.statuses import FINAL, STOPPED
from prelu_jax import entry

_POLL = 0.1  # seconds
_OTHERS = 1.0  # seconds for the others to end by themselves after one has failed
_TO_SAVE = 60  # seconds for processes to save and end after SIGTERM
_TO_NOTICE = 10  # seconds for them to end after one has crashed: they cannot save without it

_PROCESSES = flags.DEFINE_integer("num_processes", 1, "Number of processes.", lower_bound=1)
_RESTARTS = flags.DEFINE_integer("max_restarts", 10, "Most restarts.", lower_bound=0)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands; start nothing.")


def commands(experiment: Sequence[str], num_processes: int, address: str) -> list[list[str]]:
    """Return the command of every process.

    Args:
        experiment: the experiment's module and its flags.
        num_processes: number of processes.
        address: address of the first process, host:port.
    """
    single = [sys.executable, "-m", *experiment]
    if num_processes == 1:
        return [single]
    joining = [f"--coordinator_address={address}", f"--num_processes={num_processes}"]
    return [[*single, *joining, f"--process_id={i}"] for i in range(num_processes)]


class Attempt:
    """The processes of one start, which end together."""

    def __init__(self, started: Sequence[Sequence[str]]) -> None:
        self._processes = [subprocess.Popen(command) for command in started]

    def status(self) -> int:
        """Wait for the end of all processes and return their common exit status.

        If one fails, the others are ended and its status is returned. A negative status is the
        number of the signal that killed it.
        """
        while not (failed := self._failed()) and self._are_running():
            time.sleep(_POLL)
        # The others may be about to end for another reason, which SIGTERM would hide.
        deadline = time.monotonic() + _OTHERS
        while failed and self._are_running() and time.monotonic() < deadline:
            time.sleep(_POLL)
        failed = self._failed()
        self.end(signal.SIGTERM, _TO_NOTICE if failed and STOPPED not in failed else _TO_SAVE)
        # A final status wins: the process would end with it again, whatever happened to the others.
        return next((code for code in failed if code in FINAL), failed[0]) if failed else 0

    def _failed(self) -> list[int]:
        """Return the statuses of the processes that have failed."""
        return [code for process in self._processes if (code := process.poll())]

    def _are_running(self) -> bool:
        return any(process.poll() is None for process in self._processes)

    def end(self, number: int, patience: float = _TO_SAVE) -> None:
        """Send a signal to all processes; after ``patience`` seconds kill those that still run."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)
        deadline = time.monotonic() + patience
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def launch(experiment: Sequence[str], num_processes: int, max_restarts: int) -> int:
    """Start the experiment until it ends with a final status; return its exit status."""
    stopped: list[int] = []
    attempt: Attempt | None = None

    def pass_on(number: int, frame: object) -> None:
        stopped.append(number)
        if attempt:
            attempt.end(number)

    signal.signal(signal.SIGTERM, pass_on)
    for restarts in range(max_restarts + 1):
        attempt = Attempt(commands(experiment, num_processes, f"127.0.0.1:{_free_port()}"))
        if stopped:  # a SIGTERM while the processes were started
            attempt.end(stopped[0])
        status = attempt.status()
        if status in FINAL or stopped:
            return status
        print(
            f"launch.local: a process ended with status {status}; restart {restarts + 1} of "
            f"{max_restarts}."
            if restarts < max_restarts
            else f"launch.local: a process ended with status {status}; no restart is left.",
            file=sys.stderr,
            flush=True,
        )
    return status


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def main(argv: list[str]) -> int:
    """Run the command; see the module."""
    experiment = argv[1:]
    if not experiment or experiment[0].startswith("-"):
        raise app.UsageError("Expected `--`, the module of an experiment and its flags.")
    if _DRY_RUN.value:
        for command in commands(experiment, _PROCESSES.value, "127.0.0.1:PORT"):
            print(shlex.join(["python", *command[1:]]))
        return 0
    return launch(experiment, _PROCESSES.value, _RESTARTS.value)


if __name__ == "__main__":
    with entry.command():
        sys.exit(main(entry.parse_flags()))
