import os

import numpy as np
import pytest
from sklearn.datasets import load_digits

from prelu_jax.data import decoding, folder, sources
from tests.conftest import write_images


def test_digits_are_every_digit_once_in_two_splits():
    train, test = sources.load("digits", "train"), sources.load("digits", "test")
    assert (len(train), len(test)) == (1500, 297)
    assert len({record["key"] for split in (train, test) for record in split.records}) == 1797
    image = decoding.decode(train[0])
    assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)
    assert (image.min(), image.max()) == (0, 255)
    assert train.class_names == tuple("0123456789")
    counts = np.bincount([record["label"] for record in test.records], minlength=10)
    assert counts.min() >= 20


def test_digits_are_those_of_scikit_learn():
    images, labels = sources.digits_table()
    theirs = load_digits()
    np.testing.assert_array_equal(images, theirs.images, strict=True)
    np.testing.assert_array_equal(labels, theirs.target, strict=True)


def test_the_error_about_an_unprepared_dataset_suggests_the_nearest_and_a_command(tmp_path):
    (tmp_path / "cifar10/1.0.0").mkdir(parents=True)
    (tmp_path / "cifar10/1.0.0/dataset_info.json").touch()
    (tmp_path / "cifar01/incomplete.X_1.0.0").mkdir(parents=True)  # TFDS was interrupted
    (tmp_path / "cifar01/incomplete.X_1.0.0/dataset_info.json").touch()
    with pytest.raises(ValueError, match=r"'cifar01'. Did you mean 'cifar10'.*data.folder.*tfds"):
        sources.load("cifar01", "train", str(tmp_path))
    with pytest.raises(ValueError, match="Unknown split of digits 'validation'"):
        sources.load("digits", "validation")


def test_classes_are_renumbered_in_the_order_they_are_listed():
    whole = sources.load("digits", "train")
    part = sources.subset(whole, "7,0-2")
    assert part.class_names == ("7", "0", "1", "2")
    assert len(part) == np.isin(whole.labels, [7, 0, 1, 2]).sum()
    original = {record["key"]: record["label"] for record in whole.records}
    for record in (part[i] for i in range(len(part))):
        assert part.class_names[record["label"]] == str(original[record["key"]])
    assert sources.subset(whole) is whole
    assert whole[0]["label"] == original[whole[0]["key"]]  # a view: the split keeps its labels


def keys(split):
    return [split[i]["key"] for i in range(len(split))]


def test_few_examples_are_chosen_by_the_seed_alone():
    whole = sources.load("digits", "train")
    few = sources.subset(whole, "5-9", 10, seed=3)
    assert np.bincount(few.labels).tolist() == [10] * 5
    assert len(set(keys(few))) == 50
    assert keys(sources.subset(whole, "5-9", 10, seed=3)) == keys(few)
    assert set(keys(sources.subset(whole, "5-9", 10, seed=4))) != set(keys(few))
    # A larger number includes the smaller one, and the examples of a class ignore other classes.
    assert set(keys(sources.subset(whole, "5-9", 4, seed=3))) < set(keys(few))
    assert set(keys(sources.subset(whole, "8", 10, seed=3))) < set(keys(few))
    assert len(sources.subset(whole, "", 2)) == 20


@pytest.mark.parametrize(
    "classes", ["a", "4-", "4-2", "0,,1", "10", "0-99999999999", "3,1-4", "-1"]
)
def test_classes_that_cannot_be_are_refused(classes):
    with pytest.raises(ValueError, match=f"Classes '{classes}'.*labels from 0 to 9, each once"):
        sources.subset(sources.load("digits", "test"), classes)


def test_a_class_with_too_few_examples_is_named():
    split = sources.Split([{"image": None, "label": 1, "key": "k"}], ("cat", "dog"))
    with pytest.raises(ValueError, match=r"Class 0 \(cat\) has 0 examples, expected at least 1"):
        sources.subset(split, "0-1")
    with pytest.raises(ValueError, match=r"Class 1 \(dog\) has 1 examples, expected 2"):
        sources.subset(split, "1", 2)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content[: len(content) // 2], "the file is truncated"),
        (lambda content: b"", "should be at least 64KB"),
        (lambda content: content[:200] + bytes(500) + content[700:], "hash mismatch"),
    ],
)
def test_damaged_files_of_a_dataset_are_named(damage, reason, tmp_path):
    images = write_images(tmp_path / "images", {"train": {"a": 5}})
    folder.prepare(images, "photos", str(tmp_path / "tfds"))
    (file,) = (tmp_path / "tfds").rglob("*.array_record*")
    file.write_bytes(damage(file.read_bytes()))
    split = sources.load("photos", "train", str(tmp_path / "tfds"))
    with pytest.raises(ValueError, match=rf"photos/train\[.\].*{reason}.*photos/1.0.0 are dam"):
        [split[i] for i in range(5)]


def test_without_a_home_folder_the_place_of_datasets_is_asked_for(monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # no home folder
    with pytest.raises(ValueError, match="no home folder.*--config.data_dir=DIR"):
        sources.load("cifar10", "train")
    with pytest.raises(ValueError, match="data_dir is ~/data, but there is no home directory ~"):
        sources.load("cifar10", "train", "~/data")
    assert len(sources.load("digits", "test")) == 297
