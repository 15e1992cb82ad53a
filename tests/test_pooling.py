import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from prelu_jax import pooling

# Jitted: otherwise every operation of every bin is a program of its own to compile.
spatial_pyramid = jax.jit(pooling.spatial_pyramid, static_argnums=1)
sliding_pyramid = jax.jit(pooling.sliding_pyramid, static_argnums=(1, 2))


@pytest.mark.parametrize("window", [2, 3])
def test_max_pool_is_reduce_window(window):
    x = jax.random.normal(jax.random.key(0), (2, 11, 8, 3)) - 5  # every value is negative
    sizes = (1, window, window, 1)
    expected = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, sizes, sizes, "VALID")
    np.testing.assert_array_equal(pooling.max_pool(x, window), expected)


@pytest.mark.parametrize("size", range(1, 41))
def test_pyramid_bins_are_those_of_spp_nets_appendix(size):
    for level in (1, 2, 3, 4, 6, 7):
        bins = pooling.pyramid_bins(size, level)
        assert bins == [
            (math.floor(i * size / level), math.ceil((i + 1) * size / level)) for i in range(level)
        ]
        covered = set().union(*(range(*b) for b in bins))
        assert covered == set(range(size))


def test_the_bins_where_spp_nets_two_rules_differ():
    assert pooling.pyramid_bins(14, 3) == [(0, 5), (4, 10), (9, 14)]


@pytest.mark.parametrize(("h", "w"), [(14, 14), (13, 18), (6, 40), (2, 3)])
def test_spatial_pyramid_is_the_maximum_of_every_bin(h, w):
    x = np.random.default_rng(h).normal(size=(2, h, w, 3)).astype(np.float32) - 5
    pooled = spatial_pyramid(jnp.asarray(x), (7, 3, 2, 1))
    expected = [
        x[:, top:bottom, left:right].max(axis=(1, 2))
        for n in (7, 3, 2, 1)
        for top, bottom in pooling.pyramid_bins(h, n)
        for left, right in pooling.pyramid_bins(w, n)
    ]
    assert pooled.shape == (2, 63, 3)
    np.testing.assert_array_equal(pooled, np.stack(expected, axis=1))


def touched(size, level):
    """Return which pixels [y, y + 1) each of `level` equal intervals meets, [level, size]."""
    i, y = np.ogrid[:level, :size]
    return ((y + 1) * level > i * size) & (y * level < (i + 1) * size)


def test_bins_are_the_pixels_that_the_real_intervals_touch():
    for size in range(6, 41):
        for level in (7, 6, 3, 2, 1):
            inside = np.zeros((level, size), bool)
            for row, (start, stop) in zip(inside, pooling.pyramid_bins(size, level), strict=True):
                row[start:stop] = True
            np.testing.assert_array_equal(inside, touched(size, level))


@pytest.mark.parametrize(
    ("h", "w", "levels"),
    [(14, 14, (7, 3, 2, 1)), (18, 18, (6, 3, 2, 1)), (6, 40, (7, 3, 2, 1)), (40, 7, (6, 3, 2, 1))],
)
def test_the_papers_pyramids_and_their_gradients_pixel_by_pixel_after_a_prelu(h, w, levels):
    rng = np.random.default_rng(h)
    x = rng.normal(size=(1, h, w, 2)).astype(np.float32) - 5  # every value is negative
    bins = [
        np.outer(rows, columns)
        for n in levels
        for rows in touched(h, n)
        for columns in touched(w, n)
    ]
    cotangent = rng.normal(size=(1, len(bins), 2)).astype(np.float32)
    expected, gradient = np.empty_like(cotangent), np.zeros_like(x)
    for i, inside in enumerate(bins):
        for channel in range(2):
            masked = np.where(inside, x[0, :, :, channel], -np.inf)
            y, column = np.unravel_index(masked.argmax(), masked.shape)
            expected[0, i, channel] = masked.max()
            gradient[0, y, column, channel] += cotangent[0, i, channel]

    @jax.jit
    def pooled_and_pulled(x):
        pooled, pull = jax.vjp(lambda x: pooling.spatial_pyramid(x, levels), x)
        return pooled, pull(cotangent)[0]

    pooled, pulled = pooled_and_pulled(x)
    np.testing.assert_array_equal(pooled, expected)
    np.testing.assert_allclose(pulled, gradient, rtol=1e-5, atol=1e-6)


def test_gradients_pass_negative_activations():
    values = -0.5 * jax.random.permutation(jax.random.key(0), jnp.arange(1.0, 71.0))
    x = values.reshape(1, 5, 7, 2)  # distances are larger than the step of the finite differences
    max_pool = jax.jit(pooling.max_pool, static_argnums=1)
    check_grads(lambda x: spatial_pyramid(x, (3, 2, 1)), (x,), order=1, eps=1e-2, rtol=1e-2)
    check_grads(lambda x: max_pool(x, 2), (x,), order=1, eps=1e-2, rtol=1e-2)


@pytest.mark.parametrize("window", [8, 14])  # at 8, bins of one level are 3, 4 and 3 long
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_sliding_pyramid_is_the_pyramid_of_every_window(window, dtype):
    h, w, levels = window + 2, window + 3, (7, 3, 2, 1)
    x = (jax.random.normal(jax.random.key(0), (2, h, w, 3)) - 5).astype(dtype)
    measured = sliding_pyramid(x, levels, window)
    assert (measured.shape, measured.dtype) == ((2, 3, 4, 63, 3), dtype)
    x = np.asarray(x)
    for top in range(3):
        for left in range(4):
            part = x[:, top : top + window, left : left + window]
            expected = spatial_pyramid(part, levels)
            np.testing.assert_array_equal(measured[:, top, left], expected)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="1×4 map is smaller than one 2×2"):
        pooling.max_pool(jnp.ones((1, 1, 4, 1)), 2)
    with pytest.raises(ValueError, match=r"max_pool: x has shape \(4, 4\), expected maps"):
        pooling.max_pool(jnp.ones((4, 4)), 2)
    with pytest.raises(ValueError, match="max_pool: window is 0, expected a positive integer"):
        pooling.max_pool(jnp.ones((1, 4, 4, 1)), 0)
    with pytest.raises(ValueError, match=r"levels are \(0,\)"):
        pooling.spatial_pyramid(jnp.ones((1, 4, 4, 1)), (0,))
    with pytest.raises(ValueError, match=r"sliding_pyramid: levels are \(\)"):
        pooling.sliding_pyramid(jnp.ones((1, 4, 4, 1)), (), 2)
    with pytest.raises(ValueError, match="3×4 map is smaller than one 4×4 window"):
        pooling.sliding_pyramid(jnp.ones((1, 3, 4, 1)), (1,), 4)


def test_equal_maxima_share_the_gradient():
    x = jnp.array([[3.0, 1.0], [3.0, 3.0]]).reshape(1, 2, 2, 1)
    given = jax.jit(jax.grad(lambda x: pooling.max_pool(x, 2).sum()))(x)
    np.testing.assert_array_equal(given.reshape(2, 2), [[0.25, 0], [0.25, 0.5]])
    distinct = jnp.arange(36.0).reshape(1, 6, 6, 1)
    given = jax.jit(jax.grad(lambda x: pooling.max_pool(x, 3).sum()))(distinct)
    expected = np.zeros((6, 6))
    expected[2::3, 2::3] = 1
    np.testing.assert_array_equal(given.reshape(6, 6), expected)
