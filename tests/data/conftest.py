"""Reference for windows of resized images."""

import cv2
import numpy as np


def resize_shorter_side(image: np.ndarray, side: int) -> np.ndarray:
    """Resize the whole image by OpenCV, with its shorter side at ``side`` pixels."""
    height, width = image.shape[:2]
    if min(height, width) == side:
        return image
    scale = side / min(height, width)
    size = (max(side, round(width * scale)), max(side, round(height * scale)))
    # INTER_LINEAR alone does not antialias when it shrinks.
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
