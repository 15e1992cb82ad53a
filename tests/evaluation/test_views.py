import dataclasses
import functools
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prelu_jax import arch, evaluation, models, pooling
from prelu_jax.arch import Arch, Conv, Dense, Logits, MaxPool, SpatialPyramid
from prelu_jax.data import augment
from tests.training.conftest import TINY, make_state

# Stride 4 and no padding: a window of the map equals the map of a separate crop.
UNPADDED = Arch(
    "unpadded",
    22,
    (
        Conv("conv1", 4, 3, stride=2),
        MaxPool("pool1", 2),
        Conv("conv2", 8, 2),
        SpatialPyramid("spp", (3, 2, 1)),
        Dense("fc1", 16, stddev=0.1),
        Logits("fc2", stddev=0.2),
    ),
)


# Jitted: otherwise every operation is a program of its own to compile.
dense_scores = jax.jit(evaluation.dense_scores, static_argnums=0)
crop_scores = jax.jit(evaluation.crop_scores, static_argnums=0)
dense_step = jax.jit(evaluation.dense_step, static_argnames="mirror")
ten_view_step = jax.jit(evaluation.ten_view_step, static_argnames="mirror")
softmax_of = jax.jit(
    lambda model, params, images: jax.nn.softmax(model.apply({"params": params}, images)),
    static_argnums=0,
)


@functools.cache
def net_and_images(net, shape, **options):
    model = models.build(net, 10, **options)
    image = jnp.zeros((1, net.image_size, net.image_size, 3))
    params = jax.jit(model.init)(jax.random.key(0), image)["params"]
    return model, params, jax.random.normal(jax.random.key(1), shape)


def softmax_of_crop(model, params, images, top, left):
    size = model.arch.image_size
    return softmax_of(model, params, images[:, top : top + size, left : left + size])


def up_to_the_pyramid(model):
    at = [isinstance(layer, SpatialPyramid) for layer in model.arch.layers].index(True)
    return model.clone(arch=dataclasses.replace(model.arch, layers=model.arch.layers[:at]))


def test_without_padding_dense_scores_are_those_of_every_crop_on_its_own():
    model, params, images = net_and_images(UNPADDED, (2, 30, 38, 3))
    expected = [
        softmax_of_crop(model, params, images, top, left)
        for top in range(0, 30 - 22 + 1, 4)
        for left in range(0, 38 - 22 + 1, 4)
    ]
    assert np.std(expected, axis=0).min() > 1e-3  # windows differ from their mean
    for scores in (dense_scores, crop_scores):
        measured = scores(model, params, images)
        np.testing.assert_allclose(measured, np.mean(expected, axis=0), atol=1e-5)


def test_crops_of_their_own_are_padded_where_windows_see_the_image_go_on():
    model, params, images = net_and_images(arch.MODEL_A_NARROW, (1, 60, 64, 3))
    expected = [softmax_of_crop(model, params, images, *at) for at in product((0, 4), (0, 4, 8))]
    measured = crop_scores(model, params, images)
    np.testing.assert_allclose(measured, np.mean(expected, axis=0), atol=1e-5)
    assert np.abs(measured - dense_scores(model, params, images)).max() > 1e-4


@pytest.mark.parametrize("net", [TINY, UNPADDED], ids=lambda net: net.name)
def test_dense_scores_are_the_mean_over_every_window_of_the_map_by_brute_force(net):
    model, params, images = net_and_images(net, (2, 40, 52, 3))
    maps = jax.jit(up_to_the_pyramid(model).apply)({"params": params}, images)
    size = {"tiny": 8, "unpadded": 4}[net.name]
    names = [layer.name for layer in net.layers if isinstance(layer, Dense | Logits)]
    (levels,) = [layer.levels for layer in net.layers if isinstance(layer, SpatialPyramid)]

    @jax.jit
    def scores_of(window):
        x = pooling.spatial_pyramid(window, levels).reshape(2, -1)
        for name in names:
            x = x @ params[name]["kernel"] + params[name]["bias"]
            if name != names[-1]:
                x = jnp.maximum(x, params[f"{name}_prelu"]["negative_slope"] * x)
        return jax.nn.softmax(x)

    maps = np.asarray(maps)
    scores = [
        scores_of(maps[:, top : top + size, left : left + size])
        for top in range(maps.shape[1] - size + 1)
        for left in range(maps.shape[2] - size + 1)
    ]
    assert len(scores) == {"tiny": 3 * 6, "unpadded": 5 * 8}[net.name]
    measured = dense_scores(model, params, images)
    np.testing.assert_allclose(measured, np.mean(scores, axis=0), atol=1e-5)


def test_an_image_of_the_crops_size_is_one_window():
    model, params, images = net_and_images(TINY, (3, 32, 32, 3))
    expected = softmax_of_crop(model, params, images, 0, 0)
    measured = evaluation.dense_scores(model, params, images)
    np.testing.assert_allclose(measured, expected, atol=1e-6)


def test_a_window_differs_from_its_crop_where_the_crop_would_be_padded_and_nowhere_else():
    model, params, images = net_and_images(TINY, (1, 48, 48, 3))
    images = np.asarray(images)
    features = jax.jit(functools.partial(up_to_the_pyramid(model).apply, {"params": params}))
    window = features(images)[0, 2:10, 2:10]  # the crop from pixel 8 on, at a stride of 4
    crop = features(images[:, 8:40, 8:40])[0]
    differs = np.abs(window - crop).max(axis=-1) > 1e-5
    assert not differs[1:6, 1:6].any()  # conv1 pads both sides; conv2, 2×2, the far one once more
    for border in (0, 6, 7):
        assert differs[border].any()
        assert differs[:, border].any()


def convolutions(function, *args):
    return str(jax.make_jaxpr(function)(*args)).count("conv_general_dilated[")


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 64)])
def test_the_convolutions_run_once_per_scale_over_images_and_mirror_images(height, width):
    state = make_state()
    images = jnp.zeros((2, height, width, 3), jnp.uint8)
    program = lambda images: evaluation.dense_step(state, {"image": images})  # noqa: E731
    assert convolutions(program, images) == 2  # TINY has two
    flops = lambda f, *args: jax.jit(f).lower(*args).cost_analysis()["flops"]  # noqa: E731
    convolve = functools.partial(up_to_the_pyramid(state.model).apply, {"params": state.params})
    once = flops(convolve, jnp.zeros((4, height, width, 3)))
    windows = (height // 4 - 7) * (width // 4 - 7)
    fully_connected = 4 * windows * 2 * (5 * 8 * 16 + 16 * 10)
    assert once + fully_connected < flops(program, images) < 1.6 * (once + fully_connected)


def test_dense_step_averages_the_image_and_its_mirror_image_less_the_stretched_mean():
    state = make_state()
    mean = jnp.broadcast_to(jnp.arange(32.0)[:, None, None], (32, 32, 3))  # darker on top
    state = state.replace(pixels=augment.PixelStatistics(mean, jnp.float32(1 / 64)))
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 40, 3)).astype(np.uint8)
    rows = np.clip((np.arange(64) + 0.5) / 2 - 0.5, 0, 31)  # pixel centres, twice as dense
    x = ((images - rows[:, None, None]) / 64).astype(np.float32)
    scores = [dense_scores(state.model, state.params, flipped) for flipped in (x, x[:, :, ::-1])]
    assert np.abs(scores[0] - scores[1]).max() > 1e-4
    batch = {"image": jnp.asarray(images)}
    measured = dense_step(state, batch)
    np.testing.assert_allclose(measured, np.mean(scores, axis=0), atol=1e-5)
    as_it_is = dense_step(state, batch, mirror=False)
    np.testing.assert_allclose(as_it_is, scores[0], atol=1e-5)


def test_at_the_crops_size_dense_and_plain_test_subtract_the_same_mean():
    mean = jnp.asarray(np.random.default_rng(0).uniform(0, 255, (32, 32, 3)), jnp.float32)
    state = make_state().replace(pixels=augment.PixelStatistics(mean, jnp.float32(1 / 64)))
    image = jnp.broadcast_to(mean[None], (1, 32, 32, 3))  # nothing is left of it
    measured = dense_step(state, {"image": image})
    nothing = softmax_of(state.model, state.params, jnp.zeros((1, 32, 32, 3)))
    np.testing.assert_allclose(measured, nothing, atol=1e-6)


def test_ten_views_are_corners_and_centre_and_their_mirror_images():
    state = make_state()
    mean = np.random.default_rng(0).uniform(90, 160, (32, 32, 3)).astype(np.float32)
    state = state.replace(pixels=augment.PixelStatistics(mean, jnp.float32(1 / 64)))
    images = np.random.default_rng(1).integers(0, 256, (3, 40, 52, 3)).astype(np.uint8)
    scores = []
    for top, left in [(0, 0), (0, 20), (8, 0), (8, 20), (4, 10)]:
        x = (images[:, top : top + 32, left : left + 32].astype(np.float32) - mean) / 64
        scores += [softmax_of(state.model, state.params, view) for view in (x, x[:, :, ::-1])]
    batch = {"image": jnp.asarray(images)}
    measured = ten_view_step(state, batch)
    np.testing.assert_allclose(measured, np.mean(scores, axis=0), atol=1e-5)
    as_they_are = ten_view_step(state, batch, mirror=False)
    np.testing.assert_allclose(as_they_are, np.mean(scores[::2], axis=0), atol=1e-5)


def test_bfloat16_scores_are_close_to_float32_ones():
    model, params, images = net_and_images(TINY, (2, 40, 40, 3))
    narrow = model.clone(dtype=jnp.bfloat16)
    expected, measured = (dense_scores(m, params, images) for m in (model, narrow))
    assert measured.dtype == jnp.float32
    np.testing.assert_allclose(measured.sum(axis=-1), 1, atol=1e-5)
    assert 0 < np.abs(measured - expected).max() < 0.02


def test_bfloat16_scores_of_hundreds_of_windows_are_close_to_float32_ones():
    # Two rectifiers after the pyramid and more than 208 rows: see test_rectifiers.
    hidden = (Dense("fc1", 32, stddev=0.3), Dense("fc2", 32, stddev=0.3))
    net = dataclasses.replace(UNPADDED, layers=(*UNPADDED.layers[:-2], *hidden, Logits("fc3", 0.2)))
    model, params, images = net_and_images(net, (4, 64, 64, 3), rectifier="relu")
    expected, measured = (
        dense_scores(m, params, images) for m in (model, model.clone(dtype=jnp.bfloat16))
    )
    assert np.abs(measured - expected).max() < 0.02


def test_bad_input_is_named():
    model, params, images = net_and_images(TINY, (1, 31, 40, 3))
    with pytest.raises(ValueError, match="images are 31×40, expected no side below the 32 pixels"):
        evaluation.dense_scores(model, params, images)
    with pytest.raises(ValueError, match="images are 31×40, smaller than a 32×32 crop"):
        evaluation.ten_view_step(make_state(), {"image": images})
    layers = tuple(layer for layer in TINY.layers if not isinstance(layer, SpatialPyramid))
    flat = models.build(Arch("flat", 32, layers), 10)
    with pytest.raises(ValueError, match="flat has 0 spatial pyramids, expected one"):
        evaluation.dense_scores(flat, params, jnp.zeros((1, 32, 32, 3)))
