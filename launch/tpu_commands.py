"""Accelerators and gcloud commands of `tpu_pod`; this module runs nothing."""

import dataclasses
import re
import shlex
from collections.abc import Sequence

_PACKAGE = "prelu_jax"  # the folder on the workers, in their user's home
_WORKER = f"bash {_PACKAGE}/launch/tpu_worker.sh"
# Status of a remote command that fails; 1 and 255 are gcloud's own.
FAILED = 65

# Runtime versions, from https://cloud.google.com/tpu/docs/runtimes.
_RUNTIMES = {
    "v4": "tpu-ubuntu2204-base",
    "v5e": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
_GCLOUD_NAMES = {"v5e": "v5litepod"}
_COUNTED_IN_CHIPS = ("v5e", "v6e")  # names of other generations count cores, two per chip
_ONE_HOST = (1, 4, 8)  # chips
_CHIP_COUNTS = (*_ONE_HOST, 16, 32, 64, 128, 256)
_CHIPS_A_HOST = 4


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """An accelerator type.

    Attributes:
        name: gcloud's name.
        hosts: number of machines, each of which is a worker.
        runtime_version: version of the software on the machines.
    """

    name: str
    hosts: int
    runtime_version: str


def accelerator(name: str, runtime_version: str = "") -> Accelerator:
    """Return the accelerator for a name as in 'v4-32', or as in gcloud's 'v5litepod-16'.

    Args:
        name: generation and size.
        runtime_version: runtime version; empty for the generation's usual one.

    Raises:
        ValueError: the generation is unknown, or does not exist in this size.
    """
    match = re.fullmatch(r"(\w+)-(\d+)", name)
    generation, size = (match[1], int(match[2])) if match else (name, 0)
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
    """Raise a ValueError if no experiment is given, or its work folder is on the pod's own disk."""
    if not experiment or experiment[0].startswith("-"):
        raise ValueError("Expected `--`, the module of an experiment and its flags.")
    folder = next((f.partition("=")[2] for f in experiment if f.startswith("--workdir=")), "")
    if not folder.startswith("/"):
        raise ValueError(
            f"--workdir={folder} of the experiment: expected an absolute path in a folder that "
            "--setup mounts. A worker's own disk is lost with the pod, and gs:// is not a file "
            "system. See Storage in docs/clusters.md."
        )


@dataclasses.dataclass(frozen=True)
class Pod:
    """A pod, and all gcloud commands about it.

    Attributes:
        name: name of the queued resource and of its node.
        zone: zone of the cloud.
        accelerator: accelerator type.
        project: project of the cloud; empty for gcloud's own setting.
        spot: cheaper, but the pod may be taken away at any time.
        create_flags: further flags of gcloud for the creation.
        setup: shell command for every worker, after the installation.
        experiment: module and flags of the experiment.
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
        """Return the command that prints the pod's state."""
        return self._resource("describe", "--format=value(state.state)")

    def delete(self) -> list[str]:
        return self._resource("delete", "--force")

    def preparation(self) -> list[list[str]]:
        """Return the commands that install the package on an active pod."""
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
        """Return the command that starts the experiment on every worker and returns at once."""
        several = ["--distributed"] if self.accelerator.hosts > 1 else []
        command = shlex.join([*self.experiment, *several])
        return self._ssh("all", f"{_WORKER} start {command} || exit {FAILED}")

    def follow(self) -> list[str]:
        """Return the command that shows worker 0's log until the experiment ends."""
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
