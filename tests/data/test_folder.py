import os
import subprocess
import sys

import numpy as np
import pytest

from prelu_jax.data import decoding, folder, sources
from tests.conftest import write_images

COUNTS = {"train": {"cat": 3, "dog": 2}, "test": {"dog": 1}}


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images", COUNTS)


def test_a_folder_becomes_a_dataset_with_its_files_bytes(images, tmp_path):
    folder.prepare(images, "pets", str(tmp_path / "tfds"))
    train = sources.load("pets", "train", str(tmp_path / "tfds"))
    test = sources.load("pets", "test", str(tmp_path / "tfds"))
    assert train.class_names == test.class_names == ("cat", "dog")
    files = {f"{p.parent.name}/{p.name}": p.read_bytes() for p in images.glob("train/*/*.jpg")}
    assert {record["key"]: record["image"] for record in map(train.__getitem__, range(5))} == files
    assert (len(test), test[0]["label"], test[0]["key"]) == (1, 1, "dog/0.jpg")
    for split, length in (("train[:2]", 2), ("train+test", 6), ("all", 6)):
        assert len(sources.load("pets", split, str(tmp_path / "tfds"))) == length
    for split, message in (
        ("tset", "Unknown split of pets 'tset'. Did you mean 'test'"),
        ("train[:0]", r"Split 'train\[:0\]' of dataset 'pets'"),
        ("train[oops]", r"Split 'train\[oops\]' of dataset 'pets'"),
    ):
        with pytest.raises(ValueError, match=message):
            sources.load("pets", split, str(tmp_path / "tfds"))


def test_a_folder_may_have_the_name_of_a_dataset_that_tfds_knows(images, tmp_path):
    folder.prepare(images, "cifar10", str(tmp_path / "tfds"))
    assert sources.load("cifar10", "train", str(tmp_path / "tfds")).class_names == ("cat", "dog")


def command(images, tmp_path, *more):
    arguments = [f"--images={images}", "--name=pets", f"--data_dir={tmp_path / 'tfds'}", *more]
    return subprocess.run(
        [sys.executable, "-m", "prelu_jax.data.folder", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )


def test_a_file_that_does_not_decode_is_named_or_counted(images, tmp_path):
    (images / "train/cat/broken.jpg").write_bytes(b"no image")
    (images / "train/dog/empty.png").write_bytes(b"")
    (images / "train/dog/photo.WEBP").write_bytes(b"")
    (images / "test/dog/LICENSE").write_bytes(b"")
    failed = command(images, tmp_path)
    assert failed.returncode == 1
    assert "broken.jpg does not decode" in failed.stderr
    assert "--on_bad_image=skip" in failed.stderr
    assert "Traceback" not in failed.stderr
    skipped = command(images, tmp_path, "--on_bad_image=skip")
    assert skipped.returncode == 0, skipped.stderr
    assert "pets/train: 5 images" in skipped.stdout
    assert "left out, not decodable: 2" in skipped.stdout
    assert "left out, named .webp: 1" in skipped.stdout
    assert "left out, named without a suffix: 1" in skipped.stdout
    assert "broken.jpg" in skipped.stdout


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "holds no folder and 0 files, expected a folder train"),
        ({"train": {"cat": 0}}, "train holds no image"),
        ({"train": {"cat": 1, "dog": 0}}, r"Classes of 'train' hold no image of their own.*dog"),
        ({"test": {"cat": 1}}, "holds test, expected a folder train"),
        ({"photos/train": {"cat": 1}}, "holds photos, expected .* seems to be .*/photos"),
        ({"train": {"cat": 1}, "test": {"cow": 1}}, r"'test' has classes that 'train' lacks.*cow"),
    ],
)
def test_a_folder_that_is_no_dataset_is_refused(counts, message, tmp_path):
    root = write_images(tmp_path, counts)
    with pytest.raises(ValueError, match=message):
        folder.prepare(root, "pets", str(tmp_path / "tfds"))


def test_a_missing_folder_and_a_bad_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        folder.find_images(tmp_path / "nowhere")
    for name in ("My Pets", "digits"):
        with pytest.raises(ValueError, match=f"Dataset name '{name}'"):
            folder.prepare(tmp_path, name)


def test_a_name_that_is_taken_is_refused_and_what_was_there_stays(images, tmp_path):
    folder.prepare(images, "pets", str(tmp_path / "tfds"))
    other = write_images(tmp_path / "other", {"train": {"cow": 1}})
    with pytest.raises(ValueError, match="holds a dataset of that name already"):
        folder.prepare(other, "pets", str(tmp_path / "tfds"))
    assert sources.load("pets", "train", str(tmp_path / "tfds")).class_names == ("cat", "dog")


def test_images_in_folders_within_a_class_are_not_left_out_in_silence(images):
    within = images / "train/dog/more"
    within.mkdir()
    (images / "train/dog/0.jpg").rename(within / "0.jpg")
    with pytest.raises(ValueError, match="1 images lie in folders within a class's.*dog/more/0"):
        folder.find_images(images)


def test_hidden_folders_are_no_classes(images):
    (images / "train/.ipynb_checkpoints").mkdir()
    (images / ".cache").mkdir()
    assert list(folder.find_images(images)["train"]) == ["cat", "dog"]


def test_images_of_the_folder_decode(images):
    file = next(images.glob("train/*/*.jpg"))
    image = decoding.decode({"image": file.read_bytes(), "key": "k"})
    assert image.dtype == np.uint8
