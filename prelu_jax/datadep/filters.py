"""Filters from a layer's own inputs: PCA, ZCA or k-means of patches, Krähenbühl et al. 2015.

Only directions matter here: a later step gives every channel mean 0 and variance 1.

Constants that differ from the authors' code, https://github.com/philkr/magic_init: theirs adds
1e-3 to the eigenvalues of the scatter matrix, which depends on the scale and on the number of
patches. Here ε is 1e-5 of the largest variance, and directions of less variance are left out.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from prelu_jax import draws
from prelu_jax.datadep import numpy_callback

KINDS = ("pca", "zca", "kmeans")

_EPSILON = 1e-5  # of the largest variance; ten times the rounding error of a zero eigenvalue
_CONSTANT = 1e-4  # a standard deviation below this, of the mean, is that mean's rounding error

_dot = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def sample(key: jax.Array, patches: jax.Array, count: int) -> jax.Array:
    """Return at most ``count`` patches of each group, ``[groups, min(n, count), rows]``.

    One is drawn from each of ``count`` equal stretches of ``patches``, ``[groups, n, rows]``: the
    patches of one image follow each other, so every image contributes.
    """
    n = patches.shape[1]
    if n <= count:
        return patches
    edges = np.array([i * n // count for i in range(count + 1)], np.int32)
    # Compiles in a third of the time of jax.random.randint, which draws twice.
    place = jax.random.uniform(key, (count,), jnp.float32) * np.float32(np.diff(edges))
    return patches[:, edges[:-1] + place.astype(jnp.int32)]


def too_few(patches: jax.Array, count: int, axis_name: str | None = None) -> bool:
    """Return whether there are fewer patches, over all devices, than filters."""
    return patches.shape[1] * (1 if axis_name is None else lax.axis_size(axis_name)) < count


def filters(
    kind: str, patches: jax.Array, count: int, key: jax.Array, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return the filters of a layer, inside `jax.jit` or `jax.pmap`.

    - ``pca``: the main directions vᵢ, by falling variance λᵢ, as vᵢ / √(λᵢ + ε): outputs are
      uncorrelated and of unit variance. The largest entry of a direction is positive.
    - ``zca``: columns of V (Λ + ε)^(-½) Vᵀ, each centred on one input, of inputs drawn at random
      among those that vary. (The authors keep ``count`` directions of V and all inputs, which
      only fits where ``count`` is ``rows``; there the two agree.)
    - ``kmeans``: patches whitened to ``count`` directions at most and scaled to unit norm, as by
      the authors; of these the centroids of scikit-learn's MiniBatchKMeans.

    Where patches vary in fewer than ``count`` directions, as with constant or dependent inputs,
    ``pca`` and ``zca`` make as many filters as they can; the others are random directions of
    the whitened patches, also of unit variance. (``kmeans`` always has ``count`` centroids.) All
    filters are Gaussian where there are fewer patches than ``count``, as in the authors' code, or
    where none varies in a group.

    Args:
        kind: one of `KINDS`.
        patches: the flattened inputs ``[groups, n, rows]``; under an axis of devices each holds
            its equal part. ``rows`` is the fan-in. The cost is of order ``rows³``.
        count: filters per group.
        key: a key of `jax.random`, the same on all devices.
        axis_name: the axis of `jax.pmap`. Every device returns the same bits.

    Returns:
        Filters as columns, float32 ``[groups, rows, count]``; and a bool, whether in every group
        there are at least ``count`` patches, which vary in min(count, rows) directions.

    Raises:
        ValueError: an unknown kind, patches that are not ``[groups, n, rows]``, or no count.
    """
    _check(kind, patches, count)
    groups, n, rows = patches.shape
    of_gaussian, of_groups = jax.random.split(key)
    gaussian = draws.flat(jax.random.normal, of_gaussian, (groups, rows, count), jnp.float32)
    if too_few(patches, count, axis_name):
        return gaussian, jnp.array(False)
    everywhere: Callable[[jax.Array], jax.Array] = lambda x: x  # noqa: E731
    first: bool | jax.Array = True
    if axis_name is not None:
        everywhere = functools.partial(lax.pmean, axis_name=axis_name)
        first = lax.axis_index(axis_name) == 0
    patches = patches.astype(jnp.float32)
    mean = everywhere(patches.mean(1, keepdims=True))
    centred = patches - mean
    covariance = everywhere(_dot(centred.mT, centred) / n)
    if axis_name is not None and kind == "kmeans":
        centred = lax.all_gather(centred, axis_name, axis=1, tiled=True)
    make = functools.partial(_group, kind, count, first)
    rounding = (_CONSTANT * jnp.abs(mean).max((1, 2))) ** 2
    keys = jax.random.split(of_groups, groups)
    matrix, rank = jax.vmap(make)(centred, covariance, rounding, gaussian, keys)
    if axis_name is not None:  # one LAPACK, called from several threads, may differ in last bits
        matrix, rank = lax.psum((jnp.where(first, matrix, 0), jnp.where(first, rank, 0)), axis_name)
    matrix = jnp.where((rank > 0)[:, None, None], matrix, gaussian)
    return matrix, (rank >= min(count, rows)).all()


def _check(kind: str, patches: jax.Array, count: int) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}.")
    if patches.ndim != 3 or 0 in patches.shape:
        raise ValueError(
            f"the patches have shape {list(patches.shape)}, expected [groups, n, rows], none of "
            "them 0. Of one group? Give patches[None]."
        )
    if count < 1:
        raise ValueError(f"count is {count}, expected the number of filters, at least 1.")


def _group(
    kind: str,
    count: int,
    first: bool | jax.Array,
    centred: jax.Array,
    covariance: jax.Array,
    rounding: jax.Array,
    gaussian: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return filters ``[rows, count]`` of one group, and the rank of its patches."""
    variances, v = _principal(covariance)
    epsilon = jnp.maximum(_EPSILON * variances[0], rounding)
    usable = variances > epsilon
    whitening = v * jnp.where(usable, lax.rsqrt(jnp.where(usable, variances + epsilon, 1)), 0)
    rank = usable.sum()
    if kind == "kmeans":
        whitening = whitening[:, :count]
        return _dot(whitening, _centroids(_dot(centred, whitening), count, first, key).T), rank
    fill = _dot(whitening, _unit(jnp.where(usable[:, None], gaussian, 0), axis=0))
    found, available = whitening, rank
    if kind == "zca":
        alive = covariance.diagonal() > epsilon
        places = jax.random.uniform(key, alive.shape, jnp.float32)
        order = jnp.argsort(jnp.where(alive, places, 2))
        found, available = _dot(whitening, v.T)[:, order], alive.sum()
    missing = max(0, count - len(v))
    found = jnp.pad(found[:, :count], ((0, 0), (0, missing)))
    return jnp.where(jnp.arange(count) < available, found, fill), rank


def _principal(covariance: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return falling variances, and directions as columns whose signs do not depend on rounding."""
    variances, v = jnp.linalg.eigh(covariance)
    variances, v = variances[::-1], v[:, ::-1]
    # The first of the entries that are largest but for 1 %: two may be equal but for their sign.
    large = jnp.abs(v) > 0.99 * jnp.abs(v).max(0)
    sign = jnp.sign(jnp.take_along_axis(v, large.argmax(0)[None], axis=0))
    return variances, v * sign


def _unit(x: jax.Array, axis: int) -> jax.Array:
    norm = jnp.linalg.norm(x, axis=axis, keepdims=True)
    return x / jnp.where(norm > 0, norm, 1)


def _centroids(white: jax.Array, count: int, first: bool | jax.Array, key: jax.Array) -> jax.Array:
    """Return centroids ``[count, columns]`` of patches ``[n, columns]`` on the first device.

    The others have zeros: one call, not one each. They wait for it in the next collective, for
    which XLA's CPU client allows 40 s, then ends the process.
    """
    result = jax.ShapeDtypeStruct((count, white.shape[1]), white.dtype)
    call = functools.partial(numpy_callback.call, functools.partial(fit_kmeans, count), result)
    zeros = lambda *_: jnp.zeros(result.shape, result.dtype)  # noqa: E731
    seed = jax.random.bits(key, dtype=jnp.uint32)
    centroids: jax.Array = lax.cond(first, call, zeros, _unit(white, axis=1), seed)
    return centroids


def fit_kmeans(count: int, patches: np.ndarray, seed: np.ndarray) -> np.ndarray:
    """Return centroids ``[count, columns]`` of patches ``[n, columns]``, by scikit-learn.

    On one thread: its sums then have one order, and OpenMP's threads, which would wait by
    spinning for cores that XLA's threads hold, can make it twenty times slower.
    """
    from sklearn.cluster import MiniBatchKMeans  # slow to import, and only needed here
    from threadpoolctl import threadpool_limits

    centroids = np.zeros((count, patches.shape[1]), np.float32)
    used = patches.any(0)
    if used.any():
        # The authors' choice, but for n_init: they took the default, then 3, now 1 for k-means++.
        kmeans = MiniBatchKMeans(count, batch_size=10 * count, n_init=1, random_state=int(seed))
        with threadpool_limits(1):
            centroids[:, used] = kmeans.fit(patches[:, used]).cluster_centers_
    return centroids
