"""What `tpu_pod` has gcloud do: accelerators and commands, without running anything."""

import dataclasses
import re
import shlex
from collections.abc import Sequence

_PACKAGE = "prelu_jax"  # the folder on the workers, in their user's home
_WORKER = f"bash {_PACKAGE}/launch/tpu_worker.sh"
# Of a remote command that fails: 1 and 255 are what gcloud itself ends with.
FAILED = 65

# Runtime versions, as https://cloud.google.com/tpu/docs/runtimes has them.
_RUNTIMES = {
    "v4": "tpu-ubuntu2204-base",
    "v5e": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
_GCLOUD_NAMES = {"v5e": "v5litepod"}
_COUNTED_IN_CHIPS = ("v5e", "v6e")  # the others' names count cores, two a chip
_ONE_HOST = (1, 4, 8)  # chips
_CHIP_COUNTS = (*_ONE_HOST, 16, 32, 64, 128, 256)
_CHIPS_A_HOST = 4


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """A kind of pod.

    Attributes:
        name: gcloud's.
        hosts: how many machines, each of which is a worker.
        runtime_version: of the software that they start with.
    """

    name: str
    hosts: int
    runtime_version: str


def accelerator(name: str, runtime_version: str = "") -> Accelerator:
    """The accelerator of a name as users say it, 'v4-32', or as gcloud does, 'v5litepod-16'.

    Args:
        name: generation and size.
        runtime_version: another than the generation's.

    Raises:
        ValueError: no such generation, or not of that size.
    """
    found = re.fullmatch(r"(\w+)-(\d+)", name)
    generation, size = (found[1], int(found[2])) if found else (name, 0)
    for own, gclouds in _GCLOUD_NAMES.items():
        generation = own if generation == gclouds else generation
    if generation in _COUNTED_IN_CHIPS:
        known = size in _CHIP_COUNTS
        hosts = 1 if size in _ONE_HOST else size // _CHIPS_A_HOST
    else:
        known = generation in _RUNTIMES and size > 0 and size % (2 * _CHIPS_A_HOST) == 0
        hosts = size // (2 * _CHIPS_A_HOST)
    if not known:
        chips = ", ".join(map(str, _CHIP_COUNTS))
        raise ValueError(
            f"--accelerator_type={name}: expected v4-N or v5p-N, N cores, a multiple of 8 (v4-8 is "
            f"one host, v4-32 four), or v5e-N or v6e-N, N chips, one of {chips}."
        )
    return Accelerator(
        f"{_GCLOUD_NAMES.get(generation, generation)}-{size}",
        hosts,
        runtime_version or _RUNTIMES[generation],
    )


def check_experiment(experiment: Sequence[str]) -> None:
    """Raises a ValueError if there is none, or if its work folder would not outlive the pod."""
    if not experiment or experiment[0].startswith("-"):
        raise ValueError("Expected `--`, the module of an experiment and its flags.")
    folder = next((f.partition("=")[2] for f in experiment if f.startswith("--workdir=")), "")
    if not folder.startswith("/"):
        raise ValueError(
            f"--workdir={folder} of the experiment: expected an absolute path in a folder that "
            "--setup mounts. A worker's own disk is lost with the pod, and gs:// is no file system "
            "(docs/clusters.md says what to mount)."
        )


@dataclasses.dataclass(frozen=True)
class Pod:
    """A pod, and every command that is given about it.

    Attributes:
        name: of the queued resource and of its node.
        zone: where.
        accelerator: what.
        project: empty for gcloud's own setting.
        spot: whether it may be taken away, for a lower price.
        create_flags: further flags of its creation.
        setup: a shell command for every worker, after the installation.
        experiment: module and flags.
    """

    name: str
    zone: str
    accelerator: Accelerator
    project: str = ""
    spot: bool = False
    create_flags: Sequence[str] = ()
    setup: str = ""
    experiment: Sequence[str] = ()

    def create(self) -> list[str]:
        return self._resource(
            "create",
            f"--node-id={self.name}",
            f"--accelerator-type={self.accelerator.name}",
            f"--runtime-version={self.accelerator.runtime_version}",
            *(["--spot"] if self.spot else []),
            *self.create_flags,
        )

    def describe(self) -> list[str]:
        """Prints its state."""
        return self._resource("describe", "--format=value(state.state)")

    def delete(self) -> list[str]:
        return self._resource("delete", "--force")

    def preparation(self) -> list[list[str]]:
        """From a pod that is there to one that has the package."""
        archive = f"runs/{self.name}.tar.gz"
        unpack = f"tar -xzf {_PACKAGE}.tar.gz"
        return [
            ["mkdir", "-p", "runs"],
            ["git", "archive", f"--prefix={_PACKAGE}/", f"--output={archive}", "HEAD"],
            self._node("scp", archive, f"{self.name}:{_PACKAGE}.tar.gz", "--worker=all"),
            self._ssh("all", f"{unpack} && {_WORKER} install || exit {FAILED}"),
            *([self._ssh("all", f"( {self.setup} ) || exit {FAILED}")] if self.setup else []),
        ]

    def start(self) -> list[str]:
        """Starts the experiment on every worker, and returns."""
        several = ["--distributed"] if self.accelerator.hosts > 1 else []
        command = shlex.join([*self.experiment, *several])
        return self._ssh("all", f"{_WORKER} start {command} || exit {FAILED}")

    def follow(self) -> list[str]:
        """Shows worker 0's log until the experiment ends."""
        return self._ssh("0", f"{_WORKER} follow")

    def _resource(self, verb: str, *arguments: str) -> list[str]:
        return self._gcloud("queued-resources", verb, self.name, *arguments)

    def _ssh(self, worker: str, command: str) -> list[str]:
        return self._node("ssh", self.name, f"--worker={worker}", f"--command={command}")

    def _node(self, verb: str, *arguments: str) -> list[str]:
        return self._gcloud("tpu-vm", verb, *arguments)

    def _gcloud(self, *arguments: str) -> list[str]:
        project = [f"--project={self.project}"] if self.project else []
        where = [f"--zone={self.zone}", *project, "--quiet"]
        return ["gcloud", "compute", "tpus", *arguments, *where]
