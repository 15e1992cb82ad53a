"""Drawing, from curves alone."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.results import Curve, Profile, student

# The colours and dashes of He et al. 2015, Figures 2 and 3.
_STYLES = (("red", "solid"), ("blue", "dashed"))
_DECADES = (-15, 3)  # of a profile: what lies below is out of the picture
_PROFILE_COLOURS = ("tab:red", "tab:orange", "tab:blue", "tab:green")
_GROUP_COLOURS = ("0.35", "tab:blue", "tab:orange")


def error_curves(curves: Sequence[Curve], title: str, caption: str, stem: Path) -> list[Path]:
    """Error against epochs, every seed thin and the median bold.

    Args:
        curves: of one or two arms; the seeds of an arm share their epochs, unless one diverged.
        title: above the axes.
        caption: below them: what was run.
        stem: path of the figure without its ending.

    Returns:
        The files written, a PNG and a PDF.
    """
    from matplotlib.ticker import PercentFormatter

    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 4.8), layout="constrained")
    arms = dict.fromkeys(curve.arm for curve in curves)
    for arm, (colour, dashes) in zip(arms, _STYLES, strict=False):
        of_arm = [curve for curve in curves if curve.arm == arm]
        for curve in of_arm:
            axes.plot(curve.epochs, curve.errors, color=colour, ls=dashes, lw=0.8, alpha=0.45)
        shared = min(len(curve.epochs) for curve in of_arm)
        median = np.median([curve.errors[:shared] for curve in of_arm], axis=0)
        n = f"n = {len(of_arm)} seed{'s' if len(of_arm) > 1 else ''}"
        label = f"{arm}, median of {n}" if len(of_arm) > 1 else f"{arm}, {n}"
        axes.plot(of_arm[0].epochs[:shared], median, color=colour, ls=dashes, lw=2.5, label=label)
    axes.set_xlabel("Epochs", fontsize=13)
    axes.set_ylabel("Test error (%)", fontsize=13)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    axes.set_ylim(0, 1)
    axes.set_xlim(left=0)
    axes.tick_params(labelsize=11)
    axes.grid(alpha=0.25)
    axes.set_title(title, fontsize=13)
    figure.legend(loc="outside upper center", ncols=2, fontsize=12, frameon=False)
    figure.supxlabel(caption, fontsize=8, color="0.35")
    return save(figure, stem)


def signal_profiles(profiles: Sequence[Profile], caption: str, stem: Path) -> list[Path]:
    """Second moments over depth: a column for every network, forward above, backward below.

    Args:
        profiles: both directions of every initialisation of every network.
        caption: below the axes: what was measured.
        stem: path of the figure without its ending.

    Returns:
        The files written, a PNG and a PDF.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    nets = list(dict.fromkeys(p.net for p in profiles))
    arms = list(dict.fromkeys(p.arm for p in profiles))
    size = {"figsize": (4.3 * len(nets), 7.5), "layout": "constrained"}
    figure, grid = pyplot().subplots(2, len(nets), squeeze=False, sharey="row", **size)
    for p in profiles:
        row, column = ("forward", "backward").index(p.direction), nets.index(p.net)
        axes, colour = grid[row, column], _PROFILE_COLOURS[arms.index(p.arm)]
        x = np.arange(1, len(p.layers) + 1)
        log, half = p.interval()
        to_decimal = 1 / np.log(10)
        first = row == 0 and column == 0
        axes.plot(x, p.predicted * to_decimal, color=colour, lw=1.5, label=p.arm if first else None)
        axes.errorbar(
            x, log * to_decimal, half * to_decimal, fmt="o", ms=3.5, color=colour, elinewidth=1
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"$10^{{{y:.0f}}}$"))
        axes.set_ylim(*_DECADES)
        axes.grid(alpha=0.25)
        axes.tick_params(labelsize=11)
        if row == 0:
            axes.set_title(f"{p.net}, {len(p.layers)} layers", fontsize=12)
        else:
            axes.set_xlabel("Layer", fontsize=13)
    grid[0, 0].set_ylabel("Forward: E[y²]", fontsize=13)
    grid[1, 0].set_ylabel("Backward: E[Δy²]", fontsize=13)
    figure.legend(loc="outside upper center", ncols=len(arms), fontsize=12, frameon=False)
    figure.supxlabel(caption, fontsize=9, color="0.35")
    return save(figure, stem)


def final_errors(
    curves: Mapping[str, Sequence[Curve]], title: str, caption: str, stem: Path
) -> list[Path]:
    """The final error of every arm, a row each: every seed small, mean and interval large.

    Args:
        curves: arm -> the curve of every seed; 'group: arm' has the colour of its group.
        title: above the axes.
        caption: below them: what was run.
        stem: path of the figure without its ending.

    Returns:
        The files written, a PNG and a PDF.
    """
    from matplotlib.ticker import PercentFormatter

    figure, axes = pyplot().subplots(figsize=(8, 1.6 + 0.5 * len(curves)), layout="constrained")
    groups = list(dict.fromkeys(arm.partition(":")[0] for arm in curves))
    for row, (arm, of_arm) in enumerate(curves.items()):
        colour = _GROUP_COLOURS[groups.index(arm.partition(":")[0])]
        errors = [curve.final_error() for curve in of_arm]
        mean, half = student(errors)
        small = {"ms": 4, "color": colour, "alpha": 0.35, "clip_on": False}
        axes.plot(errors, [row] * len(errors), "o", **small)
        interval = {"xerr": half, "elinewidth": 2, "capsize": 5} if len(errors) > 1 else {}
        _whole(axes.errorbar(mean, row, fmt="D", ms=8, color=colour, **interval))
    axes.set_yticks(range(len(curves)), list(curves), fontsize=13)
    axes.invert_yaxis()
    axes.set_xlim(0, min(1, axes.get_xlim()[1]))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    axes.set_xlabel("Final test error (%)", fontsize=13)
    axes.tick_params(axis="x", labelsize=12)
    axes.grid(alpha=0.25)
    figure.suptitle(title, fontsize=13)
    figure.supxlabel(caption, fontsize=9, color="0.35")
    return save(figure, stem)


def errors_by_test(
    errors: Mapping[str, Mapping[str, Sequence[float]]],
    caption: str,
    stem: Path,
    along: str = "Test",
) -> list[Path]:
    """The error of every model by how it is tested: every seed small, mean and interval large.

    Args:
        errors: model -> test -> fractions, one for each seed.
        caption: below the axes: what was run.
        stem: path of the figure without its ending.
        along: what the tests are, if not tests.

    Returns:
        The files written, a PNG and a PDF.
    """
    from matplotlib.ticker import PercentFormatter

    figure, axes = pyplot().subplots(figsize=(8, 4.8), layout="constrained")
    tests = list(next(iter(errors.values())))
    for i, (model, of_model) in enumerate(errors.items()):
        at = np.arange(len(tests)) + 0.16 * (i - (len(errors) - 1) / 2)
        for place, test in zip(at, tests, strict=True):
            small = {"ms": 3, "c": f"C{i}", "alpha": 0.4, "clip_on": False}
            axes.plot([place] * len(of_model[test]), of_model[test], "o", **small)
        means, halves = zip(*(student(of_model[test]) for test in tests), strict=True)
        interval = {"yerr": halves, "elinewidth": 2, "capsize": 4} if np.isfinite(halves[0]) else {}
        fmt, colour = "osD^vP"[i % 6], f"C{i}"
        drawn = axes.errorbar(at, means, fmt=fmt, ms=8, color=colour, label=model, **interval)
        _whole(drawn)
    names = [re.sub(r"([,:]) ", r"\1\n", test) for test in tests]  # the long ones in lines
    axes.set_xticks(range(len(tests)), names, fontsize=13)
    axes.set_xlabel(along, fontsize=13)
    axes.set_ylabel("Top-1 error (%)", fontsize=13)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    axes.tick_params(axis="y", labelsize=12)
    axes.grid(axis="y", alpha=0.25)
    figure.legend(loc="outside upper center", ncols=4, fontsize=12, frameon=False)
    figure.supxlabel(caption, fontsize=9, color="0.35")
    return save(figure, stem)


def method_errors(
    curves: Mapping[str, Mapping[str, Sequence[Curve]]], caption: str, stem: Path
) -> list[Path]:
    """Error against steps, the median of each method; a panel for each condition.

    Args:
        curves: condition -> method -> the curve of every seed; those that diverged go on at 1.
        caption: below the axes: what was run.
        stem: path of the figure without its ending.

    Returns:
        The files written, a PNG and a PDF.
    """
    from matplotlib.ticker import PercentFormatter

    figure, panels = _panels(curves, height=4.6)
    for axes, by_method in zip(panels, curves.values(), strict=True):
        # All runs share their evaluations, unless they diverged.
        steps = max((c.steps for of in by_method.values() for c in of), key=len)
        for i, (method, of_method) in enumerate(by_method.items()):
            errors = [
                np.pad(curve.errors, (0, len(steps) - len(curve.errors)), constant_values=1.0)
                for curve in of_method
            ]
            marker = "osD^vP*X<"[i % 9]
            style = {"color": f"C{i}", "marker": marker, "ms": 7, "lw": 2, "clip_on": False}
            axes.plot(steps, np.median(errors, axis=0), label=method, **style)
        axes.set_xlabel("Steps", fontsize=13)
        axes.set_ylim(0, 1.03)
    panels[0].set_ylabel("Test error (%), median", fontsize=13)
    panels[0].yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside right center", fontsize=13, frameon=False, title="at step 0"
    )
    figure.supxlabel(caption, fontsize=10, color="0.35")
    return save(figure, stem)


def change_rates(
    rates: Mapping[str, Mapping[str, np.ndarray]], caption: str, stem: Path
) -> list[Path]:
    """C̃ of every layer over the geometric mean of its net; a panel for each condition.

    Args:
        rates: condition -> method -> the rates of every seed ``[n, L]``.
        caption: below the axes: what was measured.
        stem: path of the figure without its ending.

    Returns:
        The files written, a PNG and a PDF.
    """
    figure, panels = _panels(rates, height=5.0)
    for axes, by_method in zip(panels, rates.values(), strict=True):
        for row, of_method in enumerate(by_method.values()):
            logs = np.log(of_method)
            logs -= logs.mean(axis=1, keepdims=True)
            depth = np.broadcast_to(np.arange(1, logs.shape[1] + 1), logs.shape)
            dots = axes.scatter(np.exp(logs), np.full(logs.shape, row), c=depth, s=28, alpha=0.7)
            spread = f"{logs.std(axis=1).mean():.2f}"
            axes.text(
                1.02, row, spread, transform=axes.get_yaxis_transform(), va="center", fontsize=12
            )
        axes.text(1.02, -0.75, "spread", transform=axes.get_yaxis_transform(), fontsize=11)
        axes.set_xscale("log")
        axes.set_yticks(range(len(by_method)), list(by_method), fontsize=13)
        axes.set_xlabel("C̃ of a layer / geometric mean", fontsize=13)
    panels[0].invert_yaxis()
    figure.colorbar(dots, ax=panels, label="Layer", shrink=0.8, pad=0.03)
    figure.supxlabel(f"{caption}; spread: of log C̃ over layers", fontsize=10, color="0.35")
    return save(figure, stem)


def _whole(drawn: Any) -> None:
    """Shows the marks of an errorbar whole at the frame, where its bars end."""
    drawn[0].set(clip_on=False, zorder=3)


def seeds(first: int, n: int) -> str:
    """Seeds as a caption has them."""
    return f"seeds {first} to {first + n - 1}, n = {n}" if n > 1 else f"seed {first}, n = 1"


def _panels(conditions: Mapping[str, Any], height: float) -> tuple[Any, Sequence[Any]]:
    """A panel for each condition, two in a row, titled with its name."""
    columns = min(2, len(conditions))
    rows = -(-len(conditions) // columns)
    figure, grid = pyplot().subplots(
        *(rows, columns),
        figsize=(2.5 + 4.6 * columns, height * rows),
        squeeze=False,
        sharey=True,
        sharex=True,
        layout="constrained",
    )
    for axes in grid.flat[len(conditions) :]:
        axes.remove()
    panels = list(grid.flat[: len(conditions)])
    for axes, name in zip(panels, conditions, strict=True):
        axes.set_title(name.replace(", padding", ",\npadding"), fontsize=12)
        axes.tick_params(labelsize=11)
        axes.grid(alpha=0.25)
    return figure, panels


def pyplot() -> Any:
    """Imported late: not needed to read results, and slow."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, stem: Path) -> list[Path]:
    """Writes a figure as a PNG and a PDF, closes it and returns the files."""
    files = [stem.with_suffix(suffix) for suffix in (".png", ".pdf")]
    for file in files:
        figure.savefig(file, dpi=150)
    pyplot().close(figure)
    return files
