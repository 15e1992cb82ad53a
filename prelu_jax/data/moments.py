"""The mean image of a training set and the covariance of its colours, stored with the dataset."""

import shlex
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prelu_jax import files


class PixelMoments(NamedTuple):
    """Moments of pixels in 0..255, in float64.

    Attributes:
        images: number of images; scalar.
        mean: the mean image ``[h, w, 3]``.
        variance: variance about the mean image, averaged over positions and channels; scalar.
        covariance: covariance of red, green and blue ``[3, 3]``, over all pixels of all images.
    """

    images: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    covariance: np.ndarray


def measure(batches: Iterable[dict[str, np.ndarray]]) -> PixelMoments:
    """Return the moments of masked batches of images, as `pipeline.eval_batches` yields them.

    Sums of integers are exact in float64 up to 2⁵³, so the order of summation makes no difference
    up to 2.7 million images of 224 pixels.

    Raises:
        ValueError: the masks leave no image.
    """
    count, total, products = 0, np.zeros(()), np.zeros((3, 3))
    for batch in batches:
        images = batch["image"][batch["mask"] > 0].astype(np.float64)
        pixels = images.reshape(-1, 3)
        count += len(images)
        total = total + images.sum(axis=0)
        products += pixels.T @ pixels
    if not count:
        raise ValueError("There is no image to measure: the split is empty, or no image decodes.")
    mean = total / count
    second = products / (count * mean[..., 0].size)  # E[xxᵀ]
    colour = mean.mean(axis=(0, 1))
    variance = np.trace(second) / 3 - np.mean(np.square(mean))
    return PixelMoments(np.asarray(count), mean, variance, second - np.outer(colour, colour))


def path(folder: Path, split: str, size: int, side: int) -> Path:
    """Return the file for the moments of a split's centre crops, in the dataset's folder.

    Args:
        folder: folder of the dataset's version.
        split: split in TFDS's syntax.
        size: side of the crops.
        side: shorter side of the images from which they were cut.
    """
    return folder / f"pixel_moments_{split}_{size}_of_{side}.npz"


def command(dataset: str, split: str, size: int, side: int, data_dir: str) -> str:
    """Return the shell command that measures a split and writes the file of `path`."""
    words = ["python", "-m", "prelu_jax.data.statistics", f"--dataset={dataset}"]
    words += [f"--size={size}", f"--side={side}"]
    words += [f"--split={split}"] if split != "train" else []
    words += [f"--data_dir={data_dir}"] if data_dir else []
    return shlex.join(words)


def save(file: Path, moments: PixelMoments) -> None:
    """Write the moments, completely or not at all; equal moments give equal bytes."""
    with files.replacing(file) as stream:
        np.savez(stream, **moments._asdict())


def load(file: Path, size: int) -> PixelMoments:
    """Return the moments that `save` wrote, of crops ``size`` pixels wide.

    Raises:
        ValueError: the file is damaged, or for another crop size.
    """
    try:
        with np.load(file) as arrays:
            moments = PixelMoments(**arrays)
        if moments.mean.shape != (size, size, 3):
            raise ValueError(f"a mean image of shape {moments.mean.shape}, not {(size, size, 3)}")
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{file} cannot be read ({error}): remove it and measure again."
        ) from error
    return moments
