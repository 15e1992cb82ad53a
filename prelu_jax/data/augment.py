"""What the device does to uint8 crops, inside the jitted step: subtract the mean, flip."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class PixelStatistics(NamedTuple):
    """What turns pixels into inputs: ``(pixel - mean) * scale``.

    Attributes:
        mean: the mean training image, float32 ``[h, w, 3]`` in 0..255 (He et al. 2015, §3).
        scale: float32 scalar; 1 leaves inputs in [-128, 128] as the paper does.
    """

    mean: jax.Array
    scale: jax.Array


def pixel_statistics(batches: Iterable[dict[str, np.ndarray]], rms: float) -> PixelStatistics:
    """The statistics of masked batches of images, accumulated in float64.

    Args:
        batches: ``image`` and ``mask`` as `pipeline.eval_batches` yields them.
        rms: what the inputs' root mean square shall be; 0 for a scale of 1.
    """
    count, total, squares = 0.0, np.zeros(()), np.zeros(())
    for batch in batches:
        images = batch["image"][batch["mask"] > 0].astype(np.float64)
        count += len(images)
        total = total + images.sum(axis=0)
        squares = squares + np.square(images).sum(axis=0)
    mean = total / count
    scale = rms / np.sqrt(np.mean(squares / count - np.square(mean))) if rms else 1.0
    return PixelStatistics(jnp.asarray(mean, jnp.float32), jnp.asarray(scale, jnp.float32))


def normalize(images_bhwc: jax.Array, pixels: PixelStatistics) -> jax.Array:
    """uint8 images to float32 ones about zero."""
    return (images_bhwc.astype(jnp.float32) - pixels.mean) * pixels.scale


def random_flip(
    key: jax.Array, images_bhwc: jax.Array, first_example: jax.typing.ArrayLike
) -> jax.Array:
    """Mirrors half of the images, each by a coin of its own place in the global batch."""
    examples = jnp.arange(images_bhwc.shape[0]) + first_example
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, examples)
    mirrored = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(mirrored[:, None, None, None], images_bhwc[:, :, ::-1], images_bhwc)
