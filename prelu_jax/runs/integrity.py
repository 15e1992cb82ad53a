"""Checks of a checkpoint's files and arrays for damage."""

import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from prelu_jax import files

NOTES = "_CHECKPOINT_METADATA"  # Orbax's file of the notes


def remove_damaged_files(folder: Path) -> None:
    """Remove damaged test errors and notes: Orbax reads no checkpoint beside such a file.

    The arrays of the checkpoints are in other files.
    """
    for pattern, is_whole in (("*/metrics/metrics", _is_error), (f"*/{NOTES}", _are_notes)):
        for file in folder.glob(pattern):
            _remove_if_damaged(file, is_whole)


def _is_error(content: dict[str, Any]) -> bool:
    error: Any = content.get("test_error")
    return files.is_number(error) and math.isfinite(error)


def _are_notes(content: dict[str, Any]) -> bool:
    notes = content.get("custom_metadata") or {}
    kinds = {"format": int, "crc32": int, "config": dict, "data": dict, "odd_images": dict}
    return isinstance(notes, dict) and all(
        isinstance(notes[name], kind) for name, kind in kinds.items() if name in notes
    )


def _remove_if_damaged(file: Path, is_whole: Callable[[dict[str, Any]], bool]) -> None:
    try:
        content = files.read_json(file, dict, "It is removed.")
        if is_whole(content):
            return
        logging.warning("%s is damaged (%s). It is removed.", file, str(content)[:100])
    except files.DamagedFileError as error:
        logging.warning("%s", error)
    file.unlink()


def checksum(arrays: Any) -> int:
    """Return the CRC-32 of the bytes of all leaves, in the order of their paths."""
    crc = 0
    for leaf in jax.tree.leaves(arrays):
        crc = zlib.crc32(np.asarray(leaf).tobytes(), crc)
    return crc


def check_arrays(arrays: Any, notes: dict[str, Any]) -> None:
    """Raise a ValueError unless these are the arrays that were saved.

    TensorStore has checksums of its tables, not of all values: of 150 single bits flipped in the
    files of a small checkpoint, it did not notice 16.
    """
    if "crc32" in notes and checksum(arrays) != notes["crc32"]:
        raise ValueError("its arrays are not those that were saved")


def first_line(error: Exception) -> str:
    """Return the type and the first line of an error, at most 300 characters of it."""
    line = (str(error).strip().splitlines() or ["no message"])[0]
    # TensorStore lists every level of the call and all its options.
    return f"{type(error).__name__}: {line if len(line) < 300 else f'{line[:300]} …'}"
