"""Means over seeds, their Student intervals, and how both are shown."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

LEVEL = 0.95  # of intervals, and of all claims together that are judged on the same runs
FEW = 5  # seeds: with fewer, every value is shown in place of the mean and its interval


def confidence(claims: int = 1) -> float:
    """Return the level of the interval that decides one of several claims on the same runs.

    Each of k claims takes 1/k of the 5 % that all of them together may be wrong (Bonferroni).
    """
    return 1 - (1 - LEVEL) / claims


def student(values: Sequence[float] | np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Return the mean and half its Student interval, which is infinite for one value."""
    x = np.asarray(values, np.float64)
    if len(x) == 1:
        return float(x[0]), float("inf")
    quantile = special.stdtrit(len(x) - 1, (1 + level) / 2)
    return float(x.mean()), float(quantile * x.std(ddof=1) / np.sqrt(len(x)))


def line(x: np.ndarray, y: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Return the slope of the least-squares line through points, and half its interval.

    Args:
        x, y: coordinates ``[n]``, n of 3 or more.
        level: of the interval, Student's with n - 2 degrees of freedom.
    """
    from scipy import stats  # slow to import

    fit = stats.linregress(x, y)
    quantile = special.stdtrit(len(x) - 2, (1 + level) / 2)
    return float(fit.slope), float(quantile * fit.stderr)


def short(values: Sequence[float], scale: float = 1.0, digits: int = 1, form: str = "f") -> str:
    """Return a cell of a table; `heading` describes it.

    Args:
        values: one per seed; not finite where something did not happen: the cell counts the others.
        scale: from the values to the numbers shown.
        digits, form: of a number, as in its format '.1f'.
    """
    x = np.asarray(values, np.float64) * scale
    reached = np.isfinite(x).sum()
    if reached < len(x):
        return f"in {reached} of {len(x)}"
    shown = x if len(x) < FEW else student(x)
    return (", " if len(x) < FEW else " ± ").join(f"{value:z.{digits}{form}}" for value in shown)


def heading(n: int) -> str:
    """Return the beginning of a sentence on a table whose cells are of `short`."""
    if n == 1:
        return "Values of n = 1 seed"
    if n < FEW:
        return f"Values of every seed, in order, n = {n} seeds"
    return f"Means and {100 * LEVEL:g} % Student intervals over n = {n} seeds"


def seeds(chosen: Sequence[int]) -> str:
    """Return the seeds in the words of a caption."""
    n = len(chosen)
    return f"seeds {chosen[0]} to {chosen[-1]}, n = {n}" if n > 1 else f"seed {chosen[0]}, n = 1"


def summary(values: Sequence[float], unit: str, scale: float = 1.0, level: float = LEVEL) -> str:
    """Return the values of a few seeds, or else mean, Student interval, extremes and n.

    Args:
        values: one per seed; infinite where something did not happen.
        unit: after the numbers, e.g. ' %'.
        scale: from the values to the unit.
        level: of the interval.
    """
    x = np.asarray(values, np.float64) * scale
    n = len(x)
    if not np.isfinite(x).all():
        reached = np.sort(x[np.isfinite(x)])
        seen = ", ".join(f"{v:.4g}{unit}" for v in reached) or "none"
        return f"reached in {len(reached)} of n = {n} seeds ({seen})"
    if n < FEW:
        return f"{_listed(x)}{unit}, n = {n}{' seeds' if n > 1 else ''}"
    return (
        f"{interval(x, unit, level)}, range {x.min():z.4g} to {x.max():z.4g}{unit}, n = {n} seeds"
    )


def _listed(x: np.ndarray) -> str:
    """Return numbers with as many decimals as four digits of the largest need."""
    largest = np.abs(x).max()
    decimals = max(0, 3 - math.floor(math.log10(largest))) if largest else 0
    needed = (len(f"{v:z.{decimals}f}".rstrip("0").partition(".")[2]) for v in x)
    decimals = max(needed) if decimals else 0
    return ", ".join(f"{v:z.{decimals}f}" for v in x)


def interval(x: np.ndarray, unit: str, level: float) -> str:
    """Return the mean and its interval in words."""
    mean, half = student(x, level)
    mean = 0.0 if abs(mean) < 1e-12 * np.abs(x).max() else mean  # a sum's rounding
    return f"mean {mean:z.4g}{unit}, {100 * level:.4g} % interval ± {half:.2g}{unit}"
