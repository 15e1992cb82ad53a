"""What is kept of a finished experiment, in its folder, for `experiments.report`."""

import dataclasses
import datetime
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.results import Claim

_FILE = "experiment.json"
_BEGUN = "experiment.begun"  # beside the record, from the beginning of a command to its end


@dataclasses.dataclass(frozen=True)
class Record:
    """One experiment as it was run; its tables and figures lie beside it.

    Attributes:
        name, scale, seeds: of the experiment.
        command: that ran it.
        finished: the day, ISO 8601.
        seconds: wall-clock, compilation included, of all commands that finished in the folder.
        resumed: one that did not finish was there before: the time is not all of it.
        hardware, versions: what it ran on.
        claims: what came of it.
        commands: how many finished in the folder.
    """

    name: str
    scale: str
    seeds: int
    command: str
    finished: str
    seconds: float
    resumed: bool
    hardware: str
    versions: str
    claims: tuple[Claim, ...]
    commands: int = 1


def begin(folder: Path) -> bool:
    """Notes in a folder that a command begins there, which `write` or `refuse` ends.

    Returns:
        Whether one before it did not end: its time is in no record.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return False  # nor is it made: the command may be refused
    begun = folder / _BEGUN
    stopped = begun.exists() or not (folder / _FILE).exists()
    begun.touch()
    return stopped


def refuse(folder: Path, stopped: bool) -> None:
    """Forgets a command that ended with an error; ``stopped``: what `begin` returned."""
    begun = folder / _BEGUN
    if os.path.exists(begun) and not stopped:  # False where it may not look
        begun.unlink()


def write(
    folder: Path,
    name: str,
    scale: str,
    seeds: int,
    seconds: float,
    resumed: bool,
    claims: Sequence[Claim],
) -> None:
    """Keeps the record of this process's experiment in its folder; see `Record`.

    Args:
        folder, name, scale, seeds, claims: of the experiment.
        seconds: that this command took.
        resumed: what `begin` returned.
    """
    commands = 1
    if (folder / _FILE).exists():
        try:
            earlier = read(folder)
        except ValueError:  # damaged: its time is lost, what was computed now must not be
            resumed = True
        else:
            seconds, commands = earlier.seconds + seconds, earlier.commands + 1
            resumed = earlier.resumed or resumed
    record = Record(
        name,
        scale,
        seeds,
        command=shlex.join(["python", "-m", f"experiments.{name}", *sys.argv[1:]]),
        finished=datetime.datetime.now(datetime.UTC).date().isoformat(),
        seconds=round(seconds, 1),
        resumed=resumed,
        hardware=_hardware(),
        versions=_versions(),
        claims=tuple(claims),
        commands=commands,
    )
    temporary = folder / f"{_FILE}.tmp"
    temporary.write_text(json.dumps(dataclasses.asdict(record), indent=2) + "\n")
    os.replace(temporary, folder / _FILE)
    (folder / _BEGUN).unlink(missing_ok=True)


def read(folder: Path) -> Record:
    """The record of an experiment's folder.

    Raises:
        ValueError: the file is no record.
    """
    file = folder / _FILE
    try:
        fields = json.loads(file.read_text())
        claims = tuple(Claim(**claim) for claim in fields.pop("claims"))
        return Record(**fields, claims=claims)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{file} is no record of an experiment ({error}). Give the experiment's command again: "
            "finished runs are read, not repeated."
        ) from error


def find(root: Path) -> list[Path]:
    """Every folder below ``root``, or itself, that holds a record."""
    return sorted(file.parent for file in root.rglob(_FILE))


def _hardware() -> str:
    """The devices that JAX computes on."""
    import jax  # here: records are read without it

    devices = jax.devices()
    if devices[0].platform != "cpu":
        return f"{len(devices)} × {devices[0].device_kind}"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    model = next(models, "") or platform.processor() or platform.machine()
    return f"{os.cpu_count()} cores of {model}"


def _versions() -> str:
    """Of Python and of the packages that decide a result."""
    import flax
    import jax

    import prelu_jax

    return (
        f"Python {platform.python_version()}, jax {jax.__version__}, flax {flax.__version__}, "
        f"prelu_jax {prelu_jax.__version__}"
    )
