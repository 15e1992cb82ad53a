"""Statistics of a parameter's numbers: moments, extremes, and the order of its draws."""

import dataclasses
import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

_CHUNK = 1 << 20  # numbers held in double precision at once
COMPARED = 1 << 14  # numbers compared with a distribution, and counted for distinct values
_SAME_ORDER = 0.999  # correlation of the ranks of two draws from the same bits
RANKED = 24  # numbers whose order identifies a draw: one order of 24! = 6e23

Order = tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of an array.

    Attributes:
        size: number of numbers.
        mean: mean of the finite numbers, as are all other statistics.
        second_moment: mean of the squares.
        fourth_moment: mean of the fourth powers.
        least, greatest: the extremes.
        nonfinite: number of infinities and nans.
        zeros: fraction of zeros.
        sample: up to 16,384 of the numbers, sorted.
        dtype: name of their type.
    """

    size: int
    mean: float
    second_moment: float
    fourth_moment: float
    least: float
    greatest: float
    nonfinite: int
    zeros: float
    sample: NDArray[np.float64] = dataclasses.field(repr=False)
    dtype: str = "float32"

    @property
    def variance(self) -> float:
        """Variance of the numbers."""
        return max(self.second_moment - self.mean**2, 0.0)

    @property
    def std(self) -> float:
        """Standard deviation of the numbers."""
        return math.sqrt(self.variance)

    @property
    def largest(self) -> float:
        """Largest absolute value."""
        return max(abs(self.least), abs(self.greatest))

    @property
    def is_constant(self) -> bool:
        """True if all numbers are equal."""
        return self.least == self.greatest

    @functools.cached_property
    def kurtosis(self) -> float:
        """Mean fourth power over the squared mean square: 3 for a Gaussian, 1.8 if uniform."""
        return self.fourth_moment / self.second_moment**2 if self.second_moment else math.nan

    @property
    def distinct(self) -> int:
        """Number of distinct values in the sample."""
        return len(np.unique(self.sample))


def measure(array: ArrayLike) -> Statistics:
    """Return the statistics of an array of floats, converting a part at a time to doubles."""
    flat = np.asarray(array).reshape(-1)
    dtype = flat.dtype.name
    stride = max(1, flat.size // COMPARED)
    sample = np.sort(_doubles(flat[::stride][:COMPARED]))
    scale = max(float(np.max(np.abs(sample), initial=0.0, where=np.isfinite(sample))), 1e-300)
    sums = np.zeros(3)
    finite = zeros = 0
    least, greatest = math.inf, -math.inf
    for start in range(0, flat.size, _CHUNK):
        part = _doubles(flat[start : start + _CHUNK])
        kept = part[np.isfinite(part)]
        finite += kept.size
        zeros += int(np.count_nonzero(kept == 0))
        if kept.size:
            least, greatest = min(least, float(kept.min())), max(greatest, float(kept.max()))
            kept = kept / scale  # so that squares neither overflow nor underflow
            squares = kept * kept
            sums += [kept.sum(), squares.sum(), np.dot(squares, squares)]
    mean, second, fourth = (sums / finite if finite else np.full(3, math.nan)).tolist()
    return Statistics(
        flat.size,
        mean * scale,
        second * scale**2,
        fourth * scale**4,
        least,
        greatest,
        flat.size - finite,
        zeros / max(finite, 1),
        sample[np.isfinite(sample)],
        dtype,
    )


def _doubles(part: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(part).astype(np.float64)


def order(array: ArrayLike) -> Order | None:
    """Return the order of an array's first numbers, which identifies a draw.

    The same random bits give the same order for any distribution, scale and, in JAX, shape. A
    change of sign reverses the order; an order and its reverse are returned as the same, unless
    numbers repeat. Returns None for fewer than 24 numbers, or if more than four of the first 24
    repeat.
    """
    first = np.asarray(array).reshape(-1)[:RANKED].astype(np.float64)
    if first.size < RANKED or len(np.unique(first)) < RANKED - 4:
        return None
    forward = tuple(np.argsort(first, kind="stable").tolist())
    return min(forward, forward[::-1])


def relation(one: NDArray[Any], other: NDArray[Any]) -> str | None:
    """Describe the relation of two arrays of the same order; None if there is none.

    Args:
        one, other: arrays; their first numbers are compared, up to the length of the shorter.
    """
    count = min(np.size(one), np.size(other), COMPARED)
    a, b = (np.asarray(x).reshape(-1)[:count].astype(np.float64) for x in (one, other))
    if np.array_equal(a, b):
        return "equal"
    tolerance = 4 * max(float(jnp.finfo(x.dtype).eps) for x in (one, other))
    factor = float(np.dot(a, b)) / max(float(np.dot(b, b)), 1e-300)
    if np.allclose(a, factor * b, rtol=tolerance, atol=tolerance * np.abs(a).max()):
        if math.isclose(abs(factor), 1, rel_tol=tolerance):
            return "equal up to the sign"
        return f"equal up to a factor of {factor:.4g}"
    correlation = np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1]
    if abs(correlation) < _SAME_ORDER:
        return None
    return "in the same order" if correlation > 0 else "in the reverse order"
