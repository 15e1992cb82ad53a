"""Images in folders ``<split>/<class>/*.jpg``, with checks of their names and files."""

import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from prelu_jax.data import decoding

SUFFIXES = (".jpg", ".jpeg", ".png")
_NAMED = 5  # items that a message names; it counts the others
_KINDS = {stat.S_IFDIR: "folder", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}

Files = dict[str, dict[str, list[Path]]]  # split -> class -> files


def find_images(folder: Path) -> Files:
    """Return the image files of every split and class.

    Hidden folders and files, those whose names begin with a dot, are left out.

    Raises:
        ValueError: the folder is missing, has no train split or no images; a class of train has
            no images; an image is not in a class folder; another split has a class that train
            lacks; the name of a split or class could not be read back from a dataset; a folder
            cannot be read, or a link is broken.
    """
    if not folder.is_dir():
        raise ValueError(f"{shown(folder)} is not a folder.")
    if not (folder / "train").is_dir():
        raise ValueError(_without_train(folder))
    splits = _folders(folder)
    files: Files = {}
    for split in splits:
        _check_split(split)
        files[split.name] = {
            label.name: [path for path in _entries(label) if path.suffix.lower() in SUFFIXES]
            for label in _folders(split)
        }
        if not any(files[split.name].values()):
            raise ValueError(
                f"{shown(split)} holds no images: expected <class>/*{{{','.join(SUFFIXES)}}}."
                f"{_level(folder)}"
            )
    for split in splits:
        _check_classes(_folders(split))
    _check_forms(label for classes in files.values() for label in classes)
    empty = [name for name, images in files["train"].items() if not images]
    if empty:
        raise ValueError(
            f"Classes of 'train' without images: {empty}. Put images directly into the class's "
            "folder, not into subfolders; remove a folder that is not a class."
        )
    _check_places(splits)
    for split_name, classes in files.items():
        unknown = sorted(set(classes) - set(files["train"]))
        if unknown:
            raise ValueError(
                f"Split {split_name!r} has classes that 'train' lacks: {unknown}. The classes of "
                f"'train' are {first_of([repr(name) for name in files['train']], ', ')}."
            )
    return files


def ignored(folder: Path) -> dict[str, int]:
    """Count by suffix the files in class folders that are not images by their suffix."""
    classes = (label for split in _folders(folder) for label in _folders(split))
    paths = (path for label in classes for path in _entries(label) if not path.is_dir())
    suffixes = (path.suffix.lower() for path in paths)
    return dict(sorted(Counter(shown(s) for s in suffixes if s not in SUFFIXES).items()))


def problem(path: Path, max_pixels: int) -> str | None:
    """Return why a file cannot be imported, as a clause that follows its name; None if it can."""
    if not is_utf8(path.name):
        return "has a name that is not UTF-8"
    try:
        mode = path.stat().st_mode  # a FIFO blocks whoever opens it
        if not stat.S_ISREG(mode):
            return f"is a {_KINDS.get(stat.S_IFMT(mode), 'device')}, not a file"
        decoding.decode({"image": path.read_bytes(), "key": ""}, max_pixels=max_pixels)
    except decoding.TooManyPixelsError as error:
        return error.reason
    except decoding.BadImageError:
        return "does not decode"
    except OSError as error:
        if path.is_symlink():
            return f"is a broken link ({error.strerror})"
        return f"cannot be read ({error.strerror})"
    return None


def shown(path: Path | str) -> str:
    """Return a path for a message: unchanged, or quoted with escapes if it is not printable."""
    return str(path) if str(path).isprintable() else repr(str(path))


def is_utf8(name: str) -> bool:
    """Return whether a name is valid UTF-8; a name of other bytes holds surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def first_of(items: list[str], separator: str) -> str:
    """Return the first few items, joined, and the number of the others."""
    rest = [f"and {len(items) - _NAMED} more"] if len(items) > _NAMED else []
    return separator.join([*items[:_NAMED], *rest])


def _entries(folder: Path) -> list[Path]:
    """Return the visible entries of a folder, by name."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise ValueError(f"{shown(folder)} cannot be read: {error.strerror}.") from error


def _folders(folder: Path) -> list[Path]:
    """Return the visible folders in a folder of splits or of classes, by name."""
    entries = _entries(folder)
    for path in entries:
        try:
            path.stat()
        except OSError as error:
            raise ValueError(
                f"{shown(path)} is a broken link ({error.strerror}). Repair or remove it."
            ) from error
    return [path for path in entries if path.is_dir()]


def _without_train(folder: Path) -> str:
    """Return the message for a folder without a train split."""
    entries = _entries(folder)
    folders = [path for path in entries if path.is_dir()]
    holds = first_of([shown(path.name) for path in folders], ", ")
    holds = holds or f"no folder and {len(entries)} files"
    return f"{shown(folder)} holds {holds}, expected a folder train/<class>/*.jpg.{_level(folder)}"


def _level(folder: Path) -> str:
    """Return a hint if another folder, above or below, seems to hold the splits."""
    for path in _entries(folder):
        if path.name.lower() == "train":
            return f" Rename {shown(path)} to 'train'."
    below = [path for path in _entries(folder) if (path / "train").is_dir()]
    above = [path for path in folder.absolute().parents[:2] if (path / "train").is_dir()]
    if below or above:
        return f" It seems to be {shown((below or above)[0])}."
    classes = [path for path in _entries(folder) if path.is_dir() and _has_images(path)]
    if classes and not (folder / "train").is_dir():
        return f" If these are the classes, move them into {shown(folder / 'train')}."
    return ""


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in SUFFIXES for path in _entries(folder))


def _check_split(split: Path) -> None:
    """Raise a ValueError for a name that TFDS rejects or would read as something else."""
    name = split.name
    if not re.fullmatch(r"[\w-]*[^\W_][\w-]*", name) or name.lower() == "all":
        raise ValueError(
            f"Split {name!r} of {shown(split.parent)} could not be read back: expected letters, "
            "digits, '_' and '-' in its name, and not 'all', which means every split. Rename it."
        )


def _check_classes(folders: Iterable[Path]) -> None:
    """Raise a ValueError for names that cannot be stored as a list with one name per line."""
    for path in folders:
        name = path.name
        if not is_utf8(name):
            wrong = "is not UTF-8"
        elif any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in name):
            wrong = "has line breaks or control characters"
        elif name != name.strip():
            wrong = "begins or ends with a space"
        else:
            continue
        raise ValueError(
            f"Class {name!r} of {shown(path.parent)} {wrong}: it could not be read back from the "
            "dataset. Rename its folder."
        )


def _check_forms(names: Iterable[str]) -> None:
    """Raise a ValueError if two class names are the same text in two forms of Unicode."""
    by_form: dict[str, str] = {}
    for name in names:
        other = by_form.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            raise ValueError(
                f"Classes {other!a} and {name!a} are one name, {other!r}, in two "
                "Unicode forms (composed, NFC, and decomposed, NFD). Give their folders the same "
                "name in every split, or merge them."
            )


def _check_places(splits: list[Path]) -> None:
    """Raise a ValueError for images next to the class folders or in folders inside them."""
    labels = [label for split in splits for label in _folders(split)]
    beside = [path for split in splits for path in _entries(split) if not path.is_dir()]
    within = [
        path
        for label in labels
        for entry in _entries(label)
        if entry.is_dir()
        for path in _files_below(entry)
    ]
    for paths, where in (
        (beside, "next to the class folders"),
        (within, "in subfolders of class folders"),
    ):
        images = [path for path in paths if path.suffix.lower() in SUFFIXES]
        if images:
            raise ValueError(
                f"{len(images)} images are {where}, the first is {shown(images[0])}. Move them "
                "directly into a class folder, or away."
            )


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder; links to folders are not followed."""

    def refuse(error: OSError) -> None:
        raise ValueError(f"{shown(error.filename)} cannot be read: {error.strerror}.") from error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders.sort()
        yield from (Path(parent, name) for name in sorted(names))
