import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prelu_jax import maxima, moment_maps, pooling, rectifiers
from prelu_jax.arch import MaxPool, SpatialPyramid


def gaussians(variances, correlation, draws, seed=0):
    """Draw equally correlated Gaussians, [draws, *variances.shape]."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(draws,) + (1,) * variances.ndim)
    own = rng.normal(size=(draws, *variances.shape))
    z = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
    return np.sqrt(variances) * z


def test_one_and_two_gaussians_by_hand():
    one = maxima.gaussian_maximum(np.array([2.0]), 0.3)
    np.testing.assert_allclose(one.moments, [1, 1], rtol=0.01)
    np.testing.assert_allclose(one.shares, [[0.5], [0.5]], rtol=0.01)
    two = maxima.gaussian_maximum(np.ones(2), 0.0)  # E[M²] = 1, E[M] = 1/√π, P(M > 0) = 3/4
    np.testing.assert_allclose(two.moments.sum(), 1, rtol=0.01)
    np.testing.assert_allclose(two.shares, [[3 / 8] * 2, [1 / 8] * 2], rtol=0.01)
    np.testing.assert_allclose(two.products.sum(), 1 / math.pi, rtol=0.01)


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.9, 0.999, 1.0])
@pytest.mark.parametrize(
    "variances", [[1, 1, 1, 1], [1, 0.5, 0.25, 0.1], [1, 1, 0.01, 1e-4]], ids=str
)
def test_gaussian_maximum_agrees_with_draws(variances, correlation):
    variances = np.array(variances, np.float64)
    draws = gaussians(variances, correlation, 200_000)
    measured = maxima.gaussian_maximum(variances, correlation)
    largest = draws.max(axis=1)
    positive = largest > 0
    moments = [np.mean(largest**2 * positive), np.mean(largest**2 * ~positive)]
    np.testing.assert_allclose(measured.moments, moments, rtol=0.02, atol=2e-3)
    if correlation < 1:  # else equal variances tie
        which = draws.argmax(axis=1)
        shares = [[np.mean((which == i) & s) for i in range(4)] for s in (positive, ~positive)]
        np.testing.assert_allclose(measured.shares, shares, atol=0.01)
    np.testing.assert_allclose(measured.shares.sum(), 1, rtol=1e-3)


@pytest.mark.parametrize("slope", [0.0, 0.25, 1.0])
def test_rectified_correlation_agrees_with_draws(slope):
    for correlation in (0.0, 0.5, 0.95):
        u, v = gaussians(np.ones(2), correlation, 400_000).T
        f = lambda x: np.where(x > 0, x, slope * x)  # noqa: E731
        product = np.mean(f(u) * f(v)) / rectifiers.second_moment_gain(slope)
        assert moment_maps.rectified_correlation(correlation, slope) == pytest.approx(
            product, abs=0.01
        )
    assert moment_maps.rectified_correlation(1.0, slope) == pytest.approx(1)
    assert moment_maps.rectified_correlation(0.0, 0.0) == pytest.approx(1 / math.pi)


def test_windows_of_one_position_are_the_rectifier_alone():
    y = np.array([[1.0, 0.5], [0.1, 2.0]])
    slopes = np.array([0.0, 0.5, 0.25])
    regions = maxima.regions(MaxPool("pool", 1), (2, 2))
    pooled = maxima.max_pool(y, regions, slopes, 0.4)
    gain = rectifiers.second_moment_gain(slopes)
    np.testing.assert_allclose(pooled.forward, gain * y.ravel(), rtol=0.01)
    assert pooled.correlation == pytest.approx(
        moment_maps.rectified_correlation(0.4, slopes), rel=0.01
    )
    back = maxima.max_pool_backward(np.arange(4.0), pooled, regions, (2, 2))
    np.testing.assert_allclose(back, gain * np.arange(4.0).reshape(2, 2), rtol=0.01)


@pytest.mark.parametrize(
    "layer", [MaxPool("pool", 2), MaxPool("pool", 3), SpatialPyramid("spp", (3, 2, 1))], ids=str
)
@pytest.mark.parametrize("correlation", [0.0, 0.8])
@pytest.mark.parametrize("slope", [0.0, 0.25])
def test_max_pool_forward_and_backward_agrees_with_jax_on_draws(layer, correlation, slope):
    shape = (8, 7)
    y = np.linspace(0.5, 1.5, 8)[:, None] * np.linspace(1, 0.3, 7)
    regions = maxima.regions(layer, shape)
    pooled = maxima.max_pool(y, regions, slope, correlation)

    def network(x_bhwc):
        x_bhwc = rectifiers.prelu(x_bhwc, slope)
        if isinstance(layer, MaxPool):
            return pooling.max_pool(x_bhwc, layer.window)
        return pooling.spatial_pyramid(x_bhwc, layer.levels)

    draws = gaussians(y, correlation, 20_000).astype(np.float32)[..., None]
    x, back = jax.vjp(network, jnp.asarray(draws))
    moments = np.linspace(1, 2, len(regions))
    cotangent = np.random.default_rng(1).normal(size=x.shape)
    cotangent *= np.sqrt(moments).reshape((1, *x.shape[1:]))
    (dy,) = back(jnp.asarray(cotangent, jnp.float32))
    np.testing.assert_allclose(pooled.forward, np.mean(x**2, 0).ravel(), rtol=0.06)
    measured = maxima.max_pool_backward(moments, pooled, regions, shape)
    np.testing.assert_allclose(measured, np.mean(dy[..., 0] ** 2, 0), rtol=0.1, atol=0.02)
    np.testing.assert_allclose(measured.sum(), np.mean(np.sum(dy**2, (1, 2, 3))), rtol=0.01)


def two_examples(y, correlation, same, across, draws, seed=0):
    """Draw two examples' maps of equally correlated Gaussians, [draws, 2, *y.shape]."""
    ones, eye = np.ones((y.size, y.size)), np.eye(y.size)
    one = correlation * ones + (1 - correlation) * eye
    two = across * ones + (same - across) * eye
    covariance = np.block([[one, two], [two, one]])
    z = np.random.default_rng(seed).multivariate_normal(
        np.zeros(2 * y.size), covariance, draws, method="eigh"
    )
    return np.sqrt(y) * z.reshape(draws, 2, *y.shape)


@pytest.mark.parametrize(
    "layer", [MaxPool("pool", 2), MaxPool("pool", 1), SpatialPyramid("spp", (3, 2, 1))], ids=str
)
@pytest.mark.parametrize(
    ("correlation", "same", "across"),
    [(0.0, 0.0, 0.0), (0.0, 0.6, 0.0), (0.4, 0.4, 0.4), (0.5, 0.9, 0.45), (0.9, 0.95, 0.88)],
)
@pytest.mark.parametrize("slope", [0.0, 0.25, 1.0])
def test_cosines_of_pooled_values_agree_with_draws(layer, correlation, same, across, slope):
    shape = (4, 6)
    y = np.linspace(0.5, 1.5, 4)[:, None] * np.linspace(1, 0.3, 6)
    regions = maxima.regions(layer, shape)
    cosines, between = maxima.max_pool_cosines(
        y, regions, slope, correlation, np.full(shape, same), across
    )
    x = rectifiers.prelu(two_examples(y, correlation, same, across, 40_000), slope)
    a, b = (np.stack([x[:, i][:, *r].max(axis=(1, 2)) for r in regions], axis=1) for i in (0, 1))
    squares = (np.mean(a**2, axis=0) + np.mean(b**2, axis=0)) / 2
    np.testing.assert_allclose(cosines, np.mean(a * b, axis=0) / squares, atol=0.015)
    if isinstance(layer, MaxPool):  # regions do not overlap
        products = np.einsum("ni,nj->ij", a, b) / len(a)
        apart = ~np.eye(len(regions), dtype=bool)
        expected = (
            products[apart].mean() / np.outer(np.sqrt(squares), np.sqrt(squares))[apart].mean()
        )
        assert between == pytest.approx(expected, abs=0.02)


def test_one_example_twice_has_the_cosine_1_and_a_region_of_one_position_keeps_its_own():
    regions = maxima.regions(SpatialPyramid("spp", (2, 1)), (2, 2))
    correlation = np.full((2, 2, 2, 2), 0.7)
    np.einsum("ijij->ij", correlation)[...] = 1.0
    y, ones = np.array([[1.0, 0.5], [0.1, 2.0]]), np.ones((2, 2))
    cosines, _ = maxima.max_pool_cosines(y, regions, 0.0, correlation, ones, correlation)
    np.testing.assert_allclose(cosines, 1, atol=1e-6)
    across = np.full((2, 2, 2, 2), 0.6)
    cosines, _ = maxima.max_pool_cosines(y, regions, 0.0, correlation, 0.8 * ones, across)
    alone = moment_maps.rectified_correlation(0.8)
    np.testing.assert_allclose(cosines[:4], alone, atol=0.01)
    assert 0.8 < cosines[4] < 1


def test_large_regions_take_some_of_their_positions():
    y, regions = np.ones((40, 40)), [(slice(0, 40), slice(0, 40))]
    cosines, _ = maxima.max_pool_cosines(y, regions, 0.0, 0.5, np.full((40, 40), 0.8), 0.4)
    assert 0.9 < cosines[0] < 1


def test_a_map_without_signal_stays_without():
    regions = maxima.regions(MaxPool("pool", 2), (2, 2))
    pooled = maxima.max_pool(np.zeros((2, 2)), regions, 0.0, 0.5)
    assert pooled.forward == 0
    assert 0 <= pooled.correlation <= 1
    cosines, between = maxima.max_pool_cosines(
        np.zeros((2, 2)), regions, 0.0, 0.5, np.full((2, 2), 0.5), 0.25
    )
    assert cosines == between == 0


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"pool: a map of shape \(1, 4\) is smaller than one"):
        maxima.pooled_shape(MaxPool("pool", 2), (1, 4))
