"""Figures of second moments and change rates by layer; their caption is the setting."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.harness import drawing
from experiments.harness.profiles import Profile

_DECADES = (-15, 3)  # the rest of a profile is out of the picture
_PROFILE_COLOURS = ("tab:orange", "red", "blue", "tab:green")  # He fan_in, fan_out, Xavier, 0.01


def signal_profiles(profiles: Sequence[Profile], caption: str) -> Any:
    """Draw second moments over depth: a column for every network, forward above, backward below.

    Args:
        profiles: both directions of every initialisation of every network.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    nets = list(dict.fromkeys(p.net for p in profiles))
    arms = list(dict.fromkeys(p.arm for p in profiles))
    figure, grid = drawing.subplots(2, len(nets), (4.3 * len(nets), 7.5), sharey="row")
    for p in profiles:
        row, column = ("forward", "backward").index(p.direction), nets.index(p.net)
        axes, colour = grid[row, column], _PROFILE_COLOURS[arms.index(p.arm)]
        x = np.arange(1, len(p.layers) + 1)
        log, half = p.interval()
        to_decimal = 1 / np.log(10)
        first = row == 0 and column == 0
        # Of arms that lie on each other the lower one shows on both sides of the upper one.
        width = 1.2 + 0.7 * (len(arms) - 1 - arms.index(p.arm))
        line = {"color": colour, "lw": width, "label": p.arm if first else None}
        axes.plot(x, p.predicted * to_decimal, **line)
        marks = {"fmt": "o", "ms": 2 + 1.5 * width, "color": colour, "elinewidth": 1}
        axes.errorbar(x, log * to_decimal, half * to_decimal, **marks)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"$10^{{{y:.0f}}}$"))
        axes.set_ylim(*_DECADES)
        axes.grid(alpha=0.25)
        axes.tick_params(labelsize=12)
        if row == 0:
            axes.set_title(f"{p.net}, {len(p.layers)} layers", fontsize=13)
        else:
            axes.set_xlabel("Layer", fontsize=13)
    grid[0, 0].set_ylabel("Forward: E[y²]", fontsize=14)
    grid[1, 0].set_ylabel("Backward: E[Δy²]", fontsize=13)
    figure.legend(loc="outside upper center", ncols=len(arms), fontsize=13, frameon=False)
    drawing.caption(figure, caption)
    return figure


def change_rates(rates: Mapping[str, Mapping[str, np.ndarray]], caption: str) -> Any:
    """Draw C̃ of every layer over the geometric mean of its net; a panel for each condition.

    Args:
        rates: condition -> method -> the rates of every seed ``[n, L]``.
    """
    figure, panels = drawing.panels(rates, height=5.0)
    for axes, by_method in zip(panels, rates.values(), strict=True):
        for row, of_method in enumerate(by_method.values()):
            logs = np.log(of_method)
            logs -= logs.mean(axis=1, keepdims=True)
            depth = np.broadcast_to(np.arange(1, logs.shape[1] + 1), logs.shape)
            # Flat: one seed's row of four layers would be taken for a colour with its opacity.
            place, layers = (np.exp(logs).ravel(), np.full(logs.size, row)), depth.ravel()
            dots = axes.scatter(*place, c=layers, s=28, alpha=0.7)
            spread = f"{logs.std(axis=1).mean():.2f}"
            axes.text(
                1.02, row, spread, transform=axes.get_yaxis_transform(), va="center", fontsize=12
            )
        axes.text(1.02, -0.75, "spread", transform=axes.get_yaxis_transform(), fontsize=12)
        axes.set_xscale("log")
        axes.set_yticks(range(len(by_method)), list(by_method), fontsize=13)
        axes.set_xlabel("C̃ of a layer / geometric mean", fontsize=13)
    panels[0].invert_yaxis()
    bar = figure.colorbar(dots, ax=panels, shrink=0.8, pad=0.03)
    bar.set_label("Layer", fontsize=13)
    bar.ax.tick_params(labelsize=12)
    drawing.caption(figure, f"{caption}; spread: of log C̃ over layers")
    return figure
