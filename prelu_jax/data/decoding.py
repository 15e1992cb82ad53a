"""Decoding of records into pixels, limited to the pixels that the caller needs.

A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that is large enough. Its rows are coded from
the top, so the rows below the last one needed are not decoded.
"""

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import numpy as np

from prelu_jax import extras
from prelu_jax.data import MAX_PIXELS, resizing

with extras.needed(__name__, "train"):
    import cv2

# Markers of a JPEG's segments (ITU T.81, B.1.1.3). C0..CF, except three, are frame headers; two of
# them announce one pass of Huffman coding.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = {0xC0, 0xC1}
_RESTARTS, _SCAN, _APPLICATION = 0xDD, 0xDA, 0xE1
_WITHOUT_LENGTH = {0x00, 0x01, *range(0xD0, 0xD8)}  # a stuffed byte, TEM, RST0 to RST7
_END = b"\xff\xd9"
_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
# Formats that OpenCV decodes and whose header Pillow reads.
_OTHERS = ("JPEG", "GIF", "BMP", "WEBP", "TIFF", "JPEG2000", "PPM", "SUN", "AVIF")
_TALLEST_BLOCK = 32  # the most rows that are coded together
_SEEN_BELOW = 1  # rows below a row that affect it, if colours are subsampled and smoothed
_REDUCED = {  # OpenCV has no such flags for the order RGB
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
}


class BadImageError(ValueError):
    """A record whose bytes are not an image, or an image with too many pixels.

    Attributes:
        key: key of the record.
        reason: a clause that follows the name of the record or of its file in a message.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"Record {key!r} {reason}.")
        self.key = key
        self.reason = reason


class TooManyPixelsError(BadImageError):
    """An image that is not decoded because of its size."""


@dataclasses.dataclass(frozen=True)
class Scaled:
    """An image scaled to a given shorter side, from which windows can be cut.

    Attributes:
        source: height and width before scaling.
        side: pixels of the shorter side after scaling.
        rows: function that decodes at least the given number of rows, from the top, before scaling.
    """

    source: tuple[int, int]
    side: int
    rows: Callable[[int], np.ndarray]

    @property
    def shape(self) -> tuple[int, int]:
        """The scaled height and width, with the image's aspect ratio."""
        scale = self.side / min(self.source)
        height, width = (max(self.side, round(n * scale)) for n in self.source)
        return height, width

    def window(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Return a window of the scaled image as RGB uint8 ``[height, width, 3]``.

        Raises:
            BadImageError: the bytes are not an image; the error names the record.
        """
        rows = resizing.Part(self.source[0], self.shape[0], top, height)
        columns = resizing.Part(self.source[1], self.shape[1], left, width)
        return resizing.window(self.rows(rows.end), rows, columns)


def scaled(record: dict[str, Any], side: int, max_pixels: int = MAX_PIXELS) -> Scaled:
    """Return the record's image, upright, with its shorter side at ``side`` pixels.

    Args:
        record: a record as for `decode`.
        side: the shorter side; a JPEG may be reduced as in `decode`.
        max_pixels: as in `decode`.

    Raises:
        BadImageError: the bytes are not an image, or it has more than ``max_pixels``. If only the
            rows are damaged and not the header, `Scaled.window` raises it.
    """
    stored = record["image"]
    header = _header(stored) if isinstance(stored, bytes) else None
    if header is None or header.has_exif:  # EXIF may rotate the image
        image = decode(record, side, max_pixels)
        return Scaled((image.shape[0], image.shape[1]), side, lambda rows: image)
    _check_pixels(record["key"], (header.height, header.width), max_pixels)
    factor = _reduction(header, side)

    def rows(count: int) -> np.ndarray:
        if header.can_be_cut:
            image = _decoded(_cut(stored, header, factor * (count + _SEEN_BELOW)), factor)
            if image is not None:
                return image
        return decode(record, side, max_pixels)

    return Scaled((header.height // factor, header.width // factor), side, rows)


def decode(record: dict[str, Any], side: int = 0, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return the record's image as RGB uint8 ``[h, w, 3]``, upright, for any stored format.

    A truncated file is an error. A JPEG with damaged pixels in the middle still decodes, with wrong
    colours or grey areas, because the decoder repairs as much as it can.

    Args:
        record: has ``image``, encoded bytes or a decoded array, which is returned unchanged; and
            ``key``, which the error names.
        side: the shorter side that the image will be resized to, 0 if unknown. A JPEG may then be
            returned at 1/2, 1/4 or 1/8 of its size, if that divides it and leaves a shorter side
            of at least ``side``. This saves time: the decoder averages in the frequency domain.
        max_pixels: an image with more pixels, by its header, is not decoded.

    Raises:
        BadImageError: the bytes are not an image, or it has more than ``max_pixels``; the error
            names the record.
    """
    image = record["image"]
    if not isinstance(image, bytes):
        decoded_before: np.ndarray = image
        return decoded_before
    header = _header(image)
    shape = (header.height, header.width) if header else _shape(image)
    if shape is not None:
        _check_pixels(record["key"], shape, max_pixels)
        decoded = _decoded(image, _reduction(header, side) if header and side else 1)
        if decoded is not None:
            return decoded
    raise BadImageError(record["key"], f"holds {len(image)} bytes that do not decode")


def _check_pixels(key: str, shape: tuple[int, int], max_pixels: int) -> None:
    height, width = shape
    if height * width > max_pixels:
        raise TooManyPixelsError(
            key,
            f"is an image of {width}×{height} pixels: with more than {max_pixels:,} (max_pixels) "
            "it is not decoded",
        )


def _shape(image: bytes) -> tuple[int, int] | None:
    """Return height and width from the header of a file that is not a JPEG, or None."""
    if image.startswith(_PNG):
        at = len(_PNG)
        return int.from_bytes(image[at + 4 : at + 8]), int.from_bytes(image[at : at + 4])
    with extras.needed(__name__, "train"):
        from PIL import Image  # imported late, because few runs read such files

    Image.init()
    for opens, accepts in (Image.OPEN[name] for name in _OTHERS if name in Image.OPEN):
        try:
            if accepts is not None and accepts(image[:16]):
                # `Image.open` does the same, but with a global limit on pixels.
                width, height = opens(io.BytesIO(image), "").size
                return height, width
        except Exception:  # plug-ins raise many types for a truncated or damaged header
            continue
    return None


def _decoded(image: bytes, factor: int) -> np.ndarray | None:
    """Return the image at 1/``factor`` of its size; None if it does not decode."""
    # The colour flags turn grey, CMYK and palette files into three channels and apply EXIF
    # orientation; TFDS's own decoder does neither.
    flag = _REDUCED.get(factor, cv2.IMREAD_COLOR_RGB)
    try:
        decoded = cv2.imdecode(np.frombuffer(image, np.uint8), flag)
    except cv2.error:  # no bytes, or a size above OpenCV's limit
        return None
    return decoded if decoded is None or factor == 1 else cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


@dataclasses.dataclass(frozen=True)
class _Header:
    """Fields of a JPEG's header, before its coded rows.

    Attributes:
        height: pixels, before rotation by EXIF.
        width: pixels, before rotation by EXIF.
        height_at: position of the two bytes that store the height.
        rows_at: position of the coded rows.
        can_be_cut: the rows are coded in order in a single scan, so that the last can be cut off.
        has_exif: the file has EXIF data.
    """

    height: int
    width: int
    height_at: int
    rows_at: int
    can_be_cut: bool
    has_exif: bool


def _header(image: bytes) -> _Header | None:
    """Return the header of a JPEG; None if it is not a JPEG or its rows are not found."""
    at, frame, restarts, has_exif = 2, 0, False, False
    while image[:2] == b"\xff\xd8" and (at := _marker(image, at)) + 9 <= len(image):
        marker, size = image[at + 1], int.from_bytes(image[at + 2 : at + 4])
        if marker in _FRAMES:
            frame = at
        elif marker == _RESTARTS:
            restarts = True
        elif marker == _APPLICATION:
            has_exif = has_exif or image[at + 4 : at + 8] == b"Exif"
        elif marker == _SCAN:
            break
        at += 2 + size
    else:
        return None
    if not frame:
        return None
    frame_components, scan_components = image[frame + 9], image[at + 4]
    height, width = (int.from_bytes(image[frame + i : frame + i + 2]) for i in (5, 7))
    if not height or not width:  # left to the decoder
        return None
    in_one_scan = image[frame + 1] in _SEQUENTIAL and frame_components == scan_components
    return _Header(
        height=height,
        width=width,
        height_at=frame + 5,
        rows_at=at,
        can_be_cut=in_one_scan and not restarts,
        has_exif=has_exif,
    )


def _marker(image: bytes, at: int) -> int:
    """Return the position of a JPEG's next segment; bytes between segments are skipped."""
    while 0 <= (at := image.find(b"\xff", at)) < len(image) - 1:
        if image[at + 1] == 0xFF:  # padding
            at += 1
        elif image[at + 1] in _WITHOUT_LENGTH:
            at += 2
        else:
            return at
    return len(image)


def _reduction(header: _Header, side: int) -> int:
    """Return the largest of 8, 4, 2 by which a JPEG may be reduced; 1 if none."""
    shape = (header.height, header.width)
    for factor in _REDUCED:
        # If a factor does not divide a side, the decoder rounds up and would stretch the image.
        if min(shape) // factor >= side and not any(n % factor for n in shape):
            return factor
    return 1


def _cut(image: bytes, header: _Header, rows: int) -> bytes:
    """Return the JPEG with at least ``rows`` rows and the others cut off, or unchanged.

    The height in the header changes; the coded rows stay, without the end marker after them: the
    decoder would warn about the unused rows if it found that marker.
    """
    end = image.rfind(_END, header.rows_at)
    height = -(-rows // 8) * 8  # divisible by every factor of a reduction
    # Leave a file without an end marker unchanged: it is truncated, and the decoder must notice.
    # Also leave enough bytes after the last row for the decoder to look ahead.
    if end < 0 or height + _TALLEST_BLOCK > header.height:
        return image
    at = header.height_at
    return b"".join((image[:at], height.to_bytes(2), image[at + 2 : end]))
