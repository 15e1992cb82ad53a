"""Parts of resized images, computed only from the pixels that they depend on.

Resizing the whole image and then cropping gives the same pixels, except for rounding: where images
shrink, a mean in float32 close to a half may be rounded to the other side.
"""

import dataclasses
import math

import numpy as np
from scipy import sparse

from prelu_jax import extras

with extras.needed(__name__, "train"):
    import cv2

_NOTHING = 1e-6  # pixels: a smaller overlap is a rounding error


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of one side of a resized image.

    Attributes:
        source: pixels of the side before resizing.
        target: pixels of the side after resizing.
        start: first pixel of the part, after resizing.
        size: pixels of the part, after resizing.
    """

    source: int
    target: int
    start: int
    size: int

    @property
    def end(self) -> int:
        """Number of source pixels, counted from the first, that suffice to compute the part."""
        scale = self.target / self.source
        end = min(self.source, math.ceil((self.start + self.size) / scale) + 1)
        # OpenCV copies instead of resizing if the length would stay the same.
        copied = scale > 1 and round(end * scale) == end
        return self.source if copied else end

    def means(self) -> tuple[slice, sparse.csr_array]:
        """Return the part as weighted means of source pixels, for a side that shrinks.

        Each pixel is the mean of the source over the interval that it covers.

        Returns:
            A slice of the source, and the weights of its pixels, float32 ``[size, slice]``. The
            product of the weights and the slice is the part.
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
    """Return a window of the resized image: area means where it shrinks, else linear.

    Args:
        image: uint8 ``[h, w, 3]``, the source, or at least its first ``rows.end`` rows and
            ``columns.end`` columns.
        rows: the window's part of the height.
        columns: the window's part of the width.

    Returns:
        uint8 ``[rows.size, columns.size, 3]``.
    """
    if rows.target > rows.source or columns.target > columns.source:
        # Start at the image's first pixel, not the window's, to sample at the same positions.
        resized = cv2.resize(
            image[: rows.end, : columns.end],
            None,
            fx=columns.target / columns.source,
            fy=rows.target / rows.source,
        )
        return resized[_span(rows), _span(columns)]
    if (rows.target, columns.target) == (rows.source, columns.source):
        return image[_span(rows), _span(columns)]
    # OpenCV's INTER_AREA takes three times as long per pixel and cannot compute a window alone.
    source_rows, down = rows.means()
    source_columns, across = columns.means()
    x = image[source_rows, source_columns].astype(np.float32)
    width = x.shape[1]
    x = (down @ x.reshape(len(x), -1)).reshape(rows.size, width, 3)
    x = across @ cv2.transpose(x).reshape(width, -1)
    pixels: np.ndarray = cv2.convertScaleAbs(x.reshape(columns.size, rows.size, 3))
    return cv2.transpose(pixels)


def _span(part: Part) -> slice:
    return slice(part.start, part.start + part.size)
