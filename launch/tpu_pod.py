r"""Starts an experiment on a Cloud TPU pod, and starts it again when the pod was taken away.

    python -m launch.tpu_pod --name=NAME --zone=ZONE -- experiments.convergence_22 \
        --scale=imagenet --workdir=/mnt/share/runs/convergence_22

It has `gcloud` ask for a pod as a queued resource, waits for it, installs the package at HEAD on
every worker, starts the experiment there and shows worker 0's log. The experiment needs no
connection: Ctrl-C, or a network that fails, ends the watching only. --action says what is done:

    run      all that, with what is there already; the default
    create   all but the experiment
    resume   run, but an experiment that was started before is watched, not started anew
    delete   gives the pod back

docs/clusters.md goes from nothing to a result.
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
_LOST = ("FAILED", "SUSPENDED")  # what such a queued resource had will not come back
_OF_GCLOUD = (1, 255)  # statuses by which gcloud says that it has failed itself
_CLAIM_FAILED = 101  # tpu_worker.sh: the experiment's 1
_PATIENCE = 20  # tries in a row
_TAKEN_AWAY = statuses.STOPPED
_LASTED = 60  # seconds of a connection that did not fail at once

_NAME = flags.DEFINE_string("name", None, "Of the queued resource and of its node.")
_ZONE = flags.DEFINE_string("zone", None, "Where, for instance us-central2-b.")
_PROJECT = flags.DEFINE_string("project", "", "By default gcloud's own setting.")
_ACCELERATOR = flags.DEFINE_string("accelerator_type", "v4-32", "v4-N, v5e-N, v5p-N or v6e-N.")
_RUNTIME = flags.DEFINE_string("runtime_version", "", "By default the accelerator's usual one.")
_SPOT = flags.DEFINE_bool("spot", False, "Cheaper, and can be taken away at any time.")
_CREATE_FLAGS = flags.DEFINE_string("create_flags", "", "Further ones of gcloud: '--reserved'.")
_SETUP = flags.DEFINE_string(
    "setup", "", "Shell command for every worker, once it has the package."
)
_ACTIONS = ["run", "create", "resume", "delete"]
_ACTION = flags.DEFINE_enum("action", "run", _ACTIONS, "See above.")
_RESTARTS = flags.DEFINE_integer("max_restarts", 10, "How often at most.", lower_bound=0)
_POLL = flags.DEFINE_float("poll_seconds", 30, "Between two questions to gcloud.", lower_bound=0)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands; give none, need no gcloud.")

Step = tuple[str, list[list[str]]]  # comment, commands


def plan(pod: Pod, action: str) -> str:
    """The commands of an action in order, as a shell script in which comments say when."""
    there: list[Step] = [
        ("Nothing is created if it says ACTIVE.", [pod.describe()]),
        ("What is FAILED or SUSPENDED is deleted first.", [pod.create()]),
        ("Until it says ACTIVE.", [pod.describe()]),
        ("The package, to every worker.", pod.preparation()),
    ]
    experiment: list[Step] = [
        ("The experiment, on every worker.", [pod.start()]),
        ("Its log, until it ends.", [pod.follow()]),
    ]
    again: Step = ("After a status that is not final: start again; lost, from describe on.", [])
    watched: list[Step] = [
        ("The log of what runs, until it ends.", [pod.follow()]),
        ("The next if nothing runs, or it ended with a status that is not final.", []),
    ]
    steps: dict[str, list[Step]] = {
        "create": there,
        "run": [*there, *experiment, again],
        "resume": [*watched, *experiment, again],
        "delete": [("It and its machines.", [pod.delete()])],
    }
    return "\n".join(
        line
        for comment, commands in steps[action]
        for line in (f"# {comment}", *map(shlex.join, commands))
    )


class LostError(Exception):
    """The pod was taken away, or never came to be."""


class Launcher:
    """Has gcloud do what a pod and its experiment need.

    Args:
        pod: which.
        poll: seconds between two questions to gcloud.
    """

    def __init__(self, pod: Pod, poll: float) -> None:
        self._pod = pod
        self._poll = poll
        self._answered = False  # gcloud, ever
        self._reached = False  # this pod
        self._prepared = False

    def create(self) -> None:
        """Has a pod that is there and has the package.

        Raises:
            LostError: the pod has failed, or was taken away meanwhile.
        """
        self._wait()
        self._check_committed()
        for command in self._pod.preparation():
            self._succeed(command)
        self._prepared = True

    def delete(self) -> None:
        """Gives the pod back."""
        self._reached = self._prepared = False
        _call(self._pod.delete(), "gcloud could not delete the pod")

    def run(self, max_restarts: int, watch: bool) -> int:
        """Runs the experiment until it ends by itself; returns its exit status.

        Args:
            max_restarts: how often at most it is started again.
            watch: whether it runs already.
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
            left = f"restart {restarts + 1} of {max_restarts}"
            _say(f"{ended}; {left if restarts < max_restarts else 'no restart is left'}.")
        return status

    def _attempt(self, watch: bool) -> int:
        if not watch:
            if not self._prepared:
                self.create()
            self._succeed(self._pod.start())
        status = self._reach(self._pod.follow())
        return 1 if status == _CLAIM_FAILED else status

    def _wait(self) -> None:
        """Creates the pod if need be and waits until it is there."""
        created, said = False, ""
        while (state := self._state()) != _ACTIVE:
            if state in _LOST:
                if created:
                    raise LostError(f"a request for it ended as {state}")
                self.delete()
            elif state == _ABSENT:
                if created:
                    raise LostError("what was asked for is gone")
                _call(self._pod.create(), "gcloud could not create the pod")
                created = True
            elif state != said:
                _say(f"{self._pod.name} is {state}.")
                said = state
            time.sleep(self._poll)

    def _state(self) -> str:
        """The queued resource's, as gcloud says it; empty if there is none."""
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
            f"error: gcloud does not say how {self._pod.name} is: {done.stderr.strip()}\nAn "
            "experiment that runs there goes on; --action=resume watches it again."
        )

    def _succeed(self, command: Sequence[str]) -> None:
        """Gives a command that has to succeed, on the workers or for them."""
        if status := self._reach(command):
            raise SystemExit(
                f"error: ended with status {status}: {shlex.join(command)}\nIts output is above. "
                "The pod is left as it is; --action=delete gives it back."
            )

    def _reach(self, command: Sequence[str]) -> int:
        """Gives a command until gcloud has reached the workers; its status there.

        Raises:
            LostError: there is no active pod, or one that is reached no more; that is deleted.
        """
        failures = 0
        while failures < _PATIENCE:
            begun = time.monotonic()
            status = subprocess.call(command, cwd=ROOT)
            if status not in _OF_GCLOUD:
                self._reached = self._reached or command[0] == "gcloud"
                return status
            if (state := self._state()) != _ACTIVE:
                raise LostError(f"it is {state or 'no more'}")
            failures = 1 if time.monotonic() - begun > _LASTED else failures + 1
            _say(f"{self._pod.name} was not reached, but is {_ACTIVE}; trying again.")
            time.sleep(self._poll)
        if not self._reached:
            raise SystemExit(
                f"error: {self._pod.name} is {_ACTIVE} but cannot be reached; what gcloud says "
                "is above. Does a firewall forbid ssh? The pod is left as it is; --action=delete "
                "gives it back."
            )
        self.delete()
        raise LostError("it is reached no more")

    def _check_committed(self) -> None:
        command = ["git", "status", "--porcelain", "--untracked-files=no"]
        if subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip():
            _say("changes that are not committed stay here; the pod gets HEAD.")


def _call(command: Sequence[str], failure: str) -> None:
    if status := subprocess.call(command, cwd=ROOT):
        raise SystemExit(f"error: {failure} (status {status}); what it says is above.")


def _say(message: str) -> None:
    print(f"launch.tpu_pod: {message}", file=sys.stderr, flush=True)


def _pod(experiment: Sequence[str]) -> Pod:
    """What the flags say.

    Raises:
        ValueError: they do not say what is needed.
    """
    if not (_NAME.value and _ZONE.value):
        raise ValueError("Expected --name=NAME of the pod and --zone=ZONE.")
    if _ACTION.value in ("run", "resume"):
        tpu_commands.check_experiment(experiment)
    elif experiment:
        raise ValueError(f"--action={_ACTION.value} takes no experiment; given {experiment}.")
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
        _say("no longer watching. What runs goes on: --action=resume watches it again.")
        return entry.Status.INTERRUPTED
    return 0


def main(argv: list[str]) -> int:
    """The command; see the module."""
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
