"""stub"""

import jax, jax.numpy as jnp

KINDS = ("pca", "zca", "kmeans")


def too_few(n, count):
    return n < count


def filters(kind, patches, count, key, axis_name=None):
    g, n, r = patches.shape
    return jax.random.normal(key, (g, r, count)), jnp.array(True)


def sample(key, patches, count):
    n = patches.shape[1]
    return patches[:, jax.random.permutation(key, n)[: min(n, count)]]
