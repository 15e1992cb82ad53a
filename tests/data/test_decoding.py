import contextlib
import io
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from prelu_jax.data import decoding
from tests.data.conftest import resize_shorter_side

PHOTO = Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"  # 427 × 640


def encoded(image, suffix):
    return {"image": cv2.imencode(suffix, image)[1].tobytes(), "key": "k"}


def photo(height=424, width=640):
    """Return a part of a photo as JPEG bytes."""
    return encoded(cv2.imread(str(PHOTO))[:height, :width], ".jpg")


def exif_of(orientation):
    """Return a JPEG segment with one EXIF entry; 6 is a rotation by a quarter turn clockwise."""
    entry = struct.pack("<HHIHH", 0x112, 3, 1, orientation, 0)
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4)
    return b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif


def test_every_kind_of_file_decodes_to_rgb():
    bgr = np.zeros((8, 9, 3), np.uint8)
    bgr[..., 0] = 200  # blue
    assert decoding.decode(encoded(bgr, ".png"))[0, 0].tolist() == [0, 0, 200]
    grey = decoding.decode(encoded(np.full((8, 9), 77, np.uint8), ".png"))
    assert grey.shape == (8, 9, 3)
    assert np.unique(grey).tolist() == [77]


@pytest.mark.parametrize(
    ("mode", "file_type"), [("CMYK", "JPEG"), ("L", "JPEG"), ("P", "PNG"), ("RGBA", "PNG")]
)
def test_every_kind_of_colour_decodes_to_rgb(mode, file_type):
    stored = io.BytesIO()
    Image.new("RGB", (32, 24), (200, 100, 50)).convert(mode).save(stored, file_type)
    image = decoding.decode({"image": stored.getvalue(), "key": "k"}, side=6)
    assert image.shape[2] == 3
    expected = [124] * 3 if mode == "L" else [200, 100, 50]  # L = 0.299 R + 0.587 G + 0.114 B
    np.testing.assert_allclose(image[3, 3].astype(int), expected, atol=4)


@pytest.mark.parametrize("content", [b"abc", b"", b"\xff\xd8\xff\xe0\0\x02\xff\xc0"])
def test_bytes_that_do_not_decode_are_named_by_their_key(content):
    message = f"Record 'cat/7.jpg' holds {len(content)} bytes that do not decode"
    with pytest.raises(decoding.BadImageError, match=message) as error:
        decoding.decode({"image": content, "key": "cat/7.jpg"}, side=4)
    assert error.value.key == "cat/7.jpg"


@pytest.mark.parametrize(("height", "width", "expected"), [(40, 60, (20, 30)), (10, 15, (20, 30))])
def test_the_shorter_side_is_resized_and_the_shape_kept(height, width, expected):
    image = np.zeros((height, width, 3), np.uint8)
    for stored in (image, encoded(image, ".jpg")["image"], encoded(image, ".png")["image"]):
        assert decoding.scaled({"image": stored, "key": "k"}, 20).shape == expected
    transposed = decoding.scaled({"image": image.transpose(1, 0, 2), "key": "k"}, 20)
    assert transposed.shape == expected[::-1]


@pytest.mark.parametrize(
    ("side", "factor"), [(0, 1), (213, 1), (212, 2), (107, 2), (106, 4), (54, 4), (53, 8), (10, 8)]
)
def test_a_jpeg_is_decoded_no_larger_than_its_side_needs_and_looks_the_same(side, factor):
    record = photo()
    image = decoding.decode(record, side)
    assert image.shape == (424 // factor, 640 // factor, 3)
    np.testing.assert_array_equal(image, decoding.decode(record, side))
    if side:
        full = resize_shorter_side(decoding.decode(record), side)
        difference = full.astype(int) - resize_shorter_side(image, side)
        assert abs(difference).mean() < 2.5
        assert abs(difference.mean()) < 0.5


@pytest.mark.parametrize("record", [photo(423, 640), photo(424, 639)], ids=["height", "width"])
def test_a_jpeg_that_a_factor_does_not_divide_is_decoded_whole(record):
    assert decoding.decode(record, 50).shape == decoding.decode(record).shape


def test_other_formats_than_jpeg_are_decoded_completely():
    image = np.zeros((64, 64, 3), np.uint8)
    for record in (encoded(image, ".png"), {"image": image, "key": "k"}):
        assert decoding.decode(record, 8).shape == image.shape


def test_a_reduced_image_is_rgb_and_upright():
    bgr = np.zeros((64, 32, 3), np.uint8)
    bgr[:32] = (200, 100, 0)
    stored = encoded(bgr, ".jpg")["image"]
    turned = stored[:2] + exif_of(6) + stored[2:]
    image = decoding.decode({"image": turned, "key": "k"}, side=16)
    assert image.shape == (16, 32, 3)
    np.testing.assert_allclose(image[8, 24].astype(int), [0, 100, 200], atol=4)
    np.testing.assert_allclose(image[8, 8], 0, atol=4)


def stored_as(mode="RGB", shape=(424, 640), **options):
    """Return a part of a photo as JPEG bytes with the given coding."""
    file = io.BytesIO()
    Image.open(PHOTO).crop((0, 0, *shape[::-1])).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


CODINGS = {
    "4:4:4": stored_as(subsampling=0),
    "4:2:2": stored_as(subsampling=1),
    "4:2:0": stored_as(subsampling=2),
    "grey": stored_as("L"),
    "CMYK": stored_as("CMYK"),
    "odd": stored_as(shape=(423, 641)),
    "optimised": stored_as(optimize=True, quality=98),
    "progressive": stored_as(progressive=True),
    "restarts": stored_as(restart_marker_rows=2),
    "exif": (lambda stored: stored[:2] + exif_of(6) + stored[2:])(stored_as()),
    "rest": stored_as() + b"rest",
    "small": stored_as(shape=(40, 8)),
}
CUT = set(CODINGS) - {"progressive", "restarts", "exif", "small"}


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("side", [600, 424, 300, 212, 100, 53])
def test_a_window_is_decoded_as_in_the_whole_of_the_image(coding, side, monkeypatch, capfd):
    record = {"image": CODINGS[coding], "key": "k"}
    whole = resize_shorter_side(decoding.decode(record, side), side)
    heights = []
    decode = cv2.imdecode

    def spied(*arguments):
        image = decode(*arguments)
        heights.append(len(image))
        return image

    monkeypatch.setattr(cv2, "imdecode", spied)
    size = 40
    for top in (0, (len(whole) - size) // 2, len(whole) - size):
        scaled = decoding.scaled(record, side)
        assert scaled.shape == whole.shape[:2]
        window = scaled.window(top, 3, size, side - 5)
        expected = whole[top : top + size, 3 : side - 2]
        assert abs(window.astype(int) - expected).max() <= 1
        assert (window != expected).mean() < 1e-3
    assert len(heights) == 3
    assert heights[2] == heights[1] or coding in CUT
    assert heights[0] < heights[2] or coding not in CUT - {"odd"} or side < 100
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("side", [400, 212, 106, 53])
def test_the_rows_above_a_cut_are_those_of_the_whole(coding, side):
    record = {"image": CODINGS[coding], "key": "k"}
    whole = decoding.decode(record, side)
    for count in (*range(1, len(whole), 15), *range(8, len(whole), 40)):
        rows = decoding.scaled(record, side).rows(count)
        np.testing.assert_array_equal(rows[:count], whole[:count])


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.99])
def test_a_file_that_is_cut_short_below_the_window_is_refused_all_the_same(kept):
    stored = stored_as()
    scaled = decoding.scaled({"image": stored[: int(kept * len(stored))], "key": "k"}, 300)
    with pytest.raises(decoding.BadImageError, match="Record 'k' holds"):
        scaled.window(0, 0, 20, 20)


def test_a_header_without_a_height_is_a_bad_image():
    _, encoded = cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))
    image = bytearray(encoded.tobytes())
    at = image.index(b"\xff\xc0")
    image[at + 5 : at + 7] = b"\0\0"
    with pytest.raises(decoding.BadImageError, match="'a'"):
        decoding.scaled({"image": bytes(image), "key": "a"}, 8).window(0, 0, 8, 8)


FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")


def of_size(file_type, width, height):
    """Return an image file of one colour."""
    file = io.BytesIO()
    options = {"compression": "tiff_deflate"} if file_type == "TIFF" else {}
    Image.new("RGB", (width, height), (9, 9, 9)).save(file, file_type, **options)
    return {"image": file.getvalue(), "key": "cat/7.jpg"}


@pytest.mark.parametrize("file_type", FORMATS)
def test_an_image_of_too_many_pixels_is_named_and_not_decoded(file_type, monkeypatch):
    record = of_size(file_type, 30, 20)
    assert decoding.decode(record, max_pixels=600).shape == (20, 30, 3)
    monkeypatch.setattr(cv2, "imdecode", lambda *arguments: pytest.fail("it is decoded"))
    message = r"'cat/7.jpg' is an image of 30×20 pixels: with more than 599 \(max_pixels\)"
    for read in (decoding.decode, decoding.scaled):
        with pytest.raises(decoding.BadImageError, match=message):
            read(record, 8, max_pixels=599)


def enlarged_header(file_type):
    """Return a small file whose header claims 60,000 × 60,000 pixels."""
    stored = bytearray(of_size(file_type, 30, 20)["image"])
    side = 60_000
    at, size = {
        "JPEG": (stored.find(b"\xff\xc0") + 5, ">HH"),
        "PNG": (16, ">II"),
        "GIF": (6, "<HH"),
        "BMP": (18, "<ii"),
    }[file_type]
    struct.pack_into(size, stored, at, side, side)
    return bytes(stored)


@pytest.mark.parametrize("file_type", ["JPEG", "PNG", "GIF", "BMP"])
def test_the_default_limit_is_100_megapixels_whatever_the_file_holds(file_type):
    record = {"image": enlarged_header(file_type), "key": "k"}
    with pytest.raises(decoding.BadImageError, match="60000×60000 pixels: .* 100,000,000"):
        decoding.decode(record)
    with pytest.raises(decoding.BadImageError, match="do not decode|60000×60000"):
        decoding.decode({"image": record["image"][:30], "key": "k"})


@pytest.mark.parametrize("between", [b"\xff\xff", b"\xff\xd0", b"\0\x12"])
def test_a_jpeg_with_bytes_between_its_segments_decodes_and_has_a_limit(between):
    stored = of_size("JPEG", 30, 20)["image"]
    frame = stored.index(b"\xff\xc0")
    record = {"image": stored[:frame] + between + stored[frame:], "key": "k"}
    np.testing.assert_array_equal(
        decoding.decode(record), decoding.decode({**record, "image": stored})
    )
    with pytest.raises(decoding.BadImageError, match="30×20 pixels"):
        decoding.scaled(record, 8, max_pixels=599)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("file_type", FORMATS)
def test_a_file_that_is_cut_anywhere_decodes_or_is_a_bad_image(file_type):
    stored = of_size(file_type, 30, 20)["image"]
    for length in range(0, min(len(stored), 400), 3):
        with contextlib.suppress(decoding.BadImageError):
            assert decoding.decode({"image": stored[:length], "key": "k"}).shape == (20, 30, 3)
