"""Figures of errors, drawn from curves alone; their caption is the setting of the runs."""

import itertools
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.harness import drawing
from experiments.harness.results import Curve

_GROUP_COLOURS = ("0.35", "tab:blue", "tab:orange")
_OUTSIDE = 1.03  # of the axes: a cross that has no place on the scale


def error_curves(curves: Sequence[Curve], title: str, caption: str) -> Any:
    """Draw error against epochs: every seed thin, the median bold up to the end of the first run.

    A run that diverged ends in a cross at its last evaluation, and is not in the median. The axis
    of epochs is logarithmic, but for the first evaluation, if the longest run is more than ten
    times as long as the shortest one.

    Args:
        curves: of one or more arms; the seeds of an arm share their epochs.
    """
    from matplotlib.lines import Line2D

    figure, ((axes,),) = drawing.subplots(1, 1, (7, 5))
    handles = []
    for arm, (colour, dashes, _) in drawing.styles(curve.arm for curve in curves).items():
        of_arm = [curve for curve in curves if curve.arm == arm]
        done = drawing.finished(of_arm)
        for curve in of_arm:
            axes.plot(curve.epochs, curve.errors, color=colour, ls=dashes, lw=0.8, alpha=0.5)
        if done:
            bold = drawing.median(done)
            axes.plot(done[0].epochs[: len(bold)], bold, color=colour, ls=dashes, lw=2.5)
        drawing.crosses(axes, of_arm, curves, "epochs", colour)
        label = f"{arm}, {drawing.count('median', len(of_arm), len(of_arm) - len(done))}"
        handles.append(Line2D([], [], color=colour, ls=dashes, lw=2.5, label=label))
    if len(drawing.finished(curves)) < len(curves):
        handles.append(drawing.cross_entry("last evaluation"))
    axes.set_xlabel("Epochs", fontsize=14)
    axes.set_ylabel("Test error (%)", fontsize=14)
    drawing.percent(axes.yaxis)
    axes.set_ylim(0, 1)
    longer = [curve.epochs for curve in drawing.finished(curves) if len(curve.epochs) > 1]
    ends = [epochs[-1] for epochs in longer]
    if ends and max(ends) > 10 * min(ends):
        axes.set_xscale("symlog", linthresh=min(epochs[1] for epochs in longer))
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(left=0)
    axes.tick_params(labelsize=12)
    axes.grid(alpha=0.25)
    axes.set_title(title, fontsize=14)
    drawing.legend(figure, handles)
    drawing.caption(figure, caption)
    return figure


def method_errors(curves: Mapping[str, Mapping[str, Sequence[Curve]]], caption: str) -> Any:
    """Draw error against steps, the median of each method; a panel for each condition.

    Runs that diverged are not in the median: each is a thin line that ends in a cross. The title of
    a panel has their number.

    Args:
        curves: condition -> method -> the curve of every seed.
    """
    from matplotlib.lines import Line2D

    figure, panels = drawing.panels(curves, height=4.6)
    colours = drawing.colours(next(iter(curves.values())))
    markers = dict(zip(colours, itertools.cycle("osD^vP*<>")))
    handles = [
        Line2D([], [], color=colours[method], marker=markers[method], ms=7, lw=2, label=method)
        for method in colours
    ]
    for axes, by_method in zip(panels, curves.values(), strict=True):
        _draw_medians(axes, by_method, colours, markers)
        everyone = [curve for of_method in by_method.values() for curve in of_method]
        lost = []
        for method, of_method in by_method.items():
            diverged = [curve for curve in of_method if curve.status == "diverged"]
            for curve in diverged:
                axes.plot(curve.steps, curve.errors, color=colours[method], lw=1, alpha=0.7)
            if diverged:
                lost.append(f"{method} {len(diverged)} of {len(of_method)}")
            drawing.crosses(axes, diverged, everyone, "steps", colours[method])
        if lost:
            note = textwrap.fill(f"× diverged: {', '.join(lost)}", 45)
            axes.set_title(f"{axes.get_title()}\n{note}", fontsize=12)
        axes.set_xlabel("Steps", fontsize=14)
        axes.set_ylim(0, 1.03)
    if any(len(drawing.finished(c)) < len(c) for by in curves.values() for c in by.values()):
        handles.append(drawing.cross_entry("last\nevaluation"))
    panels[0].set_ylabel("Test error (%), median", fontsize=14)
    drawing.percent(panels[0].yaxis)
    place = {"loc": "outside right center", "fontsize": 13, "frameon": False}
    figure.legend(handles=handles, title="at step 0", title_fontsize=13, **place)
    drawing.caption(figure, caption)
    return figure


def _draw_medians(
    axes: Any,
    by_method: Mapping[str, Sequence[Curve]],
    colours: Mapping[str, str],
    markers: Mapping[str, str],
) -> None:
    """Draw the median of every method over the runs that did not diverge."""
    done = {method: drawing.finished(of_method) for method, of_method in by_method.items()}
    # All runs share their evaluations, unless they diverged.
    steps = max((c.steps for of_method in by_method.values() for c in of_method), key=len)
    medians = {m: drawing.median(curves) for m, curves in done.items() if curves}
    for group in drawing.touching(medians):
        lines = zip(group, drawing.overlaid(len(group)), strict=True)
        for i, (method, (width, dashes)) in enumerate(lines):
            style = {"color": colours[method], "marker": markers[method], "ms": 7, "clip_on": False}
            # Lines on each other take turns in their marks too.
            turns = (i, len(group)) if i < len(steps) else None
            axes.plot(steps, medians[method], lw=width, ls=dashes, markevery=turns, **style)


def final_errors(curves: Mapping[str, Sequence[Curve]], title: str, caption: str) -> Any:
    """Draw the final error of every arm, a row each: seeds small, mean and interval large.

    A run that diverged is a cross at its last evaluation, right of the frame if it had none.

    Args:
        curves: arm -> the curve of every seed; 'group: arm' has the colour of its group.
    """
    figure, ((axes,),) = drawing.subplots(1, 1, (8, 2 + 0.55 * len(curves)))
    groups = list(dict.fromkeys(arm.partition(":")[0] for arm in curves))
    rows = []
    for row, (arm, of_arm) in enumerate(curves.items()):
        colour = _GROUP_COLOURS[groups.index(arm.partition(":")[0]) % len(_GROUP_COLOURS)]
        errors = [curve.final_error() for curve in drawing.finished(of_arm)]
        lost = [curve for curve in of_arm if curve.status == "diverged"]
        if errors:
            small = {"ms": 5, "color": colour, "alpha": 0.4, "clip_on": False}
            axes.plot(errors, row + drawing.jitter(len(errors), 0.15), "o", **small)
            drawing.mean(axes, row, errors, "x", fmt="D", ms=8, color=colour)
        for curve, y in zip(lost, row + drawing.jitter(len(lost), 0.15), strict=True):
            if len(curve.errors):
                drawing.cross(axes, float(curve.errors[-1]), y, colour)
            else:
                drawing.cross(axes, _OUTSIDE, y, colour, transform=axes.get_yaxis_transform())
        rows.append(f"{arm}\n{len(lost)} of {len(of_arm)} diverged" if lost else arm)
    axes.set_yticks(range(len(rows)), rows, fontsize=13)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, min(1, axes.get_xlim()[1]))
    drawing.percent(axes.xaxis)
    axes.set_xlabel("Final test error (%)", fontsize=14)
    axes.tick_params(axis="x", labelsize=12)
    axes.grid(alpha=0.25)
    figure.suptitle(title, fontsize=14)
    if any("diverged" in row for row in rows):
        caption += "; ×: diverged, at its last evaluation, right of the frame if there is none"
    drawing.caption(figure, caption)
    return figure


def errors_by_test(
    errors: Mapping[str, Mapping[str, Sequence[float]]],
    caption: str,
    along: str = "Test",
) -> Any:
    """Draw the error of every model by its test: every seed small, mean and interval large.

    A run that diverged is a cross above the frame: it is not tested.

    Args:
        errors: model -> test -> fractions, one for each seed; not a number for one that diverged.
        along: the label of the tests' axis.
    """
    figure, ((axes,),) = drawing.subplots(1, 1, (8, 5))
    tests = list(next(iter(errors.values())))
    handles = []
    lost = False
    for i, (model, of_model) in enumerate(errors.items()):
        colour, marker = f"C{i}", "osD^vP"[i % 6]
        for place, test in enumerate(tests):
            at = place + 0.8 / (len(errors) + 1) * (i - (len(errors) - 1) / 2)
            tested = [error for error in of_model[test] if np.isfinite(error)]
            if tested:
                small = {"ms": 4, "color": colour, "alpha": 0.4, "clip_on": False}
                axes.plot(at + drawing.jitter(len(tested), 0.03), tested, "o", **small)
                drawing.mean(axes, at, tested, "y", fmt=marker, ms=8, color=colour)
            missing = len(of_model[test]) - len(tested)
            for x in at + drawing.jitter(missing, 0.06):
                drawing.cross(axes, x, _OUTSIDE, colour, transform=axes.get_xaxis_transform())
            lost |= missing > 0
        handles.append(_entry(model, of_model, colour, marker))
    if lost:
        handles.append(drawing.cross_entry("not tested"))
    names = [re.sub(r"([,:]) ", r"\1\n", test) for test in tests]  # the long ones in lines
    axes.set_xticks(range(len(tests)), names, fontsize=13)
    axes.set_xlim(-0.5, len(tests) - 0.5)
    axes.set_xlabel(along, fontsize=14)
    axes.set_ylabel("Top-1 error (%)", fontsize=14)
    axes.set_ylim(0, min(1, axes.get_ylim()[1]))
    drawing.percent(axes.yaxis)
    axes.tick_params(axis="y", labelsize=12)
    axes.grid(axis="y", alpha=0.25)
    drawing.legend(figure, handles)
    drawing.caption(figure, caption)
    return figure


def _entry(model: str, of_model: Mapping[str, Sequence[float]], colour: str, marker: str) -> Any:
    """Return a model's entry of the legend, with the number of runs that diverged."""
    from matplotlib.lines import Line2D

    errors = next(iter(of_model.values()))
    diverged = int(np.isnan(errors).sum())
    label = f"{model}, {drawing.count('mean', len(errors), diverged)}" if diverged else model
    return Line2D([], [], color=colour, marker=marker, ms=8, ls="none", label=label)
