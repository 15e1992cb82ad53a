"""Small files, written completely or not at all, and read with errors that name the file.

This module does not import JAX, so that reports and figures can be made without it.
"""

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_KINDS: dict[type, str] = {dict: "an object", list: "a list"}  # in the words of JSON
# The scheme of a bucket's address: 'gs://…', also after `Path` has removed one of the slashes.
_SCHEME = re.compile(r"[A-Za-z][\w+.-]+:/")


class DamagedFileError(ValueError):
    """A file whose content no version of this package has written."""


def local_path(text: str | os.PathLike[str], name: str) -> Path:
    """Return a path of an ordinary file system, with ``~`` expanded.

    Args:
        text: the path as the user wrote it.
        name: name of the flag or field, for the error.

    Raises:
        ValueError: it is the address of a bucket, it begins with the home directory of an unknown
            user, or it holds a NUL.
    """
    written = os.fspath(text)
    if _SCHEME.match(written):
        raise ValueError(
            f"{name} is {written}: expected a folder of an ordinary file system, which can lock "
            "and rename files. A bucket cannot; mount NFS or a disk (docs/clusters.md, Storage)."
        )
    if "\0" in written:
        raise ValueError(f"{name} is {written!r}: a path cannot hold a NUL. Remove it.")
    expanded = os.path.expanduser(written)
    if expanded.startswith("~"):
        raise ValueError(
            f"{name} is {written}, but there is no home directory {expanded.partition('/')[0]}. "
            "Give the full path, or ./~ for a folder of that name."
        )
    return Path(expanded)


def read_bytes(file: Path) -> bytes:
    """Return the content of a file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the path is a directory, or another thing that is not a regular file.
        OSError: the file cannot be read.
    """
    if file.exists() and not file.is_file():
        kind = "a directory" if file.is_dir() else "not a regular file"
        raise ValueError(f"{file} is {kind}, expected a file. Move it away.")
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = f"{file} cannot be read ({error.strerror}). Make it readable, then try again."
        raise OSError(error.errno, reason) from error


def read_text(file: Path, advice: str) -> str:
    """Return the text of a UTF-8 file.

    Args:
        file: the file to read.
        advice: advice to the user, the end of the error about a damaged file.

    Raises:
        DamagedFileError: the file is not UTF-8, or it holds NUL bytes.
        FileNotFoundError, ValueError, OSError: as `read_bytes`.
    """
    content = read_bytes(file)
    if b"\0" in content:
        raise DamagedFileError(f"{file} is damaged (it holds NUL bytes). {advice}")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"{file} is damaged (it is not UTF-8: {error}). {advice}") from error


def read_json(file: Path, kind: type, advice: str) -> Any:
    """Return the content of a JSON file.

    Args:
        file: the file to read.
        kind: expected type of the content, `dict` or `list`.
        advice: advice to the user, the end of the error about a damaged file.

    Raises:
        DamagedFileError: the file is empty, not JSON, or holds another type.
        FileNotFoundError, ValueError, OSError: as `read_bytes`.
    """
    text = read_text(file, advice)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = f"it is not JSON: {error}" if text.strip() else "it is empty"
        raise DamagedFileError(f"{file} is damaged ({reason}). {advice}") from error
    if not isinstance(content, kind):
        held = _KINDS.get(type(content), repr(content)[:40])
        raise DamagedFileError(
            f"{file} is damaged (it holds {held}, expected {_KINDS[kind]}). {advice}"
        )
    return content


def read_records(file: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the complete records of a metrics file and the numbers of its damaged lines.

    A last line without a line end, as a killed process leaves it, counts as neither.

    Raises:
        FileNotFoundError, ValueError, OSError: as `read_bytes`.
    """
    *lines, rest = read_bytes(file).split(b"\n")
    records: list[dict[str, Any]] = []
    damaged: list[int] = []
    for number, line in enumerate(lines, start=1):
        record = _record(line)
        if record is None or (records and record["step"] < records[-1]["step"]):
            damaged.append(number)
        else:
            records.append(record)
    if b"\0" in rest:  # left by a loss of power: no process writes NULs
        damaged.append(len(lines) + 1)
    return records, damaged


def _record(line: bytes) -> dict[str, Any] | None:
    """Return the record of a line; None if it holds none."""
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    try:
        return record if _is_record(record) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def _is_record(record: Any) -> bool:
    if not isinstance(record, dict) or type(record.get("step")) is not int or record["step"] < 0:
        return False
    for value in record.values():
        numbers = value.values() if isinstance(value, dict) else (value,)
        if not all(is_number(number) for number in numbers):
            return False
        if not isinstance(value, dict) and not math.isfinite(value):
            return False
    return True


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[IO[bytes]]:
    """Open a stream whose content replaces the file once it is completely on the disk."""
    temporary = file.with_name(f"{file.name}.tmp")
    with temporary.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, file)
    with contextlib.suppress(OSError):  # some file systems cannot sync a directory
        directory = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def write_text(file: Path, text: str) -> None:
    """Write UTF-8, completely or not at all; a surrogate, as in an odd path, becomes '?'."""
    with replacing(file) as stream:
        stream.write(text.encode("utf-8", "replace"))


def write_json(file: Path, content: Any) -> None:
    """Write JSON, completely or not at all."""
    write_text(file, json.dumps(content, indent=2) + "\n")
