"""Figures of learned slopes: over training, and over depth beside the paper's."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.harness import drawing, intervals
from experiments.harness.slopes import Slopes

_COLUMNS = 6  # of panels, at most
_STYLES = (("tab:blue", "solid"), ("tab:orange", "dashed"), ("0.2", "dashdot"))


def over_training(slopes: Mapping[str, Sequence[Slopes]], initial: float, caption: str) -> Any:
    """Draw slope against steps, a small panel for each layer; the arms are lines with bands.

    All panels share their axes. These are scaled to the means and the seeds: a wide band of few
    seeds may leave the frame.

    Args:
        slopes: arm -> those of every seed; runs that diverged are left out.
        initial: every slope before training.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    figure, panels = _small_panels(next(iter(slopes.values()))[0].layers)
    handles, lowest, highest = [], initial, initial
    for (arm, of_arm), (colour, dashes) in zip(slopes.items(), itertools.cycle(_STYLES)):
        done = [run for run in of_arm if run.status == "done"]
        label = f"{arm}, {drawing.count('mean', len(of_arm), len(of_arm) - len(done))}"
        handles.append(Line2D([], [], color=colour, ls=dashes, lw=2.5, label=label))
        if not done:
            continue
        values = np.array([run.values for run in done])  # [seeds, n, L]
        lowest, highest = min(lowest, values.min()), max(highest, values.max())
        for axes, of_layer in zip(panels, np.moveaxis(values, 2, 0), strict=True):
            mean, half = np.transpose([intervals.student(at) for at in of_layer.T])
            axes.plot(done[0].steps, mean, color=colour, ls=dashes, lw=2.2)
            if len(done) > 1:
                band = {"color": colour, "alpha": 0.2, "lw": 0}
                axes.fill_between(done[0].steps, mean - half, mean + half, **band)
    room = 0.15 * ((highest - lowest) or 1.0)
    for axes in panels:
        axes.axhline(initial, color="0.2", ls="dotted", lw=1.5)
        axes.set_ylim(lowest - room, highest + room)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10], integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
    figure.supylabel("Slope a, mean over channels", fontsize=14)
    drawing.legend(figure, handles)
    drawing.caption(figure, caption)
    return figure


def _small_panels(layers: Sequence[str]) -> tuple[Any, Sequence[Any]]:
    """Return a figure with a small panel for each layer, in order of depth."""
    columns = min(_COLUMNS, math.ceil(math.sqrt(1.6 * len(layers))))
    rows = math.ceil(len(layers) / columns)
    size = (1 + max(1.9, 6.5 / columns) * columns, 1.6 + 1.75 * rows)
    figure, grid = drawing.subplots(rows, columns, size, sharex=True, sharey=True)
    panels = list(grid.flat[: len(layers)])
    for axes in grid.flat[len(layers) :]:
        axes.remove()
    for axes, layer in zip(panels, layers, strict=True):
        axes.set_title(layer, fontsize=13)
        axes.tick_params(labelsize=12)
        axes.grid(alpha=0.25)
    for axes in panels[-columns:]:  # the lowest of their columns
        axes.xaxis.set_tick_params(labelbottom=True)
        axes.set_xlabel("Steps", fontsize=13)
    return figure, panels


def over_depth(
    slopes: Mapping[str, Sequence[Slopes]],
    initial: float,
    paper: Mapping[str, Sequence[float]],
    caption: str,
) -> Any:
    """Draw the final slope of every layer beside the paper's; a panel for each arm.

    Args:
        slopes: arm -> those of every seed; runs that diverged are left out.
        initial: every slope before training.
        paper: arm -> the paper's slopes ``[L]``; empty for a network that it does not have.
    """
    layers = next(iter(slopes.values()))[0].layers
    x = np.arange(len(layers))
    width = max(5.2, 0.26 * len(layers))  # room for every name
    figure, grid = drawing.subplots(1, len(slopes), (width * len(slopes), 5.4), sharey=True)
    for axes, (arm, of_arm) in zip(grid[0], slopes.items(), strict=True):
        axes.axhline(initial, color="0.4", ls="dotted", lw=1.5)
        if arm in paper:
            style = {"color": "black", "ms": 7, "mfc": "white", "lw": 1.2}
            axes.plot(x, paper[arm], "s--", label="paper, ImageNet", **style)
        finals = np.array([run.final() for run in of_arm if run.status == "done"])
        if len(finals):
            mean, half = np.transpose([intervals.student(of_layer) for of_layer in finals.T])
            interval = {"yerr": half, "elinewidth": 2, "capsize": 4} if len(finals) > 1 else {}
            axes.errorbar(x, mean, fmt="o-", ms=8, color="tab:orange", label="ours", **interval)
        shown = drawing.count("mean", len(of_arm), len(of_arm) - len(finals))
        axes.set_title(f"{arm}\n{shown}", fontsize=13)
        axes.set_xticks(x, layers, rotation=60 if len(layers) < 20 else 90, fontsize=12)
        axes.set_xlabel("Layer", fontsize=14)
        axes.tick_params(axis="y", labelsize=12)
        axes.grid(alpha=0.25)
    grid[0, 0].set_ylabel("Learned slope a", fontsize=14)
    by_label: dict[str, Any] = {}
    for axes in grid[0]:  # a panel of runs that all diverged shows none of ours
        lines, labels = axes.get_legend_handles_labels()
        by_label.update(zip(labels, lines, strict=True))
    place = {"loc": "outside upper center", "ncols": 2, "fontsize": 13, "frameon": False}
    figure.legend(by_label.values(), by_label.keys(), **place)
    drawing.caption(figure, caption)
    return figure
