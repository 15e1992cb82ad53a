"""Prepares a folder of images as a TFDS dataset, without TensorFlow.

    python -m prelu_jax.data.folder --images=DIR --name=NAME

The folder holds splits, the splits hold classes, the classes hold JPEG or PNG files:
``train/<class>/*.jpg``, ``test/<class>/*.jpg``. Files are stored as they are.
"""

import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import app, flags

from prelu_jax.data import decoding, sources

try:
    import tensorflow_datasets as tfds
except ImportError as error:
    raise SystemExit(f"error: {sources.NEEDS_TFDS} ({error})") from error

_SUFFIXES = (".jpg", ".jpeg", ".png")

Files = dict[str, dict[str, list[Path]]]  # split -> class -> files


def find_images(folder: Path) -> Files:
    """The image files of every split and class.

    Hidden folders and files, those whose names begin with a dot, are left out.

    Raises:
        ValueError: the folder is missing, has no train split or no images; a class of train has
            no images; images lie in folders within a class's; another split has a class that train
            lacks.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder.")
    if not (folder / "train").is_dir():
        count = len(_visible(folder, False))
        names = ", ".join(path.name for path in _visible(folder)) or f"no folder and {count} files"
        within = [path for path in _visible(folder) if (path / "train").is_dir()]
        hint = f" It seems to be {within[0]}." if within else ""
        raise ValueError(f"{folder} holds {names}, expected a folder train/<class>/*.jpg.{hint}")
    files: Files = {}
    for split in _visible(folder):
        classes = {
            label.name: [p for p in _visible(label, False) if p.suffix.lower() in _SUFFIXES]
            for label in _visible(split)
        }
        files[split.name] = classes
        if not any(classes.values()):
            raise ValueError(
                f"{split} holds no image: expected <class>/*{{{','.join(_SUFFIXES)}}}."
            )
    empty = [name for name, images in files["train"].items() if not images]
    if empty:
        raise ValueError(
            f"Classes of 'train' hold no image of their own: {empty}. Images lie in the class's "
            "folder itself, not in folders within; remove a folder that is no class."
        )
    nested = [
        path
        for split in _visible(folder)
        for label in _visible(split)
        for within in _visible(label)
        for path in within.rglob("*")
        if path.suffix.lower() in _SUFFIXES
    ]
    if nested:
        raise ValueError(
            f"{len(nested)} images lie in folders within a class's, the first is {nested[0]}. Move "
            "them into the class's folder itself, or away."
        )
    for split_name, classes in files.items():
        unknown = sorted(set(classes) - set(files["train"]))
        if unknown:
            raise ValueError(f"Split {split_name!r} has classes that 'train' lacks: {unknown}.")
    return files


def ignored(folder: Path) -> dict[str, int]:
    """How many files lie among the images that are none by their suffix, by suffix."""
    classes = (label for split in _visible(folder) for label in _visible(split))
    suffixes = (path.suffix.lower() for label in classes for path in _visible(label, False))
    return dict(sorted(Counter(s for s in suffixes if s not in _SUFFIXES).items()))


def _visible(folder: Path, folders: bool = True) -> list[Path]:
    """What a folder holds, by name: its folders, or its files."""
    entries = (path for path in folder.iterdir() if path.is_dir() == folders)
    return sorted(path for path in entries if not path.name.startswith("."))


class FolderOfImages(
    tfds.core.GeneratorBasedBuilder,
    skip_registration=True,  # type: ignore[call-arg]
):
    """The TFDS builder of one folder."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, files: Files, data_dir: Path, skip_bad_images: bool) -> None:
        self.files = files
        self.skip_bad_images = skip_bad_images
        self.bad_images: list[str] = []
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=sorted(self.files["train"])),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, sources.Record]]]:
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(classes) for split, classes in self.files.items()}

    def _generate_examples(
        self, classes: dict[str, list[Path]]
    ) -> Iterator[tuple[str, sources.Record]]:
        for label, paths in classes.items():
            for path in paths:
                image = path.read_bytes()
                try:
                    decoding.decode({"image": image, "key": str(path)})
                except decoding.BadImageError as error:
                    if not self.skip_bad_images:
                        raise ValueError(
                            f"{path} does not decode. Mend or remove it, or pass "
                            "--on_bad_image=skip to leave such files out."
                        ) from error
                    self.bad_images.append(str(path))
                    continue
                key = f"{label}/{path.name}"
                yield key, {"image": image, "label": label, "file_name": key}


def prepare(
    images: Path, name: str, data_dir: str = "", skip_bad_images: bool = False
) -> FolderOfImages:
    """Writes the folder as dataset ``name`` under TFDS's folder and returns its builder.

    Raises:
        ValueError: see `find_images`; an image that does not decode; a name that TFDS refuses or
            that is taken.
    """
    if not (name.isidentifier() and name == name.lower()) or name == sources.DIGITS:
        raise ValueError(
            f"Dataset name {name!r}: expected lower-case letters, digits, underscores, and not "
            f"{sources.DIGITS!r}, which is the embedded set."
        )
    files = find_images(images)
    # TFDS takes a dataset's name from its class.
    builder_class = types.new_class(
        name, (FolderOfImages,), {"skip_registration": True}, lambda body: body.update(name=name)
    )
    builder = builder_class(
        files=files, data_dir=sources.tfds_folder(data_dir), skip_bad_images=skip_bad_images
    )
    if builder.data_path.exists():  # TFDS would keep what is there, and say nothing
        raise ValueError(
            f"{builder.data_path} holds a dataset of that name already. Remove it, or choose "
            "another --name."
        )
    builder.download_and_prepare()
    return builder


_IMAGES = flags.DEFINE_string(
    "images", None, "Folder that holds train/<class>/*.jpg.", required=True
)
_NAME = flags.DEFINE_string("name", None, "Name of the dataset to write.", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", "", "TFDS's folder; by default its own default.")
_ON_BAD_IMAGE = flags.DEFINE_enum(
    "on_bad_image", "fail", ["fail", "skip"], "What to do with a file that does not decode."
)


def main(argv: list[str]) -> None:
    """The command; see the module."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    try:
        builder = prepare(
            Path(_IMAGES.value), _NAME.value, _DATA_DIR.value, _ON_BAD_IMAGE.value == "skip"
        )
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    for split, info in builder.info.splits.items():
        print(f"{_NAME.value}/{split}: {info.num_examples} images")
    for suffix, count in ignored(Path(_IMAGES.value)).items():
        print(f"left out, named {suffix or 'without a suffix'}: {count}")
    print(f"left out, not decodable: {len(builder.bad_images)}")
    for path in builder.bad_images:
        print(f"  {path}")
    print(f"written to {builder.data_path}")


if __name__ == "__main__":
    app.run(main)
