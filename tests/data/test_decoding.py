import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import sklearn.datasets

from prelu_jax.data import decoding

PHOTO = Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"  # 427 × 640


def encoded(image, suffix):
    return {"image": cv2.imencode(suffix, image)[1].tobytes(), "key": "k"}


def photo(height=424, width=640):
    """A part of a photo, stored as JPEG."""
    return encoded(cv2.imread(str(PHOTO))[:height, :width], ".jpg")


def test_every_kind_of_file_decodes_to_rgb():
    bgr = np.zeros((8, 9, 3), np.uint8)
    bgr[..., 0] = 200  # blue
    assert decoding.decode(encoded(bgr, ".png"))[0, 0].tolist() == [0, 0, 200]
    grey = decoding.decode(encoded(np.full((8, 9), 77, np.uint8), ".png"))
    assert grey.shape == (8, 9, 3)
    assert np.unique(grey).tolist() == [77]


@pytest.mark.parametrize("content", [b"abc", b"", b"\xff\xd8\xff\xe0\0\x02\xff\xc0"])
def test_bytes_that_do_not_decode_are_named_by_their_key(content):
    message = f"Record 'cat/7.jpg' holds {len(content)} bytes that do not decode"
    with pytest.raises(decoding.BadImageError, match=message) as error:
        decoding.decode({"image": content, "key": "cat/7.jpg"}, side=4)
    assert error.value.key == "cat/7.jpg"


@pytest.mark.parametrize(("height", "width", "expected"), [(40, 60, (20, 30)), (10, 15, (20, 30))])
def test_the_shorter_side_is_resized_and_the_shape_kept(height, width, expected):
    image = np.zeros((height, width, 3), np.uint8)
    assert decoding.resize_shorter_side(image, 20).shape[:2] == expected
    transposed = decoding.resize_shorter_side(image.transpose(1, 0, 2), 20)
    assert transposed.shape[:2] == expected[::-1]


@pytest.mark.parametrize(
    ("side", "factor"), [(0, 1), (213, 1), (212, 2), (107, 2), (106, 4), (54, 4), (53, 8), (10, 8)]
)
def test_a_jpeg_is_decoded_no_larger_than_its_side_needs_and_looks_the_same(side, factor):
    record = photo()
    image = decoding.decode(record, side)
    assert image.shape == (424 // factor, 640 // factor, 3)
    np.testing.assert_array_equal(image, decoding.decode(record, side))
    if side:
        full = decoding.resize_shorter_side(decoding.decode(record), side)
        difference = full.astype(int) - decoding.resize_shorter_side(image, side)
        assert abs(difference).mean() < 2.5
        assert abs(difference.mean()) < 0.5


@pytest.mark.parametrize("record", [photo(423, 640), photo(424, 639)], ids=["height", "width"])
def test_a_jpeg_that_a_factor_does_not_divide_is_decoded_whole(record):
    assert decoding.decode(record, 50).shape == decoding.decode(record).shape


def test_what_is_no_jpeg_is_decoded_whole():
    image = np.zeros((64, 64, 3), np.uint8)
    for record in (encoded(image, ".png"), {"image": image, "key": "k"}):
        assert decoding.decode(record, 8).shape == image.shape


def test_a_reduced_image_is_rgb_and_upright():
    bgr = np.zeros((64, 32, 3), np.uint8)
    bgr[:32] = (200, 100, 0)
    stored = encoded(bgr, ".jpg")["image"]
    # EXIF: one entry, orientation 6, says to turn by a quarter clockwise: the top is at the right.
    entry = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4)
    turned = stored[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + stored[2:]
    image = decoding.decode({"image": turned, "key": "k"}, side=16)
    assert image.shape == (16, 32, 3)
    np.testing.assert_allclose(image[8, 24].astype(int), [0, 100, 200], atol=4)
    np.testing.assert_allclose(image[8, 8], 0, atol=4)
