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


def test_a_map_without_signal_stays_without():
    regions = maxima.regions(MaxPool("pool", 2), (2, 2))
    pooled = maxima.max_pool(np.zeros((2, 2)), regions, 0.0, 0.5)
    assert pooled.forward == 0
    assert 0 <= pooled.correlation <= 1


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"pool: a map of shape \(1, 4\) is smaller than one"):
        maxima.pooled_shape(MaxPool("pool", 2), (1, 4))
