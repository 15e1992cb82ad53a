import jax
import jax.numpy as jnp
import numpy as np

from prelu_jax.data import augment


def batches():
    rng = np.random.default_rng(0)
    for n in (4, 3):
        image = rng.integers(0, 256, (4, 5, 6, 3)).astype(np.uint8)
        image[n:] = 255  # padding, which must not count
        yield {"image": image, "mask": (np.arange(4) < n).astype(np.float32)}


def test_inputs_have_zero_mean_at_every_pixel_and_the_rms_asked():
    pixels = augment.pixel_statistics(batches(), rms=2.0)
    images = np.concatenate([b["image"][b["mask"] > 0] for b in batches()])
    x = augment.normalize(jnp.asarray(images), pixels)
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(x))), 2.0, rtol=1e-5)


def test_without_an_rms_pixels_keep_their_unit():
    pixels = augment.pixel_statistics(batches(), rms=0.0)
    assert pixels.scale == 1.0
    assert pixels.mean.shape == (5, 6, 3)


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
