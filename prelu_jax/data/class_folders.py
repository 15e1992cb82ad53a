"""The images in folders ``<split>/<class>/*.jpg``, and checks of names and files.

Names are shown as they are if they can be printed, else with escapes.
"""

import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from prelu_jax.data import decoding

SUFFIXES = (".jpg", ".jpeg", ".png")
_NAMED = 5  # of many that are bad
_KINDS = {stat.S_IFDIR: "folder", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}

Files = dict[str, dict[str, list[Path]]]  # split -> class -> files


def find_images(folder: Path) -> Files:
    """Return the image files of every split and class.

    Hidden folders and files, those whose names begin with a dot, are left out.

    Raises:
        ValueError: the folder is missing, has no train split or no images; a class of train has
            no images; images lie in other places than classes' folders; another split has a class
            that train lacks; a name of a split or class cannot be read back from a dataset; a
            folder cannot be read, or a link leads nowhere.
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
                f"{shown(split)} holds no image: expected <class>/*{{{','.join(SUFFIXES)}}}."
                f"{_level(folder)}"
            )
    for split in splits:
        _check_classes(_folders(split))
    _check_forms(label for classes in files.values() for label in classes)
    empty = [name for name, images in files["train"].items() if not images]
    if empty:
        raise ValueError(
            f"Classes of 'train' hold no image of their own: {empty}. Images lie in the class's "
            "folder itself, not in folders within; remove a folder that is no class."
        )
    _check_places(splits)
    for split_name, classes in files.items():
        unknown = sorted(set(classes) - set(files["train"]))
        if unknown:
            raise ValueError(
                f"Split {split_name!r} has classes that 'train' lacks: {unknown}. Those of 'train' "
                f"are {first_of([repr(name) for name in files['train']], ', ')}."
            )
    return files


def ignored(folder: Path) -> dict[str, int]:
    """Return how many files among the images are none by their suffix, by suffix."""
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
            return f"is no file but a {_KINDS.get(stat.S_IFMT(mode), 'device')}"
        decoding.decode({"image": path.read_bytes(), "key": ""}, max_pixels=max_pixels)
    except decoding.TooManyPixelsError as error:
        return error.reason
    except decoding.BadImageError:
        return "does not decode"
    except OSError as error:
        if path.is_symlink():
            return f"is a link that leads to no file ({error.strerror})"
        return f"cannot be read ({error.strerror})"
    return None


def shown(path: Path | str) -> str:
    """Return a path for a message: as it is, or quoted with escapes if it cannot be printed."""
    return str(path) if str(path).isprintable() else repr(str(path))


def is_utf8(name: str) -> bool:
    """Return whether a name can be encoded; one of other bytes holds surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def first_of(items: list[str], separator: str) -> str:
    """Return the first few of some items and the count of the others."""
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
                f"{shown(path)} leads to no split or class ({error.strerror}). Repair or remove it."
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
    """Return a hint where another folder, above or below, seems to be the one with the splits."""
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
    """Refuse a name that TFDS refuses or takes for something else when the dataset is read."""
    name = split.name
    if not re.fullmatch(r"[\w-]*[^\W_][\w-]*", name) or name.lower() == "all":
        raise ValueError(
            f"Split {name!r} of {shown(split.parent)} could not be read back: expected letters, "
            "digits, '_' and '-' in its name, and not 'all', which stands for every split. Rename "
            "it."
        )


def _check_classes(folders: Iterable[Path]) -> None:
    """Refuse names that a list of class names, one in a line, does not keep."""
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
    """Refuse classes that share a name: the same text in two forms of Unicode."""
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
    """Refuse images that lie beside the folders of classes or in folders within them."""
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
        (beside, "beside the folders of classes"),
        (within, "in folders within a class's"),
    ):
        images = [path for path in paths if path.suffix.lower() in SUFFIXES]
        if images:
            raise ValueError(
                f"{len(images)} images lie {where}, the first is {shown(images[0])}. Move them "
                "into a class's folder itself, or away."
            )


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder; links to folders are not followed."""

    def refuse(error: OSError) -> None:
        raise ValueError(f"{shown(error.filename)} cannot be read: {error.strerror}.") from error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders.sort()
        yield from (Path(parent, name) for name in sorted(names))
