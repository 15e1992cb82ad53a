import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prelu_jax.data import augment, moments


def batches():
    rng = np.random.default_rng(0)
    for n in (4, 3):
        image = rng.integers(0, 256, (4, 5, 6, 3)).astype(np.uint8)
        image[n:] = 255  # padding, which must not count
        yield {"image": image, "mask": (np.arange(4) < n).astype(np.float32)}


def test_inputs_have_zero_mean_at_every_pixel_and_the_rms_asked():
    pixels = augment.pixel_statistics(moments.measure(batches()), rms=2.0)
    images = np.concatenate([b["image"][b["mask"] > 0] for b in batches()])
    x = augment.normalize(jnp.asarray(images), pixels)
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(x))), 2.0, rtol=1e-5)


def test_without_an_rms_pixels_keep_their_unit():
    pixels = augment.pixel_statistics(moments.measure(batches()), rms=0.0)
    assert pixels.scale == 1.0
    assert pixels.mean.shape == (5, 6, 3)


def test_images_that_do_not_vary_have_no_scale():
    same = moments.measure([{"image": np.full((3, 4, 4, 3), 7, np.uint8), "mask": np.ones(3)}])
    with pytest.raises(ValueError, match="config.pixel_rms is 2, expected 0"):
        augment.pixel_statistics(same, 2.0)
    assert augment.pixel_statistics(same, 0.0).scale == 1


def test_half_of_the_images_are_mirrored_by_a_coin_of_their_own_place():
    x = jax.random.normal(jax.random.key(0), (400, 2, 3, 1))
    key = jax.random.key(1)
    flipped = augment.random_flip(key, x, 0)
    mirrored = np.asarray((flipped == x[:, :, ::-1]).all(axis=(1, 2, 3)))
    kept = np.asarray((flipped == x).all(axis=(1, 2, 3)))
    assert (mirrored ^ kept).all()
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / 20
    parts = [augment.random_flip(key, x[:100], 0), augment.random_flip(key, x[100:], 100)]
    np.testing.assert_array_equal(jnp.concatenate(parts), flipped)


# Eigenvalues for ImageNet's training set, in 0..1, as in common implementations.
EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])


def with_colour(scale=1.0):
    vectors = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    covariance = (vectors * EIGENVALUES) @ vectors.T
    mean = jnp.zeros((2, 2, 3))
    return vectors, augment.PixelStatistics(mean, jnp.float32(scale), jnp.float32(covariance))


def test_colours_vary_along_the_eigenvectors_by_the_eigenvalues():
    vectors, pixels = with_colour(scale=1 / 64)
    x = jax.random.normal(jax.random.key(0), (20_000, 2, 2, 3))
    added = np.asarray(augment.alter_colour(jax.random.key(1), x, pixels, 0.1, 0) - x, np.float64)
    np.testing.assert_allclose(added, np.broadcast_to(added[:, :1, :1], added.shape), atol=1e-6)
    along = added[:, 0, 0] @ vectors * 64 / 255  # a₁λ₁, a₂λ₂, a₃λ₃
    z = along / (0.1 * EIGENVALUES)
    error = np.sqrt(2 / len(z))  # of a variance or, over √2, of a covariance or a mean
    np.testing.assert_array_less(abs(z.T @ z / len(z) - np.eye(3)), 5 * error)
    np.testing.assert_array_less(abs(z.mean(axis=0)), 5 * error)


def test_a_colour_is_drawn_for_the_place_in_the_global_batch():
    _, pixels = with_colour()
    x = jax.random.normal(jax.random.key(0), (40, 2, 2, 3))
    key = jax.random.key(1)
    whole = augment.alter_colour(key, x, pixels, 0.1, 0)
    parts = [augment.alter_colour(key, x[i : i + 10], pixels, 0.1, i) for i in range(0, 40, 10)]
    np.testing.assert_array_equal(jnp.concatenate(parts), whole)
    assert len(np.unique((whole - x)[:, 0, 0, 0].round(3))) > 30


def test_the_colours_covariance_is_that_of_all_pixels_in_0_to_1():
    pixels = augment.pixel_statistics(moments.measure(batches()), rms=2.0)
    images = np.concatenate([b["image"][b["mask"] > 0] for b in batches()])
    expected = np.cov(images.reshape(-1, 3).T / 255, bias=True)
    np.testing.assert_allclose(pixels.colour, expected, rtol=1e-5)
