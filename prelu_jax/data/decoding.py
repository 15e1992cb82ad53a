"""A record's image as pixels: no more of them decoded and resized than are asked for.

A JPEG comes at a fraction of its size where that will do. Its rows are coded from the top: those
below what is asked for are not decoded.
"""

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from prelu_jax.data import MAX_PIXELS, resizing

# Markers of a JPEG's segments (ITU T.81, B.1.1.3): C0..CF, but for three, are frame headers; of
# them, two are Huffman-coded in one pass.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = {0xC0, 0xC1}
_RESTARTS, _SCAN, _APPLICATION = 0xDD, 0xDA, 0xE1
_WITHOUT_LENGTH = {0x00, 0x01, *range(0xD0, 0xD8)}  # a stuffed byte, TEM, RST0 to RST7
_END = b"\xff\xd9"
_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
# The formats that OpenCV decodes and of which Pillow reads the header.
_OTHERS = ("JPEG", "GIF", "BMP", "WEBP", "TIFF", "JPEG2000", "PPM", "SUN", "AVIF")
_TALLEST_BLOCK = 32  # rows that are coded together, at most
_SEEN_BELOW = 1  # rows below that a row depends on, where colours are coarse and smoothed
_REDUCED = {  # no flag asks for a reduced image in the order of RGB
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
}


class BadImageError(ValueError):
    """A record's bytes are no image, or one of too many pixels.

    Attributes:
        key: the record's.
        reason: a clause that follows the name of the record or of its file.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"Record {key!r} {reason}.")
        self.key = key
        self.reason = reason


class TooManyPixelsError(BadImageError):
    """An image that is not decoded because of its size."""


@dataclasses.dataclass(frozen=True)
class Scaled:
    """An image with its shorter side at some length, of which windows can be had.

    Attributes:
        source: height and width before it is resized.
        side: pixels of its shorter side.
        rows: the image before, or at least so many rows of it from the top.
    """

    source: tuple[int, int]
    side: int
    rows: Callable[[int], np.ndarray]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width; the image's shape is kept."""
        scale = self.side / min(self.source)
        height, width = (max(self.side, round(n * scale)) for n in self.source)
        return height, width

    def window(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """RGB uint8 ``[height, width, 3]``.

        Raises:
            BadImageError: the bytes are no image; the error names the record.
        """
        rows = resizing.Part(self.source[0], self.shape[0], top, height)
        columns = resizing.Part(self.source[1], self.shape[1], left, width)
        return resizing.window(self.rows(rows.end), rows, columns)


def scaled(record: dict[str, Any], side: int, max_pixels: int = MAX_PIXELS) -> Scaled:
    """The record's image, upright, with its shorter side at ``side`` pixels.

    Args:
        record: as `decode` takes it.
        side: a JPEG may be reduced to it as in `decode`.
        max_pixels: as in `decode`.

    Raises:
        BadImageError: the bytes are no image, or one of more pixels. An image whose header is
            whole and whose rows are not raises it later, where a window is asked for.
    """
    stored = record["image"]
    header = _header(stored) if isinstance(stored, bytes) else None
    if header is None or header.has_exif:  # which may turn it
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
    """The record's image as RGB uint8 ``[h, w, 3]``, upright, whatever it was stored as.

    A file that is cut short is refused. A JPEG whose pixels are damaged in the middle decodes all
    the same, to wrong colours or grey areas: the decoder mends what it can.

    Args:
        record: its ``image``, encoded or already such an array, which is returned as it is; and,
            for the error, its ``key``.
        side: what the shorter side will be resized to, if that is known. A JPEG may then come at
            1/2, 1/4 or 1/8 of its size, where that divides it and leaves a shorter side of at
            least ``side``: the decoder averages in the frequency domain and saves the rest.
        max_pixels: a file with more of them in its header is not decoded.

    Raises:
        BadImageError: the bytes are no image, or one of more pixels; the error names the record.
    """
    image = record["image"]
    if not isinstance(image, bytes):
        return image
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
    """Return height and width from the header of a file that is no JPEG; None without one."""
    if image.startswith(_PNG):
        at = len(_PNG)
        return int.from_bytes(image[at + 4 : at + 8]), int.from_bytes(image[at : at + 4])
    from PIL import Image  # few runs read such files

    Image.init()
    for opens, accepts in (Image.OPEN[name] for name in _OTHERS if name in Image.OPEN):
        try:
            if accepts is not None and accepts(image[:16]):
                # As `Image.open` does, which has a limit on pixels that no single call can set.
                width, height = opens(io.BytesIO(image), "").size
                return height, width
        except Exception:  # whatever a plug-in raises over a header that is cut or damaged
            continue
    return None


def _decoded(image: bytes, factor: int) -> np.ndarray | None:
    """The image at 1/``factor`` of its size; None if it does not decode."""
    # The colour flags turn grey, CMYK and palette files into three channels and apply EXIF
    # orientation; TFDS's own decoder does neither.
    flag = _REDUCED.get(factor, cv2.IMREAD_COLOR_RGB)
    try:
        decoded = cv2.imdecode(np.frombuffer(image, np.uint8), flag)
    except cv2.error:  # no bytes at all, or a size beyond all bounds
        return None
    return decoded if decoded is None or factor == 1 else cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


@dataclasses.dataclass(frozen=True)
class _Header:
    """What stands in a JPEG before its coded rows.

    Attributes:
        height: in pixels, before EXIF turns it.
        width: likewise.
        height_at: where the height is written, as two bytes.
        rows_at: where the coded rows begin.
        can_be_cut: whether the rows are coded one after another, in one run.
        has_exif: whether there are EXIF data.
    """

    height: int
    width: int
    height_at: int
    rows_at: int
    can_be_cut: bool
    has_exif: bool


def _header(image: bytes) -> _Header | None:
    """What stands before a JPEG's rows; None if it is no JPEG or they are not found."""
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
    of_frame, of_scan = image[frame + 9], image[at + 4]  # components
    height, width = (int.from_bytes(image[frame + i : frame + i + 2]) for i in (5, 7))
    if not height or not width:  # the decoder knows what to make of it
        return None
    return _Header(
        height=height,
        width=width,
        height_at=frame + 5,
        rows_at=at,
        can_be_cut=image[frame + 1] in _SEQUENTIAL and of_frame == of_scan and not restarts,
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
    """The largest of 8, 4, 2 by which a JPEG may be reduced; 1 if none."""
    shape = (header.height, header.width)
    for factor in _REDUCED:
        # The decoder rounds up what a factor does not divide, which would stretch the image.
        if min(shape) // factor >= side and not any(n % factor for n in shape):
            return factor
    return 1


def _cut(image: bytes, header: _Header, rows: int) -> bytes:
    """The JPEG as one of fewer rows, at least so many, or as it is.

    Its header tells another height and the coded rows stay as they are, but for the mark of their
    end: finding it, the decoder would warn of what it had left over.
    """
    end = image.rfind(_END, header.rows_at)
    height = -(-rows // 8) * 8  # what a reduction divides
    # One without the mark is cut short: the decoder has to find that out. And it has to find bytes
    # to look ahead into after the last row.
    if end < 0 or height + _TALLEST_BLOCK > header.height:
        return image
    at = header.height_at
    return b"".join((image[:at], height.to_bytes(2), image[at + 2 : end]))
