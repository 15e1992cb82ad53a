"""Starts an experiment as several processes on this machine, and starts it again if one fails.

    python -m launch.local --num_processes=2 -- experiments.convergence_30 --scale=laptop

The experiment and its flags follow `--`. Each process also gets the address of the first process,
their number and its own. If one is killed, crashes or is stopped by SIGTERM, the others are
ended and all are started again, up to --max_restarts times: they continue from their last
checkpoint. A claim that fails (exit status 1) and a flag, data or a folder that is refused (78) end
it, with the experiment's status. SIGTERM to this command is handed on; it then ends with the
experiment's status, 75, and starts nothing.
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
_OTHERS = 1.0  # seconds that the others have to end by themselves when one has failed
_TO_SAVE = 60  # seconds that processes have to end themselves when one of them is asked to stop
_TO_NOTICE = 10  # when one has crashed: they cannot save without it

_PROCESSES = flags.DEFINE_integer("num_processes", 1, "How many processes.", lower_bound=1)
_RESTARTS = flags.DEFINE_integer("max_restarts", 10, "How often at most.", lower_bound=0)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands; start nothing.")


def commands(experiment: Sequence[str], num_processes: int, address: str) -> list[list[str]]:
    """The command of every process.

    Args:
        experiment: its module and its flags.
        num_processes: how many there are.
        address: of the first, host:port.
    """
    alone = [sys.executable, "-m", *experiment]
    if num_processes == 1:
        return [alone]
    told = [f"--coordinator_address={address}", f"--num_processes={num_processes}"]
    return [[*alone, *told, f"--process_id={i}"] for i in range(num_processes)]


class Attempt:
    """The processes of one start; they are ended together."""

    def __init__(self, started: Sequence[Sequence[str]]) -> None:
        self._processes = [subprocess.Popen(command) for command in started]

    def status(self) -> int:
        """Waits for them. If one fails, the others are ended, and its exit status is that of all.

        A negative status is the number of the signal that killed it.
        """
        while not (failed := self._failed()) and self._are_running():
            time.sleep(_POLL)
        # The others may be about to end for a reason of their own, which SIGTERM would hide.
        deadline = time.monotonic() + _OTHERS
        while failed and self._are_running() and time.monotonic() < deadline:
            time.sleep(_POLL)
        failed = self._failed()
        self.end(signal.SIGTERM, _TO_NOTICE if failed and STOPPED not in failed else _TO_SAVE)
        # A process refuses the same configuration again, whatever happened to the others.
        return next((code for code in failed if code in FINAL), failed[0]) if failed else 0

    def _failed(self) -> list[int]:
        """Return the statuses of the processes that have failed."""
        return [code for process in self._processes if (code := process.poll())]

    def _are_running(self) -> bool:
        return any(process.poll() is None for process in self._processes)

    def end(self, number: int, patience: float = _TO_SAVE) -> None:
        """Sends all a signal, and kills those that do not heed it within so many seconds."""
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
    """Starts the experiment until it ends by itself; returns its exit status."""
    stopped: list[int] = []
    attempt: Attempt | None = None

    def hand_on(number: int, frame: object) -> None:
        stopped.append(number)
        if attempt:
            attempt.end(number)

    signal.signal(signal.SIGTERM, hand_on)
    for restarts in range(max_restarts + 1):
        attempt = Attempt(commands(experiment, num_processes, f"127.0.0.1:{_free_port()}"))
        status = attempt.status()
        if status in FINAL or stopped:
            return status
        print(
            f"launch.local: a process ended with status {status}; restart {restarts + 1} of "
            f"{max_restarts}."
            if restarts < max_restarts
            else "launch.local: no restart is left.",
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
    """The command; see the module."""
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
