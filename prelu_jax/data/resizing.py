"""A part of a resized image, computed from the pixels that it depends on and no others.

The whole image resized and then cropped gives the same pixels, but for the last digit: where
images shrink, the means of two programs, in float32, may be rounded apart at a half.
"""

import dataclasses
import math

import cv2
import numpy as np
from scipy import sparse

_NOTHING = 1e-6  # of a pixel: what rounding leaves of an overlap


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of one side of a resized image.

    Attributes:
        source: pixels of the side before it is resized.
        target: pixels after.
        start: where the part begins, in pixels after.
        size: how many it has.
    """

    source: int
    target: int
    start: int
    size: int

    @property
    def end(self) -> int:
        """How many pixels of the source, from its beginning, the part depends on, or more."""
        scale = self.target / self.source
        end = min(self.source, math.ceil((self.start + self.size) / scale) + 1)
        copied = scale > 1 and round(end * scale) == end  # by OpenCV, for being as long as before
        return self.source if copied else end

    def means(self) -> tuple[slice, sparse.csr_array]:
        """The part, for a side that shrinks, as weighted means of pixels of the source.

        Each pixel is the mean of the source over the interval that it covers.

        Returns:
            A slice of the source, and the weights of its pixels, float32 ``[size, slice]``.
        """
        step = self.source / self.target
        edges = np.arange(self.start, self.start + self.size + 1) * step
        low, high = edges[:-1, None], edges[1:, None]
        pixels = np.floor(low) + np.arange(math.ceil(step) + 1)
        overlaps = np.minimum(high, pixels + 1) - np.maximum(low, pixels)
        some = overlaps > _NOTHING
        begin = int(edges[0])
        columns = pixels[some].astype(np.int32) - begin
        first_of_rows = np.zeros(self.size + 1, np.int32)
        np.cumsum(np.count_nonzero(some, axis=1), out=first_of_rows[1:])
        values = (overlaps[some] / step).astype(np.float32)
        count = int(columns[-1]) + 1
        shape = (self.size, count)
        return slice(begin, begin + count), sparse.csr_array(
            (values, columns, first_of_rows), shape
        )


def window(image: np.ndarray, rows: Part, columns: Part) -> np.ndarray:
    """A window of the resized image: means over areas where it shrinks, else linear.

    Args:
        image: uint8 ``[h, w, 3]``, the source, or as much of it from the top left as the parts'
            ``end`` says.
        rows: the window's part of the height.
        columns: and of the width.

    Returns:
        uint8 ``[rows.size, columns.size, 3]``.
    """
    if rows.target > rows.source or columns.target > columns.source:
        # From the first pixel on, not the window's: there the phase is that of the whole image.
        resized = cv2.resize(
            image[: rows.end, : columns.end],
            None,
            fx=columns.target / columns.source,
            fy=rows.target / rows.source,
        )
        return resized[_span(rows), _span(columns)]
    if (rows.target, columns.target) == (rows.source, columns.source):
        return image[_span(rows), _span(columns)]
    # OpenCV's INTER_AREA costs three times as much for each pixel, and has no windows.
    of_height, down = rows.means()
    of_width, across = columns.means()
    x = image[of_height, of_width].astype(np.float32)
    width = x.shape[1]
    x = (down @ x.reshape(len(x), -1)).reshape(rows.size, width, 3)
    x = across @ cv2.transpose(x).reshape(width, -1)
    return cv2.transpose(cv2.convertScaleAbs(x.reshape(columns.size, rows.size, 3)))


def _span(part: Part) -> slice:
    return slice(part.start, part.start + part.size)
