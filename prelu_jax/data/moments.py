"""The mean image of a training set and the covariance of its colours, kept with the dataset."""

import shlex
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prelu_jax import files


class PixelMoments(NamedTuple):
    """What is known of pixels in 0..255, in float64.

    Attributes:
        images: how many were seen; scalar.
        mean: the mean image ``[h, w, 3]``.
        variance: about the mean image, averaged over places and channels; scalar.
        covariance: of red, green and blue ``[3, 3]``, over all pixels of all images.
    """

    images: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    covariance: np.ndarray


def measure(batches: Iterable[dict[str, np.ndarray]]) -> PixelMoments:
    """The moments of masked batches of images, ``image`` and ``mask`` as of `eval_batches`.

    Sums of whole numbers are exact in float64 up to 2⁵³, which is 2.7 million images of 224 pixels:
    until then no order of summation makes a difference.

    Raises:
        ValueError: no image is left by the masks.
    """
    count, total, products = 0, np.zeros(()), np.zeros((3, 3))
    for batch in batches:
        images = batch["image"][batch["mask"] > 0].astype(np.float64)
        pixels = images.reshape(-1, 3)
        count += len(images)
        total = total + images.sum(axis=0)
        products += pixels.T @ pixels
    if not count:
        raise ValueError("There is no image to measure: none is given, or none decodes.")
    mean = total / count
    second = products / (count * mean[..., 0].size)  # E[xxᵀ]
    colour = mean.mean(axis=(0, 1))
    variance = np.trace(second) / 3 - np.mean(np.square(mean))
    return PixelMoments(np.asarray(count), mean, variance, second - np.outer(colour, colour))


def path(folder: Path, split: str, size: int, side: int) -> Path:
    """Where the moments of a split's centre crops lie, in the folder of a prepared dataset.

    Args:
        folder: of the dataset's version.
        split: in TFDS's syntax.
        size: side of the crops.
        side: shorter side of the images that they were cut from.
    """
    return folder / f"pixel_moments_{split}_{size}_of_{side}.npz"


def command(dataset: str, split: str, size: int, side: int, data_dir: str) -> str:
    """The command that measures a split and writes `path`, for a shell."""
    words = ["python", "-m", "prelu_jax.data.statistics", f"--dataset={dataset}"]
    words += [f"--size={size}", f"--side={side}"]
    words += [f"--split={split}"] if split != "train" else []
    words += [f"--data_dir={data_dir}"] if data_dir else []
    return shlex.join(words)


def save(file: Path, moments: PixelMoments) -> None:
    """Writes the moments, whole or not at all; the same moments give the same bytes."""
    with files.replacing(file) as stream:
        np.savez(stream, **moments._asdict())


def load(file: Path, size: int) -> PixelMoments:
    """The moments that `save` wrote, of crops ``size`` pixels wide.

    Raises:
        ValueError: the file is damaged, or of other crops.
    """
    try:
        with np.load(file) as arrays:
            found = PixelMoments(**arrays)
        if found.mean.shape != (size, size, 3):
            raise ValueError(f"a mean image of shape {found.mean.shape}, not {(size, size, 3)}")
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} cannot be read ({error}): remove it and measure anew.") from error
    return found
