"""Operations on uint8 crops inside the jitted step: normalise, flip, alter colours."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prelu_jax import streams
from prelu_jax.data.moments import PixelMoments

_NO_COLOUR = np.zeros((3, 3), np.float32)


class PixelStatistics(NamedTuple):
    """Statistics that turn pixels into inputs, ``(pixel - mean) * scale``, and alter colours.

    Attributes:
        mean: the mean training image, float32 ``[h, w, 3]`` in 0..255 (He et al. 2015, §3).
        scale: float32 scalar; 1 leaves inputs in [-128, 128] as the paper does.
        colour: covariance of red, green and blue in 0..1 over the training set's pixels, float32
            ``[3, 3]``; zero if it is not known.
    """

    mean: jax.Array
    scale: jax.Array
    colour: jax.Array | np.ndarray = _NO_COLOUR


def pixel_statistics(moments: PixelMoments, rms: float) -> PixelStatistics:
    """Return the statistics of a run from the moments of its training images.

    Args:
        moments: moments of the training set's pixels.
        rms: root mean square that the inputs shall have; 0 for a scale of 1.

    Raises:
        ValueError: ``rms`` is above 0, but all training images are the same.
    """
    if rms and not moments.variance > 0:
        raise ValueError(
            f"config.pixel_rms is {rms:g}, expected 0: all training images are the same, so no "
            "scale can give them a root mean square."
        )
    scale = rms / np.sqrt(moments.variance) if rms else 1.0
    arrays = (moments.mean, scale, moments.covariance / 255**2)
    return PixelStatistics(*(jnp.asarray(array, jnp.float32) for array in arrays))


def normalize(images_bhwc: jax.Array, pixels: PixelStatistics) -> jax.Array:
    """Return uint8 images as float32 images about zero."""
    return (images_bhwc.astype(jnp.float32) - pixels.mean) * pixels.scale


def random_flip(
    key: jax.Array, images_bhwc: jax.Array, first_example: jax.typing.ArrayLike
) -> jax.Array:
    """Mirror each image with probability 1/2, drawn from its place in the global batch."""
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
    """Add one random colour to all pixels of an image (Krizhevsky et al. 2012, §4.1).

    The paper adds ``[p₁, p₂, p₃][a₁λ₁, a₂λ₂, a₃λ₃]ᵀ``, where pᵢ and λᵢ are the eigenvectors and
    eigenvalues of the covariance of RGB, C = PΛPᵀ, and aᵢ ~ N(0, std²) is drawn once per image.
    That sum is PΛa. It has the same distribution as Ca = PΛPᵀa, which is computed here, because Pᵀa
    has the same distribution as a. λ has the unit of squared pixels: for pixels in 0..1, as here,
    the colour is a few of 255 levels; for pixels in 0..255 it would be 255 times larger.

    Args:
        key: key of the whole batch.
        x_bhwc: normalised images.
        pixels: the statistics that the images were normalised with, and the covariance.
        std: standard deviation of a; 0.1 in the paper.
        first_example: index of the first image in the global batch.
    """
    keys = streams.by_example(key, x_bhwc.shape[0], first_example)
    a = std * jax.vmap(lambda k: jax.random.normal(k, (3,), jnp.float32))(keys)
    colours = jnp.sum(a[:, :, None] * pixels.colour, axis=1)  # Ca, as C is symmetric
    return x_bhwc + (255 * pixels.scale * colours)[:, None, None, :]
