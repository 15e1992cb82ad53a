"""The identity of a run: its configuration, and the classes and sizes of its data.

A checkpoint holds both, as `notes` gives them, so that it never continues as another run.
"""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prelu_jax import files
from prelu_jax.data.sources import Split
from prelu_jax.training.config import RENAMED, TrainConfig

_DEFAULTS = dataclasses.asdict(TrainConfig())


def data_facts(train: Split, test: Split) -> dict[str, Any]:
    """Return class names and numbers of examples, which a checkpoint keeps."""
    return {
        "class_names": list(train.class_names),
        "train_examples": len(train),
        "test_examples": len(test),
    }


def to_fields(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Return the fields for config.json, with ``pretrained`` as a path from the run's folder.

    Both may then be moved together, or be reached by another path.
    """
    fields = dataclasses.asdict(config)
    if config.pretrained:
        fields["pretrained"] = os.path.relpath(config.pretrained, folder)
    return fields


def to_config(fields: Mapping[str, Any], folder: Path, name: str) -> TrainConfig:
    """Return the configuration that a run's folder holds; a field that it lacks is at its default.

    Args:
        fields: of config.json or of a checkpoint.
        folder: of the run.
        name: of the file, for the error.

    Raises:
        ValueError: a field is unknown, or its value is of another type.
    """
    fields = _with_present_names(fields)
    if unknown := sorted(set(fields) - set(_DEFAULTS)):
        raise ValueError(f"{name} has fields of another version of prelu_jax: {unknown}.")
    for field, value in fields.items():
        if not _is_like(value, _DEFAULTS[field]):
            raise ValueError(
                f"{name} is damaged: {field} is {value!r}, expected a value like "
                f"{_DEFAULTS[field]!r}. Put a copy of the file there."
            )
    config = TrainConfig(**fields)
    if config.pretrained:
        beside = Path(os.path.normpath(folder / config.pretrained))
        config.pretrained = str(beside if beside.exists() else config.pretrained)
    return config


def _with_present_names(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a run of an earlier version under the names of this one."""
    return {RENAMED.get(name, name): value for name, value in fields.items()}


def _is_like(value: Any, default: Any) -> bool:
    if isinstance(default, float):
        return files.is_number(value)
    return type(value) is type(default)


def check_config(
    asked: TrainConfig, folder: Path, sources: Mapping[str, Mapping[str, Any]]
) -> None:
    """Raise a ValueError that lists the fields if a folder holds a run of another configuration.

    Args:
        asked: the configuration.
        folder: of the run.
        sources: where the folder holds a configuration -> its fields.
    """
    ours = to_fields(asked, folder)
    places = _places(folder, [fields.get("pretrained", "") for fields in sources.values()])
    for source, fields in sources.items():
        # A field that an older version did not have is at its default, which changes nothing.
        theirs = {**_DEFAULTS, **_with_present_names(fields)}
        if unknown := sorted(set(theirs) - set(ours)):
            raise ValueError(
                f"{folder} was written by a newer version of prelu_jax: {', '.join(unknown)} in "
                f"its {source} is unknown here. Install that version, or choose another folder "
                "(--workdir)."
            )
        if asked.pretrained and not places.isdisjoint(_spellings(Path(asked.pretrained))):
            theirs["pretrained"] = ours["pretrained"]
        if _is_same_place(theirs["data_dir"], asked.data_dir):
            theirs["data_dir"] = asked.data_dir
        differing = [
            f"{key}: {theirs[key]!r} there, {ours[key]!r} asked"
            for key in sorted(ours)
            if theirs[key] != ours[key]
        ]
        if differing:
            raise ValueError(
                f"{folder} holds a run of another configuration, by its {source} "
                f"({'; '.join(differing)}). Give what it has, or choose another folder (--workdir)."
            )


def _is_same_place(path: Any, other: str) -> bool:
    if not (isinstance(path, str) and path and other):
        return bool(path == other)
    one, two = (os.path.realpath(os.path.expanduser(folder)) for folder in (path, other))
    return one == two


def _places(folder: Path, written: Iterable[Any]) -> set[str]:
    """Return the folders that a run's ``pretrained`` may mean.

    A relative path starts from the run's folder; in those of earlier versions, from the current
    directory of the command.
    """
    paths = [path for path in written if isinstance(path, str) and path]
    return {s for path in paths for start in (folder, Path()) for s in _spellings(start / path)}


def _spellings(path: Path) -> set[str]:
    """Return a path without its '..', as it is written and as its links lead."""
    return {os.path.abspath(path), os.path.realpath(os.path.abspath(path)), os.path.realpath(path)}


def check_data(folder: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raise a ValueError that names the differences if a run was trained on other data.

    Args:
        folder: of the run.
        theirs: `data_facts` of its checkpoint; empty if an earlier version wrote it.
        ours: of the data as they are now.
    """
    differing = [
        f"{name.replace('_', ' ')}: {theirs[name]} there, {ours[name]} now"
        for name in ("train_examples", "test_examples")
        if name in theirs and theirs[name] != ours[name]
    ]
    before, now = theirs.get("class_names", ours["class_names"]), ours["class_names"]
    if len(before) != len(now):
        lost, added = ([n for n in a if n not in b] for a, b in ((before, now), (now, before)))
        changes = [f"without {lost}"] * bool(lost) + [f"with {added}"] * bool(added)
        differing.append(f"{len(before)} classes there, {len(now)} now, {' and '.join(changes)}")
    differing += [
        f"class {label} is {name!r} there, {new!r} now"
        for label, (name, new) in enumerate(zip(before, now, strict=False))
        if name != new and len(before) == len(now)
    ][:5]
    if differing:
        raise ValueError(
            f"{folder} holds a run on other data ({'; '.join(differing)}). The dataset was "
            "prepared again since. Prepare it as it was, or choose another folder (--workdir)."
        )
