"""Filters from patches against a float64 reference, over devices, and of inputs that are dead."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits

from prelu_jax.datadep import filters as module
from prelu_jax.datadep import numpy_callback
from prelu_jax.datadep.filters import KINDS, filters, sample, too_few

KEY = jax.random.key(3)
GROUPS, N, ROWS = 2, 400, 12
run = jax.jit(filters, static_argnums=(0, 2))


@functools.cache
def patches():
    """Correlated, of variances from 1 to 1/30, and not of mean 0."""
    rng = np.random.default_rng(0)
    mixing = np.linalg.qr(rng.standard_normal((GROUPS, ROWS, ROWS)))[0]
    x = rng.standard_normal((GROUPS, N, ROWS)) * np.geomspace(1, 30**-0.5, ROWS)
    return (x @ mixing + rng.standard_normal((GROUPS, 1, ROWS))).astype(np.float32)


def whitening(x):
    """Return float64 directions, by falling variance, and their scales."""
    x = x.astype(np.float64)
    variances, v = np.linalg.eigh(np.cov(x.T, bias=True))
    variances, v = variances[::-1], v[:, ::-1]
    scale = np.where(variances > 1e-5 * variances[0], (variances + 1e-5 * variances[0]) ** -0.5, 0)
    return v, scale


def outputs(x, matrix):
    return (x - x.mean(0)).astype(np.float64) @ np.asarray(matrix, np.float64)


def test_pca_against_the_reference():
    matrix, enough = run("pca", patches(), 7, KEY)
    assert enough
    assert matrix.dtype == jnp.float32
    for x, found in zip(patches(), np.asarray(matrix), strict=True):
        v, scale = whitening(x)
        expected = (v * scale)[:, :7]
        signs = np.sign((expected * found).sum(0))
        np.testing.assert_allclose(found, expected * signs, atol=1e-3)
        peak = np.take_along_axis(found, np.abs(found).argmax(0)[None], 0)
        assert (peak > 0).all()


def test_zca_against_the_reference():
    for count in (7, ROWS):
        matrix, enough = run("zca", patches(), count, KEY)
        assert enough
        for x, found in zip(patches(), np.asarray(matrix), strict=True):
            v, scale = whitening(x)
            expected = (v * scale) @ v.T
            column = np.abs(found.T[:, None] - expected.T[None]).max(-1).argmin(1)
            assert len(set(column)) == count  # each is another column
            np.testing.assert_allclose(found, expected[:, column], atol=1e-3)


@pytest.mark.parametrize("kind", ["pca", "zca"])
def test_outputs_are_white(kind):
    matrix, _ = run(kind, patches(), 7, KEY)
    for x, found in zip(patches(), matrix, strict=True):
        y = outputs(x, found)
        np.testing.assert_allclose(y.T @ y / N, np.eye(7), atol=1e-3)


@pytest.mark.parametrize("count", [5, 20])
def test_kmeans_is_that_of_scikit_learn(count):
    """On the whitened rows that the callback was given, with its seed: the same bits."""
    given = []

    def spy(count, white, seed):
        given.append((white.copy(), int(seed), module_fit(count, white, seed)))
        return given[-1][2]

    module_fit = module.fit_kmeans
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "fit_kmeans", spy)
        matrix, enough = jax.jit(lambda x: filters("kmeans", x, count, KEY))(patches())
    assert enough
    assert len(given) == GROUPS
    assert given[0][1] != given[1][1]
    for x, found, (white, seed, centroids) in zip(patches(), matrix, given, strict=True):
        v, scale = (part[..., : min(count, ROWS)] for part in whitening(x))
        expected = outputs(x, v * scale)
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        signs = np.sign((expected * white).sum(0))
        np.testing.assert_allclose(white, expected * signs, atol=2e-3)
        with threadpool_limits(1):
            kmeans = MiniBatchKMeans(count, batch_size=10 * count, n_init=1, random_state=seed)
            np.testing.assert_array_equal(kmeans.fit(white).cluster_centers_, centroids)
        np.testing.assert_allclose(found, v * scale * signs @ centroids.T, atol=5e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_groups_are_apart(kind):
    both, _ = run(kind, patches(), 7, KEY)
    alone, _ = run(kind, patches()[:1], 7, KEY)
    np.testing.assert_allclose(both[:1], alone, atol=1e-4)
    assert np.abs(both[0] - both[1]).max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_devices_hold_the_same_bits_and_agree_with_one(kind):
    shards = patches().reshape(GROUPS, 4, N // 4, ROWS).swapaxes(0, 1)
    mapped = jax.pmap(lambda x: filters(kind, x, 20, KEY, "device"), axis_name="device")
    replicas, enough = mapped(shards)
    assert enough.all()
    replicas = np.asarray(replicas)
    assert all(np.array_equal(replicas[0], replica) for replica in replicas)
    one, _ = run(kind, patches(), 20, KEY)
    np.testing.assert_allclose(replicas[0], one, atol=2e-3)


def test_kmeans_runs_on_one_device_only(monkeypatch):
    calls = []
    monkeypatch.setattr(
        module, "fit_kmeans", lambda count, x, seed: calls.append(x.shape) or x[:count]
    )
    shards = patches()[:1].reshape(4, 1, N // 4, ROWS)
    jax.pmap(lambda x: filters("kmeans", x, 5, KEY, "device")[0], "device")(shards)[0].tolist()
    assert calls == [(N, 5)]


@pytest.mark.parametrize("kind", ["pca", "zca"])
def test_more_filters_than_inputs_are_random_directions_of_unit_variance(kind):
    matrix, enough = run(kind, patches(), 20, KEY)
    assert enough
    for x, found in zip(patches(), matrix, strict=True):
        y = outputs(x, found)
        np.testing.assert_allclose(y.var(0), 1, atol=1e-3)
        cosines = np.abs(np.corrcoef(y.T) - np.eye(20))
        assert 0.2 < cosines[ROWS:].max() < 0.99
    other, _ = run(kind, patches(), 20, jax.random.key(4))
    assert np.abs(other[..., ROWS:] - matrix[..., ROWS:]).max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_dead_inputs_give_finite_filters(kind):
    x = patches().copy()
    x[:, :, 3] = 0
    x[:, :, 8] = 3.3  # its float32 mean is not 3.3
    matrix, enough = run(kind, x, 12, KEY)
    assert not enough  # 10 directions
    assert np.isfinite(matrix).all()
    assert np.abs(matrix[:, [3, 8]]).max() < 1e-3  # constant inputs have no weight
    assert np.abs(matrix).max(1).min() > 1e-2  # no filter is 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, 3.3])
def test_of_constant_patches_filters_are_gaussian_in_their_group_alone(kind, value):
    x = patches().copy()
    x[1] = value
    matrix, enough = run(kind, x, 7, KEY)
    assert not enough
    assert 0.7 < np.std(matrix[1]) < 1.3
    np.testing.assert_array_equal(matrix[0], run(kind, patches(), 7, KEY)[0][0])


@pytest.mark.parametrize("kind", KINDS)
def test_too_few_patches(kind):
    x = patches()[:, :15]  # they do vary in all 12 directions
    assert too_few(x, 16)
    assert not too_few(x, 15)
    matrix, enough = run(kind, x, 16, KEY)
    assert not enough
    assert 0.8 < np.std(matrix) < 1.2  # Gaussian


def test_patches_are_counted_over_all_devices():
    shards = patches()[:1, :24].reshape(4, 1, 6, ROWS)
    enough = jax.pmap(lambda x: filters("pca", x, 7, KEY, "device")[1], "device")(shards)
    assert enough.all()


def test_a_sign_does_not_hang_on_rounding():
    v = np.array([[1, 1], [1, -1]]) / 2**0.5
    for slack in (-1e-6, 1e-6):  # which of two entries is the larger
        covariance = (v * [1, 3]) @ v.T + np.diag([slack, 0])
        _, found = module._principal(jnp.asarray(covariance, jnp.float32))
        np.testing.assert_allclose(found, v[:, ::-1], atol=1e-4)


def test_sample():
    x = np.arange(100, dtype=np.float32).reshape(1, 100, 1) * np.ones((2, 1, 3), np.float32)
    kept = sample(KEY, x, 30)
    assert kept.shape == (2, 30, 3)
    np.testing.assert_array_equal(kept[0], kept[1])
    assert (np.diff(kept[0, :, 0]) > 0).all()  # none twice
    assert sample(KEY, x, 100) is x
    counts = np.zeros(100)
    draws = jax.vmap(lambda key: sample(key, jnp.asarray(x), 30)[0, :, 0])(
        jax.random.split(KEY, 2000)
    )
    np.add.at(counts, np.asarray(draws, int), 1)
    stretch = np.diff([i * 100 // 30 for i in range(31)])
    expected = 2000 / np.repeat(stretch, stretch)
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="kind is 'ica', expected one of pca, zca, kmeans"):
        filters("ica", patches(), 7, KEY)
    with pytest.raises(ValueError, match=r"shape \[400, 12\].*Give patches\[None\]"):
        filters("pca", patches()[0], 7, KEY)
    with pytest.raises(ValueError, match="count is 0"):
        filters("pca", patches(), 0, KEY)


def test_a_call_of_the_host_on_every_cpu_device_at_once():
    """27 calls with 5 MB each, by as many devices as the client has threads, none to spare."""

    def net(x):
        kernel = jnp.ones((3, 3, 32, 32), jnp.float32) / 300
        for _ in range(27):
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            large = jax.lax.all_gather(x.reshape(-1, 128), "device", tiled=True)
            result = jax.ShapeDtypeStruct((32,), jnp.float32)
            x = x / jnp.std(x) + numpy_callback.call(lambda rows: rows.mean(0)[:32], result, large)
        return x

    x = np.random.default_rng(0).standard_normal((4, 10, 32, 32, 32), np.float32)
    assert np.isfinite(jax.pmap(net, "device")(x)).all()


def test_scikit_learn_is_not_imported_with_the_package():
    code = "import sys, prelu_jax.datadep.filters; assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
