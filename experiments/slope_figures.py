"""Drawing learned slopes: over training, and over depth beside the paper's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import figures, results
from experiments.slopes import Slopes


def over_training(
    slopes: Mapping[str, Sequence[Slopes]], initial: float, caption: str, stem: Path
) -> list[Path]:
    """Slope against steps, a line for each layer, its colour its depth; a panel for each arm.

    Panels have scales of their own: a layer's one slope gathers the gradients of all its channels,
    and moves much further than theirs.

    Args:
        slopes: arm -> those of every seed; runs that diverged are left out.
        initial: every slope before training.
        caption: below the axes: what was run.
        stem: path of the figure without its ending.

    Returns:
        The files written, a PNG and a PDF.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm

    layers = next(iter(slopes.values()))[0].layers
    size = {"figsize": (4.6 * len(slopes) + 1.6, 5.2), "layout": "constrained"}
    figure, grid = figures.pyplot().subplots(1, len(slopes), squeeze=False, **size)
    panels = grid[0]
    scale = ScalarMappable(BoundaryNorm(np.arange(len(layers) + 1) - 0.5, 256), "turbo")
    colours = scale.to_rgba(np.arange(len(layers)))
    for axes, (arm, of_arm) in zip(panels, slopes.items(), strict=True):
        axes.axhline(initial, color="0.4", ls="dotted", lw=1.5)
        done = [run for run in of_arm if run.status == "done"]
        for i, colour in enumerate(colours if done else []):
            by_seed = np.array([run.values[:, i] for run in done])  # [seeds, n]
            mean, half = np.transpose([results.student(at) for at in by_seed.T])
            axes.plot(done[0].steps, mean, color=colour, lw=2)
            if len(done) > 1:
                band = {"color": colour, "alpha": 0.05, "lw": 0}
                axes.fill_between(done[0].steps, mean - half, mean + half, **band)
        axes.set_title(f"{arm}, n = {len(done)}", fontsize=13)
        axes.set_xlabel("Steps", fontsize=13)
        axes.set_xlim(left=0)
        axes.tick_params(labelsize=12)
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("Slope a, mean over channels", fontsize=13)
    bar = figure.colorbar(scale, ax=list(panels), ticks=range(len(layers)), pad=0.02)
    bar.ax.set_yticklabels(layers, fontsize=11)
    bar.ax.invert_yaxis()  # conv1 on top
    figure.supxlabel(caption, fontsize=10, color="0.35")
    return figures.save(figure, stem)


def over_depth(
    slopes: Mapping[str, Sequence[Slopes]],
    initial: float,
    paper: Mapping[str, Sequence[float]],
    caption: str,
    stem: Path,
) -> list[Path]:
    """The final slope of every layer with its interval, beside the paper's; a panel for each arm.

    Args:
        slopes: arm -> those of every seed; runs that diverged are left out.
        initial: every slope before training.
        paper: arm -> the paper's slopes ``[L]``; empty for a network that it does not have.
        caption: below the axes: what was run.
        stem: path of the figure without its ending.

    Returns:
        The files written, a PNG and a PDF.
    """
    layers = next(iter(slopes.values()))[0].layers
    x = np.arange(len(layers))
    size = {"figsize": (5.2 * len(slopes), 5.2), "layout": "constrained"}
    figure, grid = figures.pyplot().subplots(1, len(slopes), squeeze=False, sharey=True, **size)
    for axes, (arm, of_arm) in zip(grid[0], slopes.items(), strict=True):
        axes.axhline(initial, color="0.4", ls="dotted", lw=1.5)
        if arm in paper:
            style = {"color": "black", "ms": 7, "mfc": "white", "lw": 1.2}
            axes.plot(x, paper[arm], "s--", label="paper, ImageNet", **style)
        finals = np.array([run.final() for run in of_arm if run.status == "done"])
        if len(finals):
            mean, half = np.transpose([results.student(of_layer) for of_layer in finals.T])
            interval = {"yerr": half, "elinewidth": 2, "capsize": 4} if len(finals) > 1 else {}
            axes.errorbar(x, mean, fmt="o-", ms=8, color="tab:orange", label="ours", **interval)
        axes.set_title(f"{arm}, n = {len(finals)}", fontsize=13)
        axes.set_xticks(x, layers, rotation=60, fontsize=11)
        axes.set_xlabel("Layer", fontsize=13)
        axes.tick_params(axis="y", labelsize=12)
        axes.grid(alpha=0.25)
    grid[0, 0].set_ylabel("Learned slope a", fontsize=13)
    by_label: dict[str, Any] = {}
    for axes in grid[0]:  # a panel of runs that all diverged shows none of ours
        lines, labels = axes.get_legend_handles_labels()
        by_label.update(zip(labels, lines, strict=True))
    place = {"loc": "outside upper center", "ncols": 2, "fontsize": 12, "frameon": False}
    figure.legend(by_label.values(), by_label.keys(), **place)
    figure.supxlabel(caption, fontsize=10, color="0.35")
    return figures.save(figure, stem)
