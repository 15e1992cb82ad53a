"""Tests that a window equals the same part of the whole image resized by OpenCV."""

import cv2
import numpy as np
import pytest

from prelu_jax.data.resizing import Part, window
from tests.data.conftest import resize_shorter_side

SIZE = 24


def windows(image, side, count):
    """Return windows cut from the fewest rows and columns, and from the whole resized image."""
    whole = resize_shorter_side(image, side)
    rng = np.random.default_rng(side)
    corners = [(0, 0), tuple(n - SIZE for n in whole.shape[:2])]
    corners += [
        tuple(int(rng.integers(n - SIZE + 1)) for n in whole.shape[:2]) for _ in range(count)
    ]
    for top, left in corners:
        rows, columns = (
            Part(n, m, start, SIZE)
            for n, m, start in zip(image.shape, whole.shape, (top, left), strict=False)
        )
        part = image[: rows.end, : columns.end]
        yield window(part, rows, columns), whole[top : top + SIZE, left : left + SIZE]


@pytest.mark.parametrize("shape", [(75, 100), (100, 75), (76, 76), (81, 290)])
def test_a_window_of_a_smaller_image_is_off_by_rounding_at_most(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    different = []
    for side in (24, 25, 31, 38, 50, 60, 73, 74):
        for ours, expected in windows(image, side, 5):
            difference = ours.astype(int) - expected
            assert abs(difference).max() <= 1
            # Many means of four pixels end in a half, which OpenCV rounds up.
            different += [(difference != 0).mean()] if min(shape) % side else []
    assert np.mean(different) < 1e-3


@pytest.mark.parametrize("shape", [(75, 100), (100, 75), (24, 24), (25, 91)])
def test_a_window_of_an_image_that_is_not_smaller_is_the_same(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    side = min(shape)
    for larger in (side, side + 1, 77, 101, 128, 3 * side + 2):
        for ours, expected in windows(image, larger, 5):
            np.testing.assert_array_equal(ours, expected)


def test_a_window_does_not_depend_on_the_threads_of_opencv():
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    parts = Part(90, 70, 20, SIZE), Part(120, 93, 40, SIZE)
    before = cv2.getNumThreads()
    alone = window(image, *parts)
    try:
        cv2.setNumThreads(4)
        np.testing.assert_array_equal(window(image, *parts), alone)
    finally:
        cv2.setNumThreads(before)
