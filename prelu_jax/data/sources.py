"""Sources of labelled images: the embedded digits, or any prepared TFDS dataset.

A split is a random-access sequence of records ``{'image', 'label', 'key'}``. The image is encoded
(JPEG, PNG, …) or an array; `decoding.decode` turns both into RGB. TensorFlow is not needed, because
TFDS reads the array_record format without it.
"""

import dataclasses
import functools
import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from prelu_jax import extras, files, names

with extras.needed(__name__, "train"):
    import cv2

DIGITS = "digits"
_DIGITS_TRAIN = 1500  # of 1,797; the other 297 are the test split
_DIGITS_SIDE = 32

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a dataset; ``split[i]`` is its i-th record.

    Attributes:
        records: a random-access sequence of records.
        class_names: the name of each label, in the order of the labels.
    """

    records: Sequence[Record]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: SupportsIndex) -> Record:
        return self.records[int(index)]

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """Every record's label ``[n]``; reads each record once."""
        return np.array([self[i]["label"] for i in range(len(self))])


@functools.lru_cache(maxsize=8)
def load(dataset: str, split: str, data_dir: str = "") -> Split:
    """Return a split of a dataset.

    Args:
        dataset: 'digits', or the name of a TFDS dataset prepared under ``data_dir``.
        split: in TFDS's syntax: 'train', 'validation', 'train[:50%]', 'train+test'.
        data_dir: TFDS's folder; empty for ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.

    Raises:
        ValueError: no such dataset is prepared (the error lists those that are, and how to prepare
            one), it has no such split or no labelled images, or the split is empty.
        ImportError: the dataset needs a package that is not installed.
    """
    if dataset == DIGITS:
        names.check("split of digits", split, ("train", "test"))
        return _digits(split)
    return _tfds(dataset, split, version_folder(dataset, data_dir))


def subset(split: Split, classes: str = "", examples_per_class: int = 0, seed: int = 0) -> Split:
    """Return a view of some classes of a split, or of a few examples of each.

    Args:
        split: a split of any dataset; its records are read once for their labels.
        classes: labels, '0-4' or '0,2,7' or both mixed, renumbered from 0 in the listed order;
            empty for all.
        examples_per_class: number of examples of each class; 0 for all. With the same seed, a
            larger number adds examples to those of a smaller one, and the examples of one class do
            not depend on the other classes.
        seed: determines the examples.

    Raises:
        ValueError: ``classes`` does not parse, or names a class twice or a missing one; or a class
            has no examples, or fewer than ``examples_per_class``.
    """
    if not classes and not examples_per_class:
        return split
    chosen = _parse_classes(classes, len(split.class_names))
    indices = []
    for label in chosen:
        of_class = np.flatnonzero(split.labels == label)
        if len(of_class) < max(1, examples_per_class):
            raise ValueError(
                f"Class {label} ({split.class_names[label]}) has {len(of_class)} examples, "
                f"expected {examples_per_class or 'at least 1'}."
            )
        if examples_per_class:
            order = np.random.default_rng([seed, label]).permutation(of_class)
            of_class = np.sort(order[:examples_per_class])
        indices.append(of_class)
    renumbered = {label: new for new, label in enumerate(chosen)}
    records = _Chosen(split.records, np.sort(np.concatenate(indices)), renumbered)
    return Split(records, tuple(split.class_names[label] for label in chosen))


def _parse_classes(classes: str, count: int) -> tuple[int, ...]:
    """Return the labels in a list like '0-4,7'; all of ``count`` if it is empty."""
    if not classes:
        return tuple(range(count))
    labels: list[int] = []
    for part in classes.split(","):
        ends = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        listed = range(int(ends[1]), int(ends[2] or ends[1]) + 1) if ends else range(0)
        if not listed or listed[-1] >= count or not set(labels).isdisjoint(listed):
            raise ValueError(
                f"Classes {classes!r}, at {part!r}: expected labels from 0 to {count - 1}, each "
                "once, as in '0-4' or '0,2,7'."
            )
        labels.extend(listed)
    return tuple(labels)


@dataclasses.dataclass(frozen=True)
class _Chosen(Sequence[Record]):
    """Selected records of a sequence, with renumbered labels."""

    records: Sequence[Record]
    indices: np.ndarray
    renumbered: dict[int, int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        record = self.records[int(self.indices[index])]
        return {**record, "label": self.renumbered[record["label"]]}


def _digits(split: str) -> Split:
    images, labels = digits_table()
    chosen = np.random.default_rng(0).permutation(len(images))
    chosen = chosen[:_DIGITS_TRAIN] if split == "train" else chosen[_DIGITS_TRAIN:]
    records = [
        {
            "image": _enlarge(images[i]),
            "label": int(labels[i]),
            "key": f"load_digits()[{i}]",
        }
        for i in chosen
    ]
    return Split(records, tuple(str(n) for n in range(10)))


def digits_table() -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's `load_digits()`: images ``[n, 8, 8]`` in 0..16, labels ``[n]``."""
    # Read without importing scikit-learn, which would take a fifth of a run's start.
    extras.require("dataset 'digits'", "train", "sklearn")
    package: Any = importlib.util.find_spec("sklearn")
    table = Path(package.origin).with_name("datasets") / "data" / "digits.csv.gz"
    numbers = np.loadtxt(table, delimiter=",")
    return numbers[:, :-1].reshape(-1, 8, 8), numbers[:, -1].astype(int)


def _enlarge(digit: np.ndarray) -> np.ndarray:
    """Return an 8×8 digit with values 0..16 as RGB uint8 ``[32, 32, 3]``."""
    side = (_DIGITS_SIDE, _DIGITS_SIDE)
    grey = cv2.resize((digit * (255 / 16)).astype(np.float32), side, interpolation=cv2.INTER_CUBIC)
    grey = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


@dataclasses.dataclass(frozen=True)
class _TfdsRecords(Sequence[Record]):
    """A TFDS data source whose images stay encoded, with a key added to every record."""

    name: str
    folder: Path
    source: Any

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: Any) -> Any:
        record = self._read(int(index))
        file_name = record.get("file_name", b"")
        return {
            "image": record["image"],
            "label": int(record["label"]),
            "key": file_name.decode() or f"{self.name}[{int(index)}]",
        }

    def _read(self, index: int) -> Record:
        try:
            record = dict(self.source[index])
        except (RuntimeError, OSError) as error:  # raised by array_record
            reason = f"{error}"
        else:
            if record.get("label") is not None:  # else after the end of a truncated file
                return record
            reason = "the file is truncated"
        raise ValueError(
            f"{self.name}[{index}] cannot be read ({reason}). The dataset's files in {self.folder} "
            "are damaged: remove the folder and prepare it again."
        )


def tfds_folder(data_dir: str) -> Path:
    """Return the folder that holds prepared datasets; see `load`.

    Raises:
        ValueError: it is the address of a bucket, or the user has no home folder.
    """
    if given := data_dir or os.environ.get("TFDS_DATA_DIR"):
        return files.local_path(given, "data_dir" if data_dir else "$TFDS_DATA_DIR")
    try:
        return Path.home() / "tensorflow_datasets"
    except RuntimeError as error:  # neither $HOME nor an entry in passwd
        raise ValueError(
            "TFDS keeps datasets in ~/tensorflow_datasets, but the user has no home folder. "
            "Give --config.data_dir=DIR to an experiment, --data_dir=DIR to prelu_jax.data.*, or "
            "TFDS_DATA_DIR=DIR in the environment."
        ) from error


def _prepared(folder: Path) -> dict[str, Path]:
    """Map every prepared dataset, 'name' or 'name/config', to its newest version's folder."""
    newest: dict[str, tuple[tuple[int, ...], Path]] = {}
    for depth in ("*/*", "*/*/*"):
        for file in folder.glob(f"{depth}/dataset_info.json"):
            path = file.parent
            if re.fullmatch(r"\d+\.\d+\.\d+", path.name):  # else TFDS is still writing it
                name = path.parent.relative_to(folder).as_posix()
                version = tuple(map(int, path.name.split(".")))
                newest[name] = max(newest.get(name, ((), path)), (version, path))
    return {name: path for name, (_, path) in sorted(newest.items())}


def version_folder(dataset: str, data_dir: str = "") -> Path:
    """Return the folder of the newest version of a prepared TFDS dataset.

    Raises:
        ValueError: no such dataset is prepared (see `load`), or it is the embedded dataset.
    """
    if dataset == DIGITS:
        raise ValueError(
            f"{DIGITS!r} is the embedded dataset and has no folder; choose a prepared one."
        )
    folder = tfds_folder(data_dir)
    prepared = _prepared(folder)
    flag = f" --data_dir={data_dir}" if data_dir else ""
    try:
        names.check("dataset", dataset, (DIGITS, *prepared))
    except ValueError as error:
        raise ValueError(
            f"{error} TFDS datasets are looked for in {folder}. To prepare one: `python -m "
            f"prelu_jax.data.folder --images=DIR --name={dataset}{flag}` for a folder of images, "
            f"or, with TensorFlow installed, `tfds build {dataset} --file_format=array_record"
            f"{flag}`; then, if it is large, `python -m prelu_jax.data.statistics --dataset="
            f"{dataset}{flag}` for its mean image."
        ) from None
    return prepared[dataset]


def _tfds(dataset: str, split: str, folder: Path) -> Split:
    with extras.needed(f"dataset {dataset!r}", "data"):
        import tensorflow_datasets as tfds
    # Built from its files, not by name, because TFDS may know another dataset of that name.
    builder = tfds.builder_from_directory(folder)
    features = dict(builder.info.features.items())
    if "image" not in features or not hasattr(features.get("label"), "names"):
        raise ValueError(
            f"Dataset {dataset!r} has features {list(features)}, expected 'image', 'label'."
        )
    for part in split.split("+"):
        names.check(f"split of {dataset}", part.partition("[")[0], (*builder.info.splits, "all"))
    try:
        # TFDS makes no source of an empty slice, and a broken one if its end precedes its start.
        if builder.info.splits[split].num_examples < 1:
            raise ValueError(
                "it holds no image. Choose another part of it, or prepare the dataset again."
            )
        source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError as error:  # another file format
        raise ValueError(
            f"Dataset {dataset!r} in {folder} is not stored as array_record, the format "
            f"that needs no TensorFlow. Prepare it again: `tfds build {dataset} "
            "--file_format=array_record`."
        ) from error
    except ValueError as error:
        raise ValueError(f"Split {split!r} of dataset {dataset!r}: {error}") from error
    records = _TfdsRecords(f"{dataset}/{split}", folder, source)
    return Split(records, tuple(features["label"].names))
