"""What the device does to uint8 crops in the jitted step: subtract the mean, flip, recolour."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prelu_jax import streams
from prelu_jax.data.moments import PixelMoments

_NO_COLOUR = np.zeros((3, 3), np.float32)


class PixelStatistics(NamedTuple):
    """What turns pixels into inputs, ``(pixel - mean) * scale``, and how their colours vary.

    Attributes:
        mean: the mean training image, float32 ``[h, w, 3]`` in 0..255 (He et al. 2015, §3).
        scale: float32 scalar; 1 leaves inputs in [-128, 128] as the paper does.
        colour: covariance of red, green and blue in 0..1 over the training set's pixels, float32
            ``[3, 3]``; zero where it is not known.
    """

    mean: jax.Array
    scale: jax.Array
    colour: jax.Array | np.ndarray = _NO_COLOUR


def pixel_statistics(moments: PixelMoments, rms: float) -> PixelStatistics:
    """The statistics by which a run sees images of such moments.

    Args:
        moments: of the training set.
        rms: what the inputs' root mean square shall be; 0 for a scale of 1.

    Raises:
        ValueError: a root mean square is asked for, and all images are the same one.
    """
    if rms and not moments.variance > 0:
        raise ValueError(
            f"config.pixel_rms is {rms:g}, expected 0: the training images do not vary, and no "
            "scale gives them a root mean square."
        )
    scale = rms / np.sqrt(moments.variance) if rms else 1.0
    arrays = (moments.mean, scale, moments.covariance / 255**2)
    return PixelStatistics(*(jnp.asarray(array, jnp.float32) for array in arrays))


def normalize(images_bhwc: jax.Array, pixels: PixelStatistics) -> jax.Array:
    """uint8 images to float32 ones about zero."""
    return (images_bhwc.astype(jnp.float32) - pixels.mean) * pixels.scale


def random_flip(
    key: jax.Array, images_bhwc: jax.Array, first_example: jax.typing.ArrayLike
) -> jax.Array:
    """Mirrors half of the images, each by a coin of its own place in the global batch."""
    keys = streams.by_example(key, images_bhwc.shape[0], first_example)
    mirrored = jax.vmap(lambda k: jax.random.bernoulli(k, jnp.float32(0.5)))(keys)
    return jnp.where(mirrored[:, None, None, None], images_bhwc[:, :, ::-1], images_bhwc)


def alter_colour(
    key: jax.Array,
    x_bhwc: jax.Array,
    pixels: PixelStatistics,
    std: float,
    first_example: jax.typing.ArrayLike,
) -> jax.Array:
    """Adds one random colour to all pixels of an image (Krizhevsky et al. 2012, §4.1).

    The paper adds ``[p₁, p₂, p₃][a₁λ₁, a₂λ₂, a₃λ₃]ᵀ``, where pᵢ and λᵢ are the eigenvectors and
    eigenvalues of the covariance of RGB, C = PΛPᵀ, and aᵢ ~ N(0, std²) once for the image. That is
    PΛa, which is distributed as Ca = PΛPᵀa: Pᵀa is as good a draw as a. λ is a square of the
    pixels' unit: in 0..1, as here, the colour is a few of 255 levels; in 0..255 it would be 255
    times that.

    Args:
        key: of the whole batch.
        x_bhwc: normalised images.
        pixels: what they were normalised with, and the covariance.
        std: of a; 0.1 in the paper.
        first_example: the place of the first image in the global batch.
    """
    keys = streams.by_example(key, x_bhwc.shape[0], first_example)
    a = std * jax.vmap(lambda k: jax.random.normal(k, (3,), jnp.float32))(keys)
    colours = jnp.sum(a[:, :, None] * pixels.colour, axis=1)  # Ca, C being symmetric
    return x_bhwc + (255 * pixels.scale * colours)[:, None, None, :]
