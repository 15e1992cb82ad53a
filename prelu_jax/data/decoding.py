"""A record's image as pixels: decoding, at a fraction of its size where that will do, resizing."""

from typing import Any

import cv2
import numpy as np

# A JPEG's frame headers are the segments C0..CF but for three of other kinds (ITU T.81, B.1.1.3).
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_REDUCED = {  # no flag asks for a reduced image in the order of RGB
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
}


class BadImageError(ValueError):
    """A record's bytes are no image; ``key`` is the record's."""

    def __init__(self, key: str, size: int) -> None:
        super().__init__(f"Record {key!r} holds {size} bytes that do not decode.")
        self.key = key


def decode(record: dict[str, Any], side: int = 0) -> np.ndarray:
    """The record's image as RGB uint8 ``[h, w, 3]``, upright, whatever it was stored as.

    A file that is cut short is refused. A JPEG whose pixels are damaged in the middle decodes all
    the same, to wrong colours or grey areas: the decoder mends what it can.

    Args:
        record: its ``image``, encoded or already such an array, which is returned as it is; and,
            for the error, its ``key``.
        side: what the shorter side will be resized to, if that is known. A JPEG may then come at
            1/2, 1/4 or 1/8 of its size, where that divides it and leaves a shorter side of at
            least ``side``: the decoder averages in the frequency domain and saves the rest.

    Raises:
        BadImageError: the bytes are no image; the error names the record.
    """
    image = record["image"]
    if not isinstance(image, bytes):
        return image
    factor = _reduction(image, side)
    # The colour flags turn grey, CMYK and palette files into three channels and apply EXIF
    # orientation; TFDS's own decoder does neither.
    flag = _REDUCED.get(factor, cv2.IMREAD_COLOR_RGB)
    try:
        decoded = cv2.imdecode(np.frombuffer(image, np.uint8), flag)
    except cv2.error:  # no bytes at all, or a size beyond all bounds
        decoded = None
    if decoded is None:
        raise BadImageError(record["key"], len(image))
    return decoded if factor == 1 else cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


def _reduction(image: bytes, side: int) -> int:
    """The largest of 8, 4, 2 by which a JPEG may be reduced; 1 if none, or it is no JPEG."""
    shape = _jpeg_shape(image) if side else ()
    for factor in _REDUCED:
        # The decoder rounds up what a factor does not divide, which would stretch the image.
        if shape and min(shape) // factor >= side and not any(n % factor for n in shape):
            return factor
    return 1


def _jpeg_shape(image: bytes) -> tuple[int, ...]:
    """Height and width by the frame header; empty if none is found."""
    at = 2
    while image[:2] == b"\xff\xd8" and at + 9 <= len(image) and image[at] == 0xFF:
        if image[at + 1] in _FRAMES:
            return int.from_bytes(image[at + 5 : at + 7]), int.from_bytes(image[at + 7 : at + 9])
        at += 2 + int.from_bytes(image[at + 2 : at + 4])
    return ()


def resize_shorter_side(image: np.ndarray, side: int) -> np.ndarray:
    """The image with its shorter side at ``side`` pixels and its shape kept."""
    height, width = image.shape[:2]
    if min(height, width) == side:
        return image
    scale = side / min(height, width)
    size = (max(side, round(width * scale)), max(side, round(height * scale)))
    # INTER_LINEAR alone does not antialias when it shrinks.
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
