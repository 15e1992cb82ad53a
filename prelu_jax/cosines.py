"""Cosines of two examples over the depth of a plain net of rectifiers, and tailored slopes.

A rectifier moves the cosine of two examples towards 1 in every layer (Cho & Saul 2009): at depth
examples look the same, unless its slope is near 1 (Zhang, Botev & Martens 2022).
"""

import functools
import itertools
import math
import operator
from collections.abc import Iterator

import numpy as np
from jax.typing import ArrayLike

_DEEPEST = 1_000_000  # layers


def cosine_at_depth(negative_slope: ArrayLike, depth: int, cosine: float = 0.0) -> float:
    """Return the cosine of two examples after ``depth`` rectified layers of random weights.

    For many layers and any initial cosine ``1 - cosine`` is about
    ``9 π² (1 + a²)² / (2 (1 - a)⁴ depth²)``, 9 π² / (2 depth²) for ReLU.

    Args:
        negative_slope: a scalar, or the slopes of a layer's channels; the same in every layer.
        depth: number of layers.
        cosine: of the examples before the first layer.

    Raises:
        ValueError: the depth is no whole number from 0 on, a slope is not finite, or the cosine is
            out of range.
    """
    try:
        layers = operator.index(depth)
    except TypeError:
        layers = -1
    if layers < 0:
        raise ValueError(f"cosine_at_depth: depth is {depth!r}, expected a number of layers.")
    return next(itertools.islice(_cosines(negative_slope, cosine), layers, None))


def depth_of_cosine(negative_slope: ArrayLike, cosine: float = 0.9, first: float = 0.0) -> int:
    """Return the number of rectified layers after which two examples reach a cosine.

    Args:
        negative_slope: as in `cosine_at_depth`.
        cosine: to be reached, from -1 to below 1.
        first: cosine of the examples before the first layer.

    Raises:
        ValueError: a cosine is out of range, or ``cosine`` is not reached within a million layers.
    """
    if not -1 <= cosine < 1:
        raise ValueError(f"cosine is {cosine}, expected a number from -1 to below 1.")
    for depth, reached in enumerate(
        itertools.islice(_cosines(negative_slope, first, "first"), _DEEPEST)
    ):
        if reached >= cosine:
            return depth
    raise ValueError(
        f"depth_of_cosine: with slope {negative_slope} a cosine of {cosine} is not reached within "
        f"{_DEEPEST:,} layers; a slope of 1 keeps cosines."
    )


def _cosines(negative_slope: ArrayLike, cosine: float, argument: str = "cosine") -> Iterator[float]:
    """Yield the cosine before the first layer and after every one."""
    if not -1 <= cosine <= 1:
        raise ValueError(f"{argument} is {cosine}, expected a number in [-1, 1].")
    slopes = np.asarray(negative_slope, np.float64)
    if not (slopes.size and np.isfinite(slopes).all()):
        raise ValueError(f"negative_slope is {negative_slope}, expected finite numbers.")
    bend = float(np.mean((1 - slopes) ** 2) / (math.pi * np.mean(1 + slopes**2)))
    while True:
        yield cosine
        # C(c) = c + (1 - a)² / (π (1 + a²)) · (√(1 - c²) - c arccos c), Cho & Saul 2009.
        step = math.sqrt(max(0.0, 1 - cosine * cosine)) - cosine * math.acos(cosine)
        cosine = min(1.0, cosine + bend * step)


def tailored_slope(depth: int, cosine: float = 0.9) -> float:
    """Return the slope with which a plain net of leaky rectifiers keeps examples apart.

    Orthogonal examples have this cosine after ``depth`` layers (Zhang, Botev & Martens 2022). With
    ReLU it approaches 1: at depth examples look the same.

    Args:
        depth: number of rectified layers, at least 1.
        cosine: of orthogonal examples after the last layer.

    Raises:
        ValueError: the depth is below 1, or no slope in [0, 1] gives that cosine; the error gives
            the range that slopes reach.
    """
    try:
        layers = 0 if isinstance(depth, bool) else operator.index(depth)
    except TypeError:
        layers = 0
    if layers < 1:
        raise ValueError(f"tailored_slope: depth is {depth!r}, expected a whole number above 0.")
    return _tailored_slope(layers, float(cosine))


@functools.lru_cache(maxsize=256)  # a network asks for it in every layer
def _tailored_slope(depth: int, cosine: float) -> float:
    largest = cosine_at_depth(0.0, depth)
    if not 0 <= cosine <= largest:
        raise ValueError(
            f"tailored_slope: with depth={depth} no slope gives the cosine {cosine!r}: slopes from "
            f"1 to 0 give 0 to {largest:.4g}. Give such a cosine, or more layers."
        )
    if cosine == largest:
        return 0.0
    from scipy import optimize  # slow to import, and few runs need it

    return float(optimize.brentq(lambda a: cosine_at_depth(a, depth) - cosine, 0, 1, xtol=1e-14))
