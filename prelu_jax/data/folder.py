"""Command that prepares a folder of images as a TFDS dataset, without TensorFlow.

    python -m prelu_jax.data.folder --images=DIR --name=NAME

The folder holds splits, the splits hold classes, the classes hold JPEG or PNG files:
``train/<class>/*.jpg``, ``test/<class>/*.jpg``. Files are stored unchanged.
"""

import re
import shlex
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from absl import app, flags

from prelu_jax import entry, extras
from prelu_jax.data import MAX_PIXELS, class_folders, sources
from prelu_jax.data.class_folders import Files, find_images, ignored, shown
from prelu_jax.files import local_path

if __name__ == "__main__":
    entry.answer_help()  # before the slow import of TFDS
    extras.check_command("prelu_jax.data.folder", "data", "tensorflow_datasets")
with extras.needed("prelu_jax.data.folder", "data"):
    import tensorflow_datasets as tfds
    from tqdm import tqdm

__all__ = ["Files", "FolderOfImages", "find_images", "ignored", "prepare"]


class FolderOfImages(
    tfds.core.GeneratorBasedBuilder,
    skip_registration=True,  # type: ignore[call-arg]
):
    """TFDS builder of a folder of images.

    Args:
        files: the image files, all of which can be imported.
        data_dir: TFDS's folder.
        bad_images: reasons why files were left out, by path.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, files: Files, data_dir: Path, bad_images: dict[str, str]) -> None:
        self.files = files
        self.bad_images = bad_images
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
                key = f"{label}/{path.name}"
                yield key, {"image": path.read_bytes(), "label": label, "file_name": key}


def prepare(
    images: Path,
    name: str,
    data_dir: str = "",
    skip_bad_images: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> FolderOfImages:
    """Write the folder as dataset ``name`` under TFDS's folder and return its builder.

    The dataset has a temporary name, which nothing reads, until it is complete.

    Args:
        images: folder of splits.
        name: name of the dataset.
        data_dir: TFDS's folder; see `sources.load`.
        skip_bad_images: leave out files that are not images; else they are an error.
        max_pixels: an image with more pixels is not decoded and counts as bad.

    Raises:
        ValueError: see `find_images`; a file is not an image; all images of a class are bad; the
            name is not valid or already in use; the folder cannot be written.
    """
    if not (name.isidentifier() and name == name.lower()) or name == sources.DIGITS:
        raise ValueError(
            f"Dataset name {name!r}: expected lower-case letters, digits, underscores, and not "
            f"{sources.DIGITS!r}, the name of the embedded dataset."
        )
    files = find_images(images)
    tfds_folder = _writable(data_dir)
    taken = _versions(tfds_folder / name)
    if taken:  # TFDS would write nothing and read the existing version
        raise ValueError(
            f"{shown(taken[-1])} already holds a dataset of that name. Remove it, or choose "
            "another --name."
        )
    bad = _bad_images(files, max_pixels)
    if bad and not skip_bad_images:
        raise ValueError(
            f"{len(bad)} of {len(_paths(files))} images cannot be imported:\n{_listed(bad)}\n"
            "Repair or remove them, or pass --on_bad_image=skip to leave such files out."
        )
    # TFDS takes a dataset's name from its class.
    builder_class = types.new_class(
        name, (FolderOfImages,), {"skip_registration": True}, lambda body: body.update(name=name)
    )
    try:
        builder = builder_class(
            files=_without(files, bad),
            data_dir=tfds_folder,
            bad_images={str(path): reason for path, reason in bad.items()},
        )
        builder.download_and_prepare()
    except (OSError, RuntimeError) as error:  # array_record's error for a full disk is the latter
        raise ValueError(_not_written(tfds_folder / name, f"{error}")) from error
    return cast(FolderOfImages, builder)


def _versions(folder: Path) -> list[Path]:
    """Return the existing versions of a dataset."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return []
    return [path for path in entries if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]


def _not_written(folder: Path | str, reason: str) -> str:
    return f"The dataset cannot be written to {shown(folder)}: {reason}. Choose another --data_dir."


def _writable(data_dir: str) -> Path:
    """Return TFDS's folder, created if it does not exist.

    Raises:
        ValueError: it cannot be created, or the user has no home folder.
    """
    folder = sources.tfds_folder(data_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(_not_written(data_dir or "its default folder", f"{error}")) from error
    if not class_folders.is_utf8(str(folder)):
        raise ValueError(_not_written(folder, "the path is not UTF-8"))
    return folder


def _paths(files: Files) -> list[Path]:
    return [path for classes in files.values() for paths in classes.values() for path in paths]


def _bad_images(files: Files, max_pixels: int) -> dict[Path, str]:
    """Return the files that cannot be imported with the reasons; decodes each file once."""
    problems = {
        path: class_folders.problem(path, max_pixels)
        for path in tqdm(_paths(files), desc="Checking images", unit="image", mininterval=1)
    }
    return {path: problem for path, problem in problems.items() if problem}


def _listed(bad: dict[Path, str]) -> str:
    return class_folders.first_of(
        [f"  {shown(path)} {reason}" for path, reason in bad.items()], "\n"
    )


def _without(files: Files, bad: dict[Path, str]) -> Files:
    """Return the files without the bad ones.

    Raises:
        ValueError: all images of a class are bad.
    """
    left = {
        split: {label: [p for p in paths if p not in bad] for label, paths in classes.items()}
        for split, classes in files.items()
    }
    for split, classes in files.items():
        for label, paths in classes.items():
            if paths and not left[split][label]:
                raise ValueError(
                    f"All images of class {label!r} in split {split!r} are bad:\n"
                    f"{_listed({path: bad[path] for path in paths})}\n"
                    "Repair one, or remove the class's folder."
                )
    return left


def main(argv: list[str]) -> None:
    """Run the command; see the module."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    given = flags.FLAGS
    try:
        images = local_path(given.images, "--images")
        skip = given.on_bad_image == "skip"
        builder = prepare(images, given.name, given.data_dir, skip, given.max_pixels)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    for split, info in builder.info.splits.items():
        print(f"{given.name}/{split}: {info.num_examples} images")
    for suffix, count in ignored(images).items():
        print(f"left out, named {suffix or 'without a suffix'}: {count}")
    print(f"left out, not decodable: {len(builder.bad_images)}")
    for path, reason in builder.bad_images.items():
        print(f"  {shown(path)} {reason}")
    print(f"written to {shown(builder.data_path)}")
    of_experiment = _flags(given.name, given.data_dir, builder.info.splits)
    print(f"flags of an experiment that uses it: {of_experiment}")


def _flags(name: str, data_dir: str, splits: Iterable[str]) -> str:
    """Return the flags with which an experiment trains and tests on a dataset."""
    flags_ = [f"--config.dataset={name}"]
    if data_dir:
        flags_.append(f"--config.data_dir={shlex.quote(data_dir)}")
    others = [split for split in splits if split != "train"]
    if not others:
        flags_ += ["--config.train_split='train[:80%]'", "--config.test_split='train[80%:]'"]
    elif "test" not in others:
        flags_.append(f"--config.test_split={others[0]}")
    return " ".join(flags_)


if __name__ == "__main__":
    flags.DEFINE_string("images", None, "Folder that holds train/<class>/*.jpg.", required=True)
    flags.DEFINE_string("name", None, "Name of the dataset to write.", required=True)
    flags.DEFINE_string("data_dir", "", "TFDS's folder; by default its own default.")
    flags.DEFINE_enum(
        "on_bad_image",
        "fail",
        ["fail", "skip"],
        "Fail on a file that does not decode, or leave it out.",
    )
    flags.DEFINE_integer(
        "max_pixels",
        MAX_PIXELS,
        "An image with more pixels is not decoded and counts as bad. Training has its own limit, "
        "--config.max_pixels.",
        lower_bound=1,
    )
    with entry.command():
        main(entry.parse_flags())
