"""Maximum pooling over windows that do not overlap, the spatial pyramid, and many pyramids.

All take the maximum over what is there (over -∞, never over 0: after a PReLU activations are
negative too). What training uses does without ``reduce_window``: its gradient, a
select-and-scatter, costs a fifth of a step on a CPU, where the gradient of a plain maximum is an
elementwise product. `sliding_pyramid` is for tests alone, which take no gradient.
"""

import functools

import jax
import jax.numpy as jnp


def max_pool(x_bhwc: jax.Array, window: int) -> jax.Array:
    """Maxima of ``window × window`` tiles: ``[b, h, w, c] -> [b, h // window, w // window, c]``.

    Rows and columns that fill no whole tile are left out, as in the papers' networks. Of equal
    maxima each gets a part of the gradient: those in one column share what the column gets.

    Raises:
        ValueError: the map is smaller than one window.
    """
    _, h, w, _ = x_bhwc.shape
    if min(h, w) < window:
        raise ValueError(f"max_pool: a {h}×{w} map is smaller than one {window}×{window} window.")
    # A maximum of slices: XLA's reductions, and their gradients, cost a CPU four times as much.
    for axis, size in ((1, h), (2, w)):
        whole = size - size % window
        places = [jax.lax.slice_in_dim(x_bhwc, i, whole, window, axis) for i in range(window)]
        x_bhwc = functools.reduce(jnp.maximum, places)
    return x_bhwc


def pyramid_bins(size: int, level: int) -> list[tuple[int, int]]:
    """The ``level`` half-open intervals that cover ``0..size`` (SPP-net, Appendix A).

    Bin i is ``[⌊i·size/level⌋, ⌈(i+1)·size/level⌉)``: neighbours may share a row, none is empty
    and none is missing, whatever the size.
    """
    return [(i * size // level, -(-(i + 1) * size // level)) for i in range(level)]


def spatial_pyramid(x_bhwc: jax.Array, levels: tuple[int, ...]) -> jax.Array:
    """Max-pools into ``n × n`` bins for each n: ``[b, h, w, c] -> [b, Σn², c]`` (He et al. 2014).

    The order is level by level, then row by row.

    Raises:
        ValueError: a level is not positive, or there is none.
    """
    _check_levels("spatial_pyramid", levels)
    b, h, w, c = x_bhwc.shape
    pooled = []
    for level in levels:
        # The maximum over a rectangle is separable: 2n slices instead of n².
        rows = [x_bhwc[:, i:j].max(axis=1) for i, j in pyramid_bins(h, level)]
        x_brwc = jnp.stack(rows, axis=1)
        bins = [x_brwc[:, :, i:j].max(axis=2) for i, j in pyramid_bins(w, level)]
        pooled.append(jnp.stack(bins, axis=2).reshape(b, level * level, c))
    return jnp.concatenate(pooled, axis=1)


def sliding_pyramid(x_bhwc: jax.Array, levels: tuple[int, ...], window: int) -> jax.Array:
    """The `spatial_pyramid` of every ``window × window`` part of a map, all at once.

    A bin stands at the same place in every window: over all windows its maximum is one sliding
    maximum of the map, and windows share what they overlap in.

    Returns:
        ``[b, h - window + 1, w - window + 1, Σn², c]``.

    Raises:
        ValueError: a level is not positive, there is none, or the map is smaller than one window.
    """
    _check_levels("sliding_pyramid", levels)
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
    """Along an axis, the maximum of ``start..stop`` of every window."""
    positions = x.shape[axis] - window + 1
    x = jax.lax.slice_in_dim(x, start, stop + positions - 1, axis=axis)
    length = [1] * x.ndim
    length[axis] = stop - start
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, length, [1] * x.ndim, "VALID")


def _check_levels(function: str, levels: tuple[int, ...]) -> None:
    if not levels or min(levels) < 1:
        raise ValueError(f"{function}: levels are {levels}, expected positive integers.")
