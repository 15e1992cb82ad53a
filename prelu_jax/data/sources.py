"""Where labelled images come from: the embedded digits, or any prepared TFDS dataset.

A split is a random-access sequence of records ``{'image', 'label', 'key'}``. The image is either
encoded (JPEG, PNG, …) or already an array; `decoding.decode` turns both into RGB. TensorFlow is not
needed: TFDS reads the array_record format without it.
"""

import dataclasses
import functools
import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import cv2
import numpy as np

from prelu_jax import files, names

DIGITS = "digits"
NEEDS_TFDS = (
    "Datasets other than digits need TensorFlow Datasets; install it with `pip install "
    "'prelu_jax[data]'`, or `pip install -e '.[data]'` in a clone. TensorFlow itself is not needed."
)
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
    """The split of a dataset.

    Args:
        dataset: 'digits', or the name of a TFDS dataset prepared under ``data_dir``.
        split: in TFDS's syntax: 'train', 'validation', 'train[:50%]', 'train+test'.
        data_dir: TFDS's folder; empty for ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.

    Raises:
        ValueError: no such dataset is prepared (the error says what is, and how to prepare one),
            or it has no such split, no labelled images, or none in the split.
        ImportError: TensorFlow Datasets is not installed.
    """
    if dataset == DIGITS:
        names.check("split of digits", split, ("train", "test"))
        return _digits(split)
    return _tfds(dataset, split, version_folder(dataset, data_dir))


def subset(split: Split, classes: str = "", examples_per_class: int = 0, seed: int = 0) -> Split:
    """A view on some classes of a split, or on a few examples of each.

    Args:
        split: of any dataset; its records are read once for their labels.
        classes: labels, '0-4' or '0,2,7' or both mixed, renumbered from 0 on as they are listed;
            empty for all.
        examples_per_class: how many of each class; 0 for all. More of them, of the same seed,
            include fewer, and a class's do not depend on the other classes.
        seed: chooses the examples.

    Raises:
        ValueError: ``classes`` does not parse, names a class twice or one that is not there; or a
            class has no example, or fewer than asked for.
    """
    if not classes and not examples_per_class:
        return split
    chosen = _parse_classes(classes, len(split.class_names))
    indices = []
    for label in chosen:
        found = np.flatnonzero(split.labels == label)
        if len(found) < max(1, examples_per_class):
            raise ValueError(
                f"Class {label} ({split.class_names[label]}) has {len(found)} examples, "
                f"{examples_per_class or 'at least 1'} asked for."
            )
        if examples_per_class:
            order = np.random.default_rng([seed, label]).permutation(found)
            found = np.sort(order[:examples_per_class])
        indices.append(found)
    renumbered = {label: new for new, label in enumerate(chosen)}
    records = _Chosen(split.records, np.sort(np.concatenate(indices)), renumbered)
    return Split(records, tuple(split.class_names[label] for label in chosen))


def _parse_classes(classes: str, count: int) -> tuple[int, ...]:
    """The labels that '0-4,7' lists; all of ``count`` if it is empty."""
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
    """Some records of a sequence, their labels renumbered."""

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
    """scikit-learn's `load_digits()`: images ``[n, 8, 8]`` with values 0..16, labels ``[n]``.

    Read without scikit-learn, which takes as long to import as JAX: a fifth of a run's start.
    """
    package: Any = importlib.util.find_spec("sklearn")
    table = Path(package.origin).with_name("datasets") / "data" / "digits.csv.gz"
    numbers = np.loadtxt(table, delimiter=",")
    return numbers[:, :-1].reshape(-1, 8, 8), numbers[:, -1].astype(int)


def _enlarge(digit: np.ndarray) -> np.ndarray:
    """An 8×8 digit with values 0..16 as RGB uint8 ``[32, 32, 3]``."""
    side = (_DIGITS_SIDE, _DIGITS_SIDE)
    grey = cv2.resize((digit * (255 / 16)).astype(np.float32), side, interpolation=cv2.INTER_CUBIC)
    grey = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


@dataclasses.dataclass(frozen=True)
class _TfdsRecords(Sequence[Record]):
    """A TFDS data source with every record's image left encoded and its key added."""

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
        except (RuntimeError, OSError) as error:  # of array_record
            reason = f"{error}"
        else:
            if record.get("label") is not None:  # past the end of a file that is cut short
                return record
            reason = "it is cut short"
        raise ValueError(
            f"{self.name}[{index}] cannot be read ({reason}). The dataset's files in {self.folder} "
            "are damaged: remove the folder and prepare it again."
        )


def tfds_folder(data_dir: str) -> Path:
    """Return the folder that holds prepared datasets; see `load`.

    Raises:
        ValueError: it is the address of a bucket, or would be in a home folder that is not there.
    """
    if given := data_dir or os.environ.get("TFDS_DATA_DIR"):
        return files.local_path(given, "data_dir" if data_dir else "$TFDS_DATA_DIR")
    try:
        return Path.home() / "tensorflow_datasets"
    except RuntimeError as error:  # neither $HOME nor an entry in passwd
        raise ValueError(
            "TFDS's datasets are looked for in ~/tensorflow_datasets, but this user has no home "
            "folder. Give their folder: --config.data_dir=DIR of an experiment, --data_dir=DIR of "
            "prelu_jax.data.*, or TFDS_DATA_DIR=DIR in the environment."
        ) from error


def _prepared(folder: Path) -> dict[str, Path]:
    """Every prepared dataset under TFDS's folder: 'name' or 'name/config' -> newest version."""
    found: dict[str, tuple[tuple[int, ...], Path]] = {}
    for depth in ("*/*", "*/*/*"):
        for file in folder.glob(f"{depth}/dataset_info.json"):
            path = file.parent
            if re.fullmatch(r"\d+\.\d+\.\d+", path.name):  # else TFDS is still writing it
                name = path.parent.relative_to(folder).as_posix()
                version = tuple(map(int, path.name.split(".")))
                found[name] = max(found.get(name, ((), path)), (version, path))
    return {name: path for name, (_, path) in sorted(found.items())}


def version_folder(dataset: str, data_dir: str = "") -> Path:
    """The folder of a prepared TFDS dataset's newest version.

    Raises:
        ValueError: no such dataset is prepared (see `load`), or it is the embedded one.
    """
    if dataset == DIGITS:
        raise ValueError(
            f"{DIGITS!r} is embedded, not prepared: it has no folder to keep things in."
        )
    folder = tfds_folder(data_dir)
    prepared = _prepared(folder)
    there = f" --data_dir={data_dir}" if data_dir else ""
    try:
        names.check("dataset", dataset, (DIGITS, *prepared))
    except ValueError as error:
        raise ValueError(
            f"{error} TFDS datasets are looked for in {folder}. To prepare one: `python -m "
            f"prelu_jax.data.folder --images=DIR --name={dataset}{there}` for a folder of images, "
            f"or, with TensorFlow installed, `tfds build {dataset} --file_format=array_record"
            f"{there}`; then, if it is large, `python -m prelu_jax.data.statistics --dataset="
            f"{dataset}{there}` for its mean image."
        ) from None
    return prepared[dataset]


def _tfds(dataset: str, split: str, folder: Path) -> Split:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(f"{NEEDS_TFDS} ({error})") from error
    # From its files, not by its name: TFDS may know another dataset of that name.
    builder = tfds.builder_from_directory(folder)
    features = dict(builder.info.features.items())
    if "image" not in features or not hasattr(features.get("label"), "names"):
        raise ValueError(
            f"Dataset {dataset!r} has features {list(features)}, expected 'image', 'label'."
        )
    for part in split.split("+"):
        names.check(f"split of {dataset}", part.partition("[")[0], (*builder.info.splits, "all"))
    try:
        # Of an empty slice TFDS makes no source; of one that ends before it begins, a broken one.
        if builder.info.splits[split].num_examples < 1:
            raise ValueError(
                "it holds no image. Ask for another part of it, or prepare the dataset again."
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
