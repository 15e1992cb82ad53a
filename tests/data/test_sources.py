import cv2
import numpy as np
import pytest

from prelu_jax.data import sources


def test_digits_are_every_digit_once_in_two_splits():
    train, test = sources.load("digits", "train"), sources.load("digits", "test")
    assert (len(train), len(test)) == (1500, 297)
    assert len({record["key"] for split in (train, test) for record in split.records}) == 1797
    image = sources.decode(train[0])
    assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)
    assert (image.min(), image.max()) == (0, 255)
    assert train.class_names == tuple("0123456789")
    counts = np.bincount([record["label"] for record in test.records], minlength=10)
    assert counts.min() >= 20


def encoded(image, suffix):
    return {"image": cv2.imencode(suffix, image)[1].tobytes(), "key": "k"}


def test_every_kind_of_file_decodes_to_rgb():
    bgr = np.zeros((8, 9, 3), np.uint8)
    bgr[..., 0] = 200  # blue
    assert sources.decode(encoded(bgr, ".png"))[0, 0].tolist() == [0, 0, 200]
    grey = sources.decode(encoded(np.full((8, 9), 77, np.uint8), ".png"))
    assert grey.shape == (8, 9, 3)
    assert np.unique(grey).tolist() == [77]


def test_bytes_that_do_not_decode_are_named_by_their_key():
    with pytest.raises(ValueError, match="Record 'cat/7.jpg' holds 3 bytes that do not decode"):
        sources.decode({"image": b"abc", "key": "cat/7.jpg"})


def test_an_unprepared_dataset_is_told_the_nearest_and_how_to_prepare_it(tmp_path):
    (tmp_path / "cifar10/1.0.0").mkdir(parents=True)
    (tmp_path / "cifar10/1.0.0/dataset_info.json").touch()
    (tmp_path / "cifar01/incomplete.X_1.0.0").mkdir(parents=True)  # TFDS was interrupted
    (tmp_path / "cifar01/incomplete.X_1.0.0/dataset_info.json").touch()
    with pytest.raises(ValueError, match=r"'cifar01'. Did you mean 'cifar10'.*data.folder.*tfds"):
        sources.load("cifar01", "train", str(tmp_path))
    with pytest.raises(ValueError, match="Unknown split of digits 'validation'"):
        sources.load("digits", "validation")
