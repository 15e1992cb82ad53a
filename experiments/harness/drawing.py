"""The parts that the figures share: styles of arms, crosses of diverged runs, panels, captions."""

import itertools
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.harness.intervals import student
from experiments.harness.results import Curve

_PER_INCH = 12  # characters of a caption

_Dashes = str | tuple[float, tuple[float, ...]]


class Style(NamedTuple):
    """How an arm is drawn."""

    colour: str
    dashes: _Dashes
    marker: str


# The colours and dashes of He et al. 2015, Figures 2 and 3. No other arm has them.
_PAPER = {"He": Style("red", "solid", "o"), "Xavier": Style("blue", "dashed", "s")}
_NEUTRAL = (
    Style("0.15", "solid", "D"),
    Style("tab:orange", (0, (4, 1.5)), "v"),
    Style("tab:green", "dashdot", "P"),
    Style("tab:purple", (0, (1, 1)), "<"),
)
_OTHERS = (
    *("0.35", "tab:orange", "tab:green", "tab:purple"),
    *("tab:brown", "tab:pink", "tab:olive", "tab:cyan"),
)
_TOUCHING = 0.01  # lines nearer than this at most evaluations lie on each other
# No other mark of a figure is a cross.
_CROSS = {"marker": "x", "ms": 10, "mew": 2.5, "ls": "none", "clip_on": False, "zorder": 4}


def styles(arms: Iterable[str]) -> dict[str, Style]:
    """Return the style of every arm: the paper's of He and Xavier, neutral ones of others."""
    others = itertools.cycle(_NEUTRAL)
    return {arm: _PAPER.get(arm) or next(others) for arm in dict.fromkeys(arms)}


def colours(arms: Iterable[str]) -> dict[str, str]:
    """Return the colour of every arm, of up to eight besides He and Xavier."""
    others = itertools.cycle(_OTHERS)
    return {arm: _PAPER[arm].colour if arm in _PAPER else next(others) for arm in arms}


def overlaid(n: int) -> list[tuple[float, _Dashes]]:
    """Return the width and the dashes of n lines that lie on each other, the lowest first.

    A lower line is wider, and shows in the gaps of those above it.
    """
    return [(2 + 1.4 * (n - 1 - i), (0, (3, 3 * i)) if i else "solid") for i in range(n)]


def touching(medians: Mapping[str, np.ndarray]) -> list[list[str]]:
    """Return the methods in groups whose lines lie on each other at most evaluations."""
    groups: list[list[str]] = []
    for method, line in medians.items():
        near = [
            group
            for group in groups
            if any((abs(line - medians[other]) < _TOUCHING).mean() > 0.5 for other in group)
        ]
        groups = [group for group in groups if group not in near]
        groups.append([*itertools.chain(*near), method])
    return groups


def finished(curves: Iterable[Curve]) -> list[Curve]:
    """Return the curves of runs that did not diverge."""
    return [curve for curve in curves if curve.status != "diverged"]


def median(curves: Sequence[Curve]) -> np.ndarray:
    """Return the median error ``[n]`` at the evaluations that all runs have."""
    n = min(len(curve.errors) for curve in curves)
    return np.asarray(np.median([curve.errors[:n] for curve in curves], axis=0))


def cross(axes: Any, x: float, y: float, colour: Any, **transform: Any) -> None:
    """Draw the cross of a run that diverged."""
    axes.plot([x], [y], color=colour, **_CROSS, **transform)


def crosses(
    axes: Any, of_arm: Iterable[Curve], beside: Sequence[Curve], along: str, colour: str
) -> None:
    """Draw a cross for every run of an arm that diverged, at its last evaluation.

    A run without evaluations has its cross where other curves begin: its net was not trained.

    Args:
        axes: to draw in.
        of_arm: the curves of the arm.
        beside: all curves of the panel.
        along: attribute of a curve that is the horizontal axis, 'steps' or 'epochs'.
        colour: of the arm.
    """
    for curve in of_arm:
        if curve.status == "diverged":
            x, y = _last_point(curve, beside, along)
            cross(axes, x, y, colour)


def _last_point(curve: Curve, beside: Iterable[Curve], along: str) -> tuple[float, float]:
    """Return the place of the cross of a run; see `crosses`."""
    if len(curve.errors):
        return float(getattr(curve, along)[-1]), float(curve.errors[-1])
    first = [other.errors[0] for other in beside if len(other.errors)]
    return 0.0, float(np.median(first)) if first else 0.5


def cross_entry(where: str) -> Any:
    """Return the entry of a legend that explains the crosses, at ``where`` they are."""
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {**_CROSS, "color": "0.3", "ms": 9}
    return Line2D([], [], label=f"diverged ({where})", **style)


def mean(axes: Any, at: float, errors: Sequence[float], along: str, **style: Any) -> None:
    """Draw the mean of errors and its interval, along 'x' or 'y'; the mark is whole."""
    mean, half = student(errors)
    bars = {f"{along}err": half, "elinewidth": 2, "capsize": 4} if len(errors) > 1 else {}
    place = (mean, at) if along == "x" else (at, mean)
    drawn = axes.errorbar(*place, **bars, **style)
    drawn[0].set(clip_on=False, zorder=3)  # the bars end at the frame


def shades(n: int) -> np.ndarray:
    """Return n colours ``[n, 4]`` from dark to light."""
    from matplotlib import colormaps

    return np.asarray(colormaps["viridis"](np.linspace(0, 0.9, n)))


def percent(axis: Any) -> None:
    """Label an axis of fractions in percent."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, symbol=""))


def count(statistic: str, n: int, diverged: int) -> str:
    """Return the number of seeds of a line, as in 'median of 4 seeds, 1 diverged'."""
    left = n - diverged
    if not left:
        return f"all {n} seeds diverged" if n > 1 else "1 seed, diverged"
    shown = f"{statistic} of {left} seeds" if left > 1 else "1 seed"
    return f"{shown}, {diverged} diverged" if diverged else shown


def jitter(n: int, width: float) -> np.ndarray:
    """Return offsets ``[n]`` that keep marks of equal values side by side."""
    return width * np.linspace(-1, 1, n) if n > 1 else np.zeros(n)


def panels(conditions: Mapping[str, Any], height: float) -> tuple[Any, Sequence[Any]]:
    """Return a figure with a panel for each condition, two in a row, titled with its name."""
    columns = min(2, len(conditions))
    rows = -(-len(conditions) // columns)
    size = (2.5 + 4.6 * columns, height * rows)
    figure, grid = subplots(rows, columns, size, sharex=True, sharey=True)
    for axes in grid.flat[len(conditions) :]:
        axes.remove()
    drawn = list(grid.flat[: len(conditions)])
    for axes, name in zip(drawn, conditions, strict=True):
        axes.set_title(name.replace(", padding", ",\npadding"), fontsize=13)
        axes.tick_params(labelsize=12)
        axes.grid(alpha=0.25)
    for axes in drawn[-columns:]:  # the lowest of its column, though the grid has a gap below
        axes.xaxis.set_tick_params(labelbottom=True)
    return figure, drawn


def caption(figure: Any, text: str) -> None:
    """Write a caption below a figure, in lines of about equal length that fit its width."""
    words = " ".join(text.split())
    widest = round(figure.get_figwidth() * _PER_INCH)
    lines = math.ceil(len(words) / widest)
    width = min(widest, len(words) // lines + 8)
    figure.supxlabel(textwrap.fill(words, width), fontsize=10.5, color="0.3")


def legend(figure: Any, handles: Sequence[Any]) -> None:
    """Place a legend above the axes, in as many columns as there is room for."""
    length = max(len(handle.get_label()) for handle in handles) + 6
    columns = max(1, int(figure.get_figwidth() * 10.5 / length))
    place = {"loc": "outside upper center", "fontsize": 12, "frameon": False}
    figure.legend(handles=handles, ncols=min(columns, len(handles)), **place)


def subplots(rows: int, columns: int, size: tuple[float, float], **shared: Any) -> tuple[Any, Any]:
    """Return a figure of a size in inches, and its axes ``[rows, columns]``.

    It takes keywords of `matplotlib.figure.Figure.subplots`. Pyplot is not used: no window opens,
    and a notebook keeps its backend.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def save(figure: Any, stem: Path) -> list[Path]:
    """Write a figure as a PNG and a PDF and return the files."""
    files = [stem.with_suffix(suffix) for suffix in (".png", ".pdf")]
    for file in files:
        figure.savefig(file, dpi=150)
    return files
