r"""Command that runs an experiment on a Cloud TPU pod, again after the pod was taken away.

    python -m launch.tpu_pod --name=NAME --zone=ZONE -- experiments.convergence_22 \
        --scale=imagenet --workdir=/mnt/share/runs/convergence_22

It requests a pod as a queued resource with `gcloud`, waits for it, installs the package at HEAD on
every worker, starts the experiment there and shows worker 0's log. The experiment does not need the
connection: Ctrl-C or a network failure ends only the display of the log. Values of --action:

    run      all of this, with an existing pod if there is one; the default
    create   all except the experiment
    resume   as run, but follow an experiment that is already running instead of restarting it
    delete   delete the pod

docs/clusters.md is a guide from an empty project to a result.
"""

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from launch import statuses, tpu_commands
from launch.tpu_commands import Pod
from prelu_jax import entry

ROOT = Path(__file__).parents[1]

_ACTIVE, _ABSENT = "ACTIVE", ""
_LOST = ("FAILED", "SUSPENDED")  # the machines of such a queued resource will not come back
_OF_GCLOUD = (1, 255)  # exit statuses of gcloud's own failures
_CLAIM_FAILED = 101  # tpu_worker.sh's status for the experiment's status 1
_PATIENCE = 20  # failed tries in a row
_TAKEN_AWAY = statuses.STOPPED
_LASTED = 60  # seconds after which a broken connection counts as one that worked

_NAME = flags.DEFINE_string("name", None, "Name of the queued resource and of its node.")
_ZONE = flags.DEFINE_string("zone", None, "Zone, for instance us-central2-b.")
_PROJECT = flags.DEFINE_string("project", "", "Project; by default gcloud's own setting.")
_ACCELERATOR = flags.DEFINE_string("accelerator_type", "v4-32", "v4-N, v5e-N, v5p-N or v6e-N.")
_RUNTIME = flags.DEFINE_string("runtime_version", "", "By default the accelerator's usual one.")
_SPOT = flags.DEFINE_bool("spot", False, "Cheaper, but it can be taken away at any time.")
_CREATE_FLAGS = flags.DEFINE_string("create_flags", "", "Further flags of gcloud: '--reserved'.")
_SETUP = flags.DEFINE_string("setup", "", "Shell command for every worker, after the installation.")
_ACTIONS = ["run", "create", "resume", "delete"]
_ACTION = flags.DEFINE_enum("action", "run", _ACTIONS, "See above.")
_RESTARTS = flags.DEFINE_integer("max_restarts", 10, "Most restarts.", lower_bound=0)
_POLL = flags.DEFINE_float("poll_seconds", 30, "Pause between calls of gcloud.", lower_bound=0)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands, without gcloud.")

Step = tuple[str, list[list[str]]]  # comment, commands


def plan(pod: Pod, action: str) -> str:
    """Return an action's commands in order, as a shell script with comments."""
    creation: list[Step] = [
        ("If the state is ACTIVE, the pod is not created.", [pod.describe()]),
        ("A pod that is FAILED or SUSPENDED is deleted first.", [pod.create()]),
        ("Repeated until the state is ACTIVE.", [pod.describe()]),
        ("Install the package on every worker.", pod.preparation()),
    ]
    experiment: list[Step] = [
        ("Start the experiment on every worker.", [pod.start()]),
        ("Show its log until it ends.", [pod.follow()]),
    ]
    after = "After a status that is not final: from start on; if the pod is lost: from describe on."
    again: Step = (after, [])
    running: list[Step] = [
        ("Show the log of the running experiment until it ends.", [pod.follow()]),
        ("If none runs, or it ended with a status that is not final:", []),
    ]
    steps: dict[str, list[Step]] = {
        "create": creation,
        "run": [*creation, *experiment, again],
        "resume": [*running, *experiment, again],
        "delete": [("Delete the pod and its machines.", [pod.delete()])],
    }
    return "\n".join(
        line
        for comment, commands in steps[action]
        for line in (f"# {comment}", *map(shlex.join, commands))
    )


class LostError(Exception):
    """The pod was taken away, or was never created."""


class Launcher:
    """Creation of a pod by gcloud, and the runs of an experiment on it.

    Args:
        pod: the pod to create or to use.
        poll: seconds between two calls of gcloud.
    """

    def __init__(self, pod: Pod, poll: float) -> None:
        self._pod = pod
        self._poll = poll
        self._answered = False  # whether gcloud has ever returned a state
        self._reached = False  # whether a command has reached this pod
        self._prepared = False  # whether the package is installed

    def create(self) -> None:
        """Create the pod unless it exists, wait until it is active, and install the package.

        Raises:
            LostError: the pod has failed, or was taken away meanwhile.
        """
        self._wait()
        self._check_committed()
        for command in self._pod.preparation():
            self._succeed(command)
        self._prepared = True

    def delete(self) -> None:
        """Delete the pod."""
        self._reached = self._prepared = False
        _call(self._pod.delete(), "gcloud could not delete the pod")

    def run(self, max_restarts: int, watch: bool) -> int:
        """Run the experiment until it ends with a final status; return its exit status.

        Args:
            max_restarts: most restarts.
            watch: first follow an experiment that may be running.
        """
        self._prepared = watch
        for restarts in range(max_restarts + 1):
            try:
                status = self._attempt(watch and not restarts)
                if status in statuses.FINAL:
                    return status
                ended = f"the experiment ended with status {status}"
            except LostError as error:
                self._reached = self._prepared = False
                status, ended = _TAKEN_AWAY, f"the pod is lost: {error}"
            restart = f"restart {restarts + 1} of {max_restarts}"
            _print(f"{ended}; {restart if restarts < max_restarts else 'no restart is left'}.")
        return status

    def _attempt(self, watch: bool) -> int:
        if not watch:
            if not self._prepared:
                self.create()
            self._succeed(self._pod.start())
        status = self._reach(self._pod.follow())
        return 1 if status == _CLAIM_FAILED else status

    def _wait(self) -> None:
        """Create the pod if needed and wait until it is active."""
        created, printed = False, ""
        while (state := self._state()) != _ACTIVE:
            if state in _LOST:
                if created:
                    raise LostError(f"the request for it ended as {state}")
                self.delete()
            elif state == _ABSENT:
                if created:
                    raise LostError("the requested resource is gone")
                _call(self._pod.create(), "gcloud could not create the pod")
                created = True
            elif state != printed:
                _print(f"{self._pod.name} is {state}.")
                printed = state
            time.sleep(self._poll)

    def _state(self) -> str:
        """Return the state of the queued resource by gcloud; empty if there is none."""
        for _ in range(_PATIENCE):
            done = subprocess.run(self._pod.describe(), capture_output=True, text=True, cwd=ROOT)
            if done.returncode == 0:
                self._answered = True
                return done.stdout.strip()
            if "NOT_FOUND" in done.stderr:
                self._answered = True
                return _ABSENT
            if not self._answered:
                break
            time.sleep(self._poll)
        raise SystemExit(
            f"error: gcloud does not return the state of {self._pod.name}: "
            f"{done.stderr.strip()}\nAn experiment that runs there continues; --action=resume "
            "follows it again."
        )

    def _succeed(self, command: Sequence[str]) -> None:
        """Run a command that must succeed, with the workers reached by gcloud."""
        if status := self._reach(command):
            raise SystemExit(
                f"error: a command ended with status {status}: {shlex.join(command)}\nIts output "
                "is above. The pod still exists; --action=delete deletes it."
            )

    def _reach(self, command: Sequence[str]) -> int:
        """Repeat a command until gcloud reaches the workers; return the command's status.

        Raises:
            LostError: the pod is not active, or can no longer be reached and was deleted.
        """
        failures = 0
        while failures < _PATIENCE:
            begun = time.monotonic()
            status = subprocess.call(command, cwd=ROOT)
            if command[0] != "gcloud" or status not in _OF_GCLOUD:
                self._reached = self._reached or command[0] == "gcloud"
                return status
            if (state := self._state()) != _ACTIVE:
                raise LostError(f"it is {state or 'deleted'}")
            failures = 1 if time.monotonic() - begun > _LASTED else failures + 1
            _print(f"{self._pod.name} was not reached, but is {_ACTIVE}; trying again.")
            time.sleep(self._poll)
        if not self._reached:
            raise SystemExit(
                f"error: {self._pod.name} is {_ACTIVE} but cannot be reached; gcloud's error is "
                "above. Check that no firewall blocks ssh. The pod still exists; --action=delete "
                "deletes it."
            )
        self.delete()
        raise LostError("it can no longer be reached")

    def _check_committed(self) -> None:
        command = ["git", "status", "--porcelain", "--untracked-files=no"]
        if subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip():
            _print("uncommitted changes are not sent; the pod gets HEAD.")


def _call(command: Sequence[str], failure: str) -> None:
    if status := subprocess.call(command, cwd=ROOT):
        raise SystemExit(f"error: {failure} (status {status}); its own error is above.")


def _print(message: str) -> None:
    print(f"launch.tpu_pod: {message}", file=sys.stderr, flush=True)


def _pod(experiment: Sequence[str]) -> Pod:
    """Return the pod that the flags describe.

    Raises:
        ValueError: a required flag is missing, or an argument does not suit the action.
    """
    if not (_NAME.value and _ZONE.value):
        raise ValueError("Expected --name=NAME of the pod and --zone=ZONE.")
    if _ACTION.value in ("run", "resume"):
        tpu_commands.check_experiment(experiment)
    elif experiment:
        raise ValueError(
            f"--action={_ACTION.value} takes no experiment, but got {' '.join(experiment)}."
        )
    return Pod(
        _NAME.value,
        _ZONE.value,
        tpu_commands.accelerator(_ACCELERATOR.value, _RUNTIME.value),
        _PROJECT.value,
        _SPOT.value,
        shlex.split(_CREATE_FLAGS.value),
        _SETUP.value,
        experiment,
    )


def _act(pod: Pod) -> int:
    launcher = Launcher(pod, _POLL.value)
    try:
        if _ACTION.value == "delete":
            launcher.delete()
        elif _ACTION.value == "create":
            launcher.create()
        else:
            return launcher.run(_RESTARTS.value, watch=_ACTION.value == "resume")
    except LostError as error:
        raise SystemExit(f"error: the pod is lost: {error}.") from error
    except KeyboardInterrupt:
        _print("the experiment continues; --action=resume follows its log again.")
        return entry.Status.INTERRUPTED
    return 0


def main(argv: list[str]) -> int:
    """Run the command; see the module."""
    try:
        pod = _pod(argv[1:])
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    if _DRY_RUN.value:
        print(plan(pod, _ACTION.value))
        return 0
    if not shutil.which("gcloud"):
        raise SystemExit("error: gcloud is not on the PATH; install the Google Cloud CLI.")
    return _act(pod)


if __name__ == "__main__":
    with entry.command():
        sys.exit(main(entry.parse_flags()))
