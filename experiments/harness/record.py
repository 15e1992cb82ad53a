"""The record of a finished experiment in its folder, which `experiments.report` reads."""

import dataclasses
import datetime
import math
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import logging

from experiments.harness.claims import Claim
from prelu_jax import files

_FILE = "experiment.json"
_BEGUN = "experiment.begun"  # beside the record, from the beginning of a command to its end


@dataclasses.dataclass(frozen=True)
class Record:
    """The command, time and claims of one experiment; its tables and figures lie beside it.

    Attributes:
        name, scale, seeds: of the experiment.
        command: that ran it.
        finished: the day, ISO 8601.
        seconds: wall-clock, compilation included, of all commands that finished in the folder.
        resumed: an earlier command did not finish; its time is not included.
        hardware, versions: of the machine, and of Python and its packages.
        claims: with the outcome of each.
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


def mark_started(folder: Path) -> bool:
    """Mark a folder as that of a command that has started, until `write` or `clear_mark`.

    Returns:
        Whether a command before it did not end, so that its time is in no record.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return False  # it is not made either: the command may be refused
    for file in (folder / _FILE, folder / _BEGUN):
        if file.is_dir():  # at the end it would be too late
            raise ValueError(f"{file} is a directory, expected a file. Move it away.")
    begun = folder / _BEGUN
    stopped = begun.exists() or not (folder / _FILE).exists()
    begun.touch()
    return stopped


def clear_mark(folder: Path, stopped: bool) -> None:
    """Remove the mark of a command that ended with an error; ``stopped``: from `mark_started`."""
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
    """Write the record of this process's experiment to its folder; see `Record`.

    Args:
        folder, name, scale, seeds, claims: of the experiment.
        seconds: that this command took.
        resumed: as `mark_started` returned.
    """
    commands = 1
    if (folder / _FILE).exists():
        try:
            earlier = read(folder)
        except ValueError as error:  # its time is lost; the new results must not be
            logging.warning("%s It is replaced; the time in it is lost.", error)
            resumed = True
        else:
            seconds, commands = earlier.seconds + seconds, earlier.commands + 1
            resumed = earlier.resumed or resumed
    record = Record(
        name,
        scale,
        seeds,
        command=shlex.join(["python", "-m", f"experiments.{name}", *map(_text, sys.argv[1:])]),
        finished=datetime.datetime.now(datetime.UTC).date().isoformat(),
        seconds=round(seconds, 1),
        resumed=resumed,
        hardware=_hardware(),
        versions=_versions(),
        claims=tuple(claims),
        commands=commands,
    )
    files.write_json(folder / _FILE, dataclasses.asdict(record))
    (folder / _BEGUN).unlink(missing_ok=True)


def read(folder: Path) -> Record:
    """Return the record in an experiment's folder.

    Raises:
        ValueError: the file is no record.
    """
    file = folder / _FILE
    advice = "Give the experiment's command again: finished runs are read, not repeated."
    try:
        fields = files.read_json(file, dict, "")
        claims = tuple(Claim(**claim) for claim in fields.pop("claims"))
        record = Record(**fields, claims=claims)
        _check_types(record)
        return record
    except (ValueError, TypeError, KeyError, OSError) as error:
        reason = str(error).rstrip(" .")
        raise ValueError(f"{file} is no record of an experiment ({reason}). {advice}") from error


def _check_types(record: Record) -> None:
    """Raise a ValueError if a field of a record, or of a claim, is of another type."""
    verdict = bool | None
    asked: dict[Any, Any] = {float: int | float, **{t: t for t in (str, int, bool, verdict)}}
    parts: tuple[Any, ...] = (record, *record.claims)
    for part in parts:
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            kind = asked.get(field.type, tuple)
            if not isinstance(value, kind) or (
                isinstance(value, bool) and kind not in (bool, verdict)
            ):
                raise ValueError(f"{field.name} is {value!r}, expected another type")
    if record.seeds < 1 or record.commands < 1 or not 0 <= record.seconds < math.inf:
        raise ValueError("seeds, commands and seconds are expected to be positive and finite")


def _text(argument: str) -> str:
    """Return an argument of the command as Unicode in any locale."""
    return os.fsencode(argument).decode("utf-8", "replace")


def find(root: Path) -> list[Path]:
    """Return the folders that hold a record: ``root`` itself and those below."""
    return sorted(file.parent for file in root.rglob(_FILE))


def _hardware() -> str:
    """Return the name of the devices that JAX computes on."""
    import jax  # here: records are read without it

    devices = jax.devices()
    if devices[0].platform != "cpu":
        return f"{len(devices)} × {devices[0].device_kind}"
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    lines = text.splitlines()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    model = next(models, "") or platform.processor() or platform.machine()
    return f"{os.cpu_count()} cores of {model}"


def _versions() -> str:
    """Return the versions of Python and of the packages that decide a result."""
    import flax
    import jax

    import prelu_jax

    return (
        f"Python {platform.python_version()}, jax {jax.__version__}, flax {flax.__version__}, "
        f"prelu_jax {prelu_jax.__version__}"
    )
