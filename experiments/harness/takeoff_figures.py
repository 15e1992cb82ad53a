"""Figures of steps until a net trains, against its depth; the caption is the setting."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.harness import drawing
from experiments.harness.drawing import Style

_PREDICTIONS = ("solid", "dashdot", "dotted", (0, (8, 2, 1, 2, 1, 2)))


def takeoff(
    points: Mapping[str, Mapping[int, Sequence[float]]],
    predicted: Mapping[str, Mapping[int, float]],
    title: str,
    caption: str,
    *,
    limit: float,
) -> Any:
    """Draw steps until an error is reached against depth, every seed and the median of a depth.

    A seed that did not train is a triangle at the limit. Where the median seed did not train, the
    line of medians has a gap.

    Args:
        points: arm -> depth -> steps of every seed, infinite for a seed that did not train.
        predicted: label -> depth -> steps; a thin black line each.
        limit: the last step of the runs.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

    figure, ((axes,),) = drawing.subplots(1, 1, (7.5, 5.8))
    depths = sorted({d for by in (*points.values(), *predicted.values()) for d in by})
    gap = float(np.diff(depths).min()) if len(depths) > 1 else 1.0
    handles, styles = [], drawing.styles(points)
    for i, (arm, by_depth) in enumerate(points.items()):
        shift = 0.2 * gap * (i - (len(points) - 1) / 2)  # arms of equal steps lie side by side
        handles.append(_takeoff_of_arm(axes, by_depth, styles[arm], shift, 0.08 * gap, limit))
        n = {len(steps) for steps in by_depth.values()}
        shown = f"{min(n)} to {max(n)} seeds" if len(n) > 1 else f"{min(n)} seed{'s' * (n != {1})}"
        handles[-1].set_label(f"{arm}: {shown}, median")
    for (label, line), dashes in zip(predicted.items(), itertools.cycle(_PREDICTIONS)):
        x, y = np.transpose(sorted(line.items()))
        handles += axes.plot(x, y, color="black", lw=1.2, ls=dashes, label=label)
    if any(np.isinf(steps).any() for by_depth in points.values() for steps in by_depth.values()):
        axes.axhline(limit, color="0.3", ls="dashed", lw=1)
        missing: dict[str, Any] = {"marker": "^", "ls": "none", "mfc": "white", "ms": 9}
        handles.append(Line2D([], [], label=f"not in {limit:,.0f} steps", mec="0.3", **missing))
    axes.set_yscale("log")
    axes.set_ylim(top=min(axes.get_ylim()[1], 1.5 * limit))  # a prediction may go far beyond
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(depths)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("Layers", fontsize=14)
    axes.set_ylabel("Steps until the net trains", fontsize=14)
    axes.tick_params(labelsize=12)
    axes.grid(alpha=0.25)
    axes.set_title(title, fontsize=14)
    drawing.legend(figure, handles)
    drawing.caption(figure, caption)
    return figure


def _takeoff_of_arm(
    axes: Any,
    by_depth: Mapping[int, Sequence[float]],
    style: Style,
    shift: float,
    jitter: float,
    limit: float,
) -> Any:
    """Draw the seeds and medians of one arm; return the handle of its legend entry."""
    from matplotlib.lines import Line2D

    colour, _, marker = style
    small = {"ls": "none", "color": colour, "alpha": 0.55, "clip_on": False}
    for depth, steps in by_depth.items():
        x, y = depth + shift + jitter * np.linspace(-1, 1, len(steps)), np.array(steps)
        trained = np.isfinite(y)
        if trained.any():  # an empty line that is not clipped would widen the margins
            axes.plot(x[trained], y[trained], marker=marker, ms=5.5, mew=0, **small)
        if not trained.all():
            at_limit = np.full((~trained).sum(), limit)
            axes.plot(x[~trained], at_limit, marker="^", ms=9, mfc="white", **small)
    x, medians = np.transpose([(d, np.median(steps)) for d, steps in sorted(by_depth.items())])
    medians[~np.isfinite(medians)] = np.nan
    # The short marks show a median that has gaps on both sides.
    axes.plot(x + shift, medians, color=colour, lw=2.2, marker="_", ms=10, mew=2.5)
    return Line2D([], [], color=colour, lw=2.2, marker=marker, ms=10)
