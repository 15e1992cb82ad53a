"""Figures of test error over the depth of plain nets; captioned with the setting."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.harness import drawing

# (depth, initialisation, rectifier) -> the test error of every seed, nan if its run diverged
Errors = Mapping[tuple[int, str, str], Sequence[float]]
_COLOURS = ("0.15", "tab:orange", "tab:green", "tab:purple", "tab:brown")
_MARKERS = ("o", "v", "P", "D", "<")


def _names(errors: Errors) -> tuple[list[int], list[str], list[str]]:
    """Return the depths, initialisations and rectifiers, in order."""
    depths, initializers, rectifiers = (
        list(dict.fromkeys(part)) for part in zip(*errors, strict=True)
    )
    return depths, initializers, rectifiers


def error_over_depth(errors: Errors, trained: float, caption: str) -> Any:
    """Draw the error over depth: a panel for each initialisation, a line for each rectifier.

    Args:
        errors: of every seed; a cross marks depths at which a run diverged.
        trained: the error below which a net counts as trained, a dashed line.
        caption: the setting.
    """
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter

    depths, initializers, rectifiers = _names(errors)
    columns = min(3, len(initializers))
    lines = -(-len(initializers) // columns)
    size = (1.5 + 3.6 * columns, 1.4 + 3.1 * lines)
    figure, grid = drawing.subplots(lines, columns, size, sharex=True, sharey=True)
    for axes in grid.flat[len(initializers) :]:
        axes.remove()
    handles: dict[str, Any] = {}
    for axes, initializer in zip(grid.flat, initializers, strict=False):
        for place, rectifier in enumerate(rectifiers):
            # Side by side, so that equal errors do not cover each other.
            x = np.array(depths) * 1.03 ** (place - (len(rectifiers) - 1) / 2)
            values = np.array([errors[depth, initializer, rectifier] for depth in depths])
            style = {"color": _COLOURS[place], "marker": _MARKERS[place]}
            means = [_mean(of_seeds) for of_seeds in values]
            (handles[rectifier],) = axes.plot(x, means, lw=1.8, ms=6, label=rectifier, **style)
            axes.plot(x, values, ls="none", ms=3, alpha=0.6, **style)
            for depth in x[np.isnan(values).any(axis=1)]:
                drawing.cross(axes, depth, 1.0, _COLOURS[place])
        axes.axhline(trained, color="0.5", lw=1, ls="--")
        axes.set_title(initializer, fontsize=13, pad=11)  # above the crosses
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(depths))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(labelsize=11, labelbottom=True)
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.25)
        drawing.percent(axes.yaxis)
        axes.set_xlabel("Weighted layers", fontsize=12)
    for axes in grid[:, 0]:
        axes.set_ylabel("Test error (%)", fontsize=13)
    crosses = [drawing.cross_entry("at the top")] if _any_diverged(errors) else []
    drawing.legend(figure, [*handles.values(), *crosses])
    drawing.caption(
        figure,
        f"{caption}; lines: mean over the seeds that did not diverge, small marks: every seed",
    )
    return figure


def heat_map(errors: Errors, caption: str) -> Any:
    """Draw the mean error of every net, by initialisation, rectifier and depth.

    A panel for each rectifier, a row for each initialisation, a column for each depth.
    """
    depths, initializers, rectifiers = _names(errors)
    size = (2.6 + 2.3 * len(rectifiers), 2.0 + 0.5 * len(initializers))
    figure, grid = drawing.subplots(1, len(rectifiers), size, sharey=True)
    image = None
    for axes, rectifier in zip(grid.flat, rectifiers, strict=True):
        means = np.array(
            [
                [_mean(errors[depth, initializer, rectifier]) for depth in depths]
                for initializer in initializers
            ]
        )
        image = axes.imshow(means, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for (i, j), value in np.ndenumerate(means):
            diverged = np.isnan(errors[depths[j], initializers[i], rectifier]).any()
            colour = "white" if value <= 0.6 else "black"
            text = ("" if np.isnan(value) else f"{100 * value:.0f}") + ("×" if diverged else "")
            axes.text(j, i, text, ha="center", va="center", fontsize=11, color=colour)
        axes.set_title(rectifier, fontsize=13)
        axes.set_xticks(range(len(depths)), map(str, depths), fontsize=11)
        axes.set_yticks(range(len(initializers)), initializers, fontsize=12)
        axes.set_xlabel("Weighted layers", fontsize=12)
    bar = figure.colorbar(image, ax=grid.ravel().tolist(), pad=0.01)
    bar.set_label("Test error (%)", fontsize=12)
    drawing.percent(bar.ax.yaxis)
    crosses = "; ×: at least one run diverged" if _any_diverged(errors) else ""
    drawing.caption(figure, f"{caption}; numbers: mean test error in %{crosses}")
    return figure


def _mean(errors: Sequence[float]) -> float:
    """Return the mean over the runs that did not diverge; nan for none."""
    ended = [error for error in errors if not np.isnan(error)]
    return float(np.mean(ended)) if ended else np.nan


def _any_diverged(errors: Errors) -> bool:
    return any(np.isnan(of_seeds).any() for of_seeds in errors.values())
