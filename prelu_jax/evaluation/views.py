"""Scores averaged over many views of an image: ten crops, or all windows of the last map."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from prelu_jax import pooling
from prelu_jax.arch import MaxPool, SpatialPyramid
from prelu_jax.data import augment
from prelu_jax.evaluation.exact import EvaluationState
from prelu_jax.models import RectifierNet

# Shorter sides of Table 4. The paper does not list the scales that its "multi-scale" combines.
SCALES = (256, 384, 480)


def dense_scores(model: RectifierNet, params: Any, images_bhwc: jax.Array) -> jax.Array:
    """Return softmax scores, averaged over every window of the last map (He et al. 2015, §3).

    The convolutions run once over whole images. A window of the last map has the size of the last
    map of a crop of ``arch.image_size``, 14×14 for models A to C. Each window is pooled by the
    pyramid and classified. Beyond a window's border is more image, where a separate crop would have
    padding, so the scores of the two differ if the convolutions pad.

    Args:
        model: a network with a spatial pyramid between its convolutions and its classifier.
        params: its parameters.
        images_bhwc: normalised images of one shape, neither side below ``arch.image_size``.

    Returns:
        float32 ``[b, classes]``.

    Raises:
        ValueError: the network has no pyramid, or more than one, or the images are too small.
    """
    size = _checked_size(model, images_bhwc)
    b, channels = len(images_bhwc), images_bhwc.shape[-1]
    features, pyramid, classifier = _parts(model)
    variables = {"params": params}
    crop = jax.ShapeDtypeStruct((1, size, size, channels), images_bhwc.dtype)
    window = jax.eval_shape(features.apply, variables, crop).shape[1]
    maps: Any = features.apply(variables, images_bhwc)
    pooled = pooling.sliding_pyramid(maps, pyramid.levels, window)
    scores: Any = classifier.apply(variables, pooled.reshape(-1, *pooled.shape[-2:]))
    return jax.nn.softmax(scores).reshape(b, -1, model.num_classes).mean(axis=1)


def _parts(model: RectifierNet) -> tuple[RectifierNet, SpatialPyramid, RectifierNet]:
    """Return the network before the pyramid, the pyramid, and the network after it.

    Parameters are named after layers, so both parts can read the parameters of the whole.
    """
    layers = model.arch.layers
    pyramids = [layer for layer in layers if isinstance(layer, SpatialPyramid)]
    if len(pyramids) != 1:
        raise ValueError(
            f"dense_scores: {model.arch.name} has {len(pyramids)} spatial pyramids, expected one; "
            "test it with ten_view_step."
        )
    at = layers.index(pyramids[0])
    before, after = (
        model.clone(arch=dataclasses.replace(model.arch, layers=part))
        for part in (layers[:at], layers[at + 1 :])
    )
    return before, pyramids[0], after


def crop_scores(model: RectifierNet, params: Any, images_bhwc: jax.Array) -> jax.Array:
    """Return softmax scores averaged over the windows of `dense_scores`, each as its own crop.

    The difference is padding: a crop is padded where a window is followed by more image.

    Args:
        model, params, images_bhwc: as `dense_scores`.

    Returns:
        float32 ``[b, classes]``.

    Raises:
        ValueError: as `dense_scores`.
    """
    size = _checked_size(model, images_bhwc)
    features, _, _ = _parts(model)
    steps = (
        layer.window if isinstance(layer, MaxPool) else getattr(layer, "stride", 1)
        for layer in features.arch.layers
    )
    step = math.prod(steps)
    h, w = images_bhwc.shape[1:3]
    places = itertools.product(range(0, h - size + 1, step), range(0, w - size + 1, step))

    def score(place: jax.Array) -> jax.Array:
        starts = (0, place[0], place[1], 0)
        crops = jax.lax.dynamic_slice(images_bhwc, starts, (len(images_bhwc), size, size, 3))
        logits: Any = model.apply({"params": params}, crops)
        return jax.nn.softmax(logits)

    scores: jax.Array = jax.lax.map(score, jnp.array([*places]))
    return scores.mean(axis=0)


def _checked_size(model: RectifierNet, images_bhwc: jax.Array) -> int:
    """Return the side of the network's images, after a check that the given ones are as large.

    Raises:
        ValueError: the images are smaller.
    """
    size = model.arch.image_size
    h, w = images_bhwc.shape[1:3]
    if min(h, w) < size:
        raise ValueError(
            f"dense_scores: images are {h}×{w}, expected no side below the {size} pixels of "
            f"{model.arch.name}; resize them."
        )
    return size


def dense_step(
    state: EvaluationState,
    batch: dict[str, jax.Array],
    *,
    axis_name: str | None = None,
    mirror: bool = True,
) -> jax.Array:
    """Return `dense_scores` averaged over every image and its mirror image.

    Args:
        state: a `training.state.TrainState`, or a `runs.finished.InferenceState`.
        batch: ``image``: whole images of one shape, uint8 ``[b, h, w, 3]``.
        axis_name: the mapped axis over which devices share the batch; None for one device.
        mirror: False for networks that were trained without mirror images, e.g. on digits.

    Returns:
        float32 ``[b, classes]``, for the images of all devices in order.

    Raises:
        ValueError: as `dense_scores`.
    """
    return _of_whole_images(dense_scores, state, batch, axis_name, mirror)


def crops_step(
    state: EvaluationState,
    batch: dict[str, jax.Array],
    *,
    axis_name: str | None = None,
    mirror: bool = True,
) -> jax.Array:
    """Return `crop_scores` averaged over images and mirror images; otherwise as `dense_step`."""
    return _of_whole_images(crop_scores, state, batch, axis_name, mirror)


def _of_whole_images(
    scores_of: Callable[..., jax.Array],
    state: EvaluationState,
    batch: dict[str, jax.Array],
    axis_name: str | None,
    mirror: bool,
) -> jax.Array:
    images = batch["image"]
    x = augment.normalize(images, _resized(state.pixels, images.shape[1:]))
    scores = scores_of(state.model, state.params, _mirrored_too(x) if mirror else x)
    return _gather(_mean_of_views(scores, len(x)), axis_name)


def _resized(pixels: augment.PixelStatistics, shape: tuple[int, ...]) -> augment.PixelStatistics:
    """Return the statistics with the mean image of crops stretched over a whole image.

    The paper does not define the mean that it subtracts from images larger than crops. SPP-net
    warps the mean image (He et al. 2014), as here. For an image of the crop's size this is the mean
    image of training.
    """
    return pixels._replace(mean=jax.image.resize(pixels.mean, shape, "linear"))


def ten_view_step(
    state: EvaluationState,
    batch: dict[str, jax.Array],
    *,
    axis_name: str | None = None,
    mirror: bool = True,
) -> jax.Array:
    """Return softmax scores averaged over four corners, the centre and their mirror images.

    Args:
        state, batch, axis_name, mirror: as `dense_step`; without mirror images, five views.

    Returns:
        float32 ``[b, classes]``, for the images of all devices in order.

    Raises:
        ValueError: the images are smaller than a crop.
    """
    crops = _five_crops(batch["image"], state.model.arch.image_size)
    x = augment.normalize(crops, state.pixels)
    views = _mirrored_too(x) if mirror else x
    logits: Any = state.model.apply({"params": state.params}, views)
    scores = jax.nn.softmax(logits)
    return _gather(_mean_of_views(scores, len(batch["image"])), axis_name)


def _five_crops(images_bhwc: jax.Array, size: int) -> jax.Array:
    """Cut corners and centre, crop by crop: ``[b, h, w, c] -> [5 · b, size, size, c]``."""
    h, w = images_bhwc.shape[1:3]
    if min(h, w) < size:
        raise ValueError(f"ten_view_step: images are {h}×{w}, smaller than a {size}×{size} crop.")
    down, right = h - size, w - size
    places = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
    return jnp.concatenate(
        [images_bhwc[:, top : top + size, left : left + size] for top, left in places]
    )


def _mirrored_too(x_bhwc: jax.Array) -> jax.Array:
    return jnp.concatenate([x_bhwc, x_bhwc[:, :, ::-1]])


def _mean_of_views(scores: jax.Array, images: int) -> jax.Array:
    """Average over views: ``[views · images, classes] -> [images, classes]``."""
    return scores.reshape(-1, images, scores.shape[-1]).mean(axis=0)


def _gather(scores: jax.Array, axis_name: str | None) -> jax.Array:
    return jax.lax.all_gather(scores, axis_name, tiled=True) if axis_name else scores
