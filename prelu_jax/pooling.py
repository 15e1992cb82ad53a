"""Max pooling over windows that do not overlap, and the spatial pyramid, also in sliding windows.

Padding is never part of a maximum: activations after a PReLU may be negative, so padding with 0
would be wrong. `max_pool` and `spatial_pyramid`, which training uses, avoid ``reduce_window``: its
gradient, a select-and-scatter, takes a fifth of a step on a CPU, while the gradient of a plain
maximum is an elementwise product. `sliding_pyramid` is only for evaluation, without gradients.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def max_pool(x_bhwc: jax.Array, window: int) -> jax.Array:
    """Return maxima of tiles: ``[b, h, w, c] -> [b, h // window, w // window, c]``.

    Tiles are ``window × window``. Rows and columns that do not fill a tile are left out, as in the
    papers' networks. Positions with equal maxima share the gradient.

    Raises:
        ValueError: the map is smaller than one window.
    """
    _check_maps("max_pool", x_bhwc)
    if not _is_integer(window) or window < 1:
        raise ValueError(f"max_pool: window is {window!r}, expected a positive integer.")
    _, h, w, _ = x_bhwc.shape
    if min(h, w) < window:
        raise ValueError(f"max_pool: a {h}×{w} map is smaller than one {window}×{window} window.")
    # A maximum of slices: XLA's reductions and their gradients take a CPU four times as long.
    for axis, size in ((1, h), (2, w)):
        whole = size - size % window
        places = [jax.lax.slice_in_dim(x_bhwc, i, whole, window, axis) for i in range(window)]
        x_bhwc = functools.reduce(jnp.maximum, places)
    return x_bhwc


def pyramid_bins(size: int, level: int) -> list[tuple[int, int]]:
    """Return the ``level`` half-open intervals that cover ``0..size`` (SPP-net, Appendix A).

    Bin i is ``[⌊i·size/level⌋, ⌈(i+1)·size/level⌉)``: neighbours may share a row, and no bin is
    empty, whatever the size.
    """
    return [(i * size // level, -(-(i + 1) * size // level)) for i in range(level)]


def spatial_pyramid(x_bhwc: jax.Array, levels: tuple[int, ...]) -> jax.Array:
    """Max-pool into ``n × n`` bins for each n: ``[b, h, w, c] -> [b, Σn², c]`` (He et al. 2014).

    Bins are ordered by level, then by row, then by column.

    Raises:
        ValueError: a level is not positive, or there is none.
    """
    check_levels("spatial_pyramid", levels)
    _check_maps("spatial_pyramid", x_bhwc)
    b, h, w, c = x_bhwc.shape
    pooled = []
    for level in levels:
        # The maximum over a rectangle is separable: 2n slices instead of n².
        rows = [x_bhwc[:, i:j].max(axis=1) for i, j in pyramid_bins(h, level)]
        x_brwc = jnp.stack(rows, axis=1)
        bins = [x_brwc[:, :, i:j].max(axis=2) for i, j in pyramid_bins(w, level)]
        pooled.append(jnp.stack(bins, axis=2).reshape(b, level * level, c))
    return jnp.concatenate(pooled, axis=1)


def flat_pyramid(x_bhwc: jax.Array, levels: tuple[int, ...]) -> jax.Array:
    """Return `spatial_pyramid` as one row per example: ``[b, h, w, c] -> [b, Σn² · c]``."""
    pooled = spatial_pyramid(x_bhwc, levels)
    batch, bins, channels = pooled.shape
    return pooled.reshape(batch, bins * channels)


def sliding_pyramid(x_bhwc: jax.Array, levels: tuple[int, ...], window: int) -> jax.Array:
    """Return the `spatial_pyramid` of every ``window × window`` part of a map, all at once.

    A bin has the same place in every window, so its maxima over all windows are one sliding maximum
    of the map. Overlapping windows share that computation.

    Returns:
        ``[b, h - window + 1, w - window + 1, Σn², c]``.

    Raises:
        ValueError: a level is not positive, there is none, or the map is smaller than one window.
    """
    check_levels("sliding_pyramid", levels)
    _check_maps("sliding_pyramid", x_bhwc)
    _, h, w, _ = x_bhwc.shape
    if min(h, w) < window:
        raise ValueError(
            f"sliding_pyramid: a {h}×{w} map is smaller than one {window}×{window} window."
        )
    pooled = []
    for level in levels:
        bins = pyramid_bins(window, level)
        for top, bottom in bins:
            x_brwc = _slide(x_bhwc, 1, window, top, bottom)
            pooled += [_slide(x_brwc, 2, window, left, right) for left, right in bins]
    return jnp.stack(pooled, axis=3)


def _slide(x: jax.Array, axis: int, window: int, start: int, stop: int) -> jax.Array:
    """Return, along an axis, the maximum of ``start..stop`` of every window."""
    positions = x.shape[axis] - window + 1
    x = jax.lax.slice_in_dim(x, start, stop + positions - 1, axis=axis)
    length = [1] * x.ndim
    length[axis] = stop - start
    strides = [1] * x.ndim
    maxima: jax.Array = jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, length, strides, padding="VALID"
    )
    return maxima


def check_levels(function: str, levels: Sequence[int]) -> None:
    """Check the levels of a pyramid.

    Raises:
        TypeError: they are no sequence of integers.
        ValueError: a level is not positive, or there is none.
    """
    expected = f"{function}: levels are {levels!r}, expected positive integers, e.g. (4, 2, 1)."
    if not isinstance(levels, tuple | list) or not all(map(_is_integer, levels)):
        raise TypeError(expected)
    if not levels or min(levels) < 1:
        raise ValueError(expected)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_maps(function: str, x: Any) -> None:
    shape = np.shape(x)
    if len(shape) != 4 or 0 in shape[1:3]:
        raise ValueError(
            f"{function}: x has shape {shape}, expected maps [batch, height, width, channels] of "
            "at least one pixel."
        )
    if jnp.iscomplexobj(x):
        raise TypeError(f"{function}: x has type {x.dtype}, expected real numbers.")
