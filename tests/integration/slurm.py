"""SLURM on this machine alone: munged, slurmctld and slurmd run as the current user.

python -m tests.integration.slurm FOLDER    # runs until Ctrl-C; then use SLURM_CONF
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
_SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_PATIENCE = 300  # seconds

_CONF = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until the credentials of its last start have expired: at least 5 seconds.
AuthInfo=socket={sockets}/munge,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
KillWait=5
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=4
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """Return SLURM's programs that are not installed."""
    return [name for name in PROGRAMS if not shutil.which(name, path=_SBIN)]


@contextlib.contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """Start the daemons with all their files in a folder, and stop them at the end.

    Yields:
        The environment variables with which SLURM's commands find the daemons.
    """
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(os.urandom(64))
    conf = folder / "slurm.conf"
    with contextlib.ExitStack() as ends:
        # The path of a socket is limited to 107 characters.
        sockets = ends.enter_context(tempfile.TemporaryDirectory())
        os.chmod(sockets, 0o755)
        conf.write_text(
            _CONF.format(
                host=host, folder=folder, sockets=sockets, user=getpass.getuser(), ports=_ports(2)
            )
        )
        variables = {"SLURM_CONF": str(conf), "PATH": _SBIN}
        munge = (
            *("munged", "--foreground", "--force", f"--key-file={key}"),
            *(f"--socket={sockets}/munge", f"--pid-file={sockets}/pid"),
            *(f"--seed-file={folder}/munge.seed", f"--log-file={folder}/munge.log"),
        )
        ends.enter_context(_daemon(munge, folder, variables))
        _wait(lambda: Path(sockets, "munge").exists(), "munged has no socket", folder)
        ends.enter_context(_daemon(("slurmctld", "-D", "-c"), folder, variables))
        ends.enter_context(_daemon(("slurmd", "-D", "-N", host), folder, variables))

        def output(*command: str) -> str:
            environment = {**os.environ, **variables}
            return subprocess.run(command, env=environment, capture_output=True, text=True).stdout

        _wait(lambda: "idle" in output("sinfo", "-h", "-o", "%T"), "the node is not idle", folder)
        try:
            yield variables
        finally:
            output("scancel", f"--user={getpass.getuser()}")
            _wait(lambda: not output("squeue", "-h"), "jobs do not end", folder)


@contextlib.contextmanager
def _daemon(command: tuple[str, ...], folder: Path, variables: dict[str, str]) -> Iterator[None]:
    with (folder / f"{command[0]}.out").open("w") as out:
        process = subprocess.Popen(
            command, env={**os.environ, **variables}, stdout=out, stderr=subprocess.STDOUT
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(done: Callable[[], bool], complaint: str, folder: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not done():
        if time.monotonic() > deadline:
            logs = [
                f"{file}:\n{file.read_text(errors='replace')[-2000:]}"
                for file in folder.glob("*.out")
            ]
            raise RuntimeError("\n".join([complaint, *logs]))
        time.sleep(0.1)


def _ports(count: int) -> list[int]:
    """Return free ports."""
    with contextlib.ExitStack() as open_ones:
        sockets = [open_ones.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


if __name__ == "__main__":
    with running(Path(sys.argv[1]).absolute()) as environment:
        print(" ".join(f"{name}={value}" for name, value in environment.items()), flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
