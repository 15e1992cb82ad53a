"""Drawing a report: the only part of the library that needs matplotlib."""

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from prelu_jax.signal import drift
from prelu_jax.signal.verdict import COLLAPSING, Finding

_NAMES = 32  # more of them on an axis cannot be read


class _Drawing(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        self.savefig(out, format="png")
        return out.getvalue()


def draw(title: str, rows: Sequence[dict[str, Any]], findings: Sequence[Finding]) -> Figure:
    """Return E[y²], E[Δy²] and 1 - cosine over depth, on log axes from top to bottom.

    Measured values are points; predictions, where there are some, a line. 1 - cosine falls to 0
    where the layers map all examples to one direction; without a measured cosine it is left out.

    The wide band is the range that the verdict accepts: a signal that ends outside of it is a
    finding. The narrow band is the noise of random weights, ± 2 σ, around the same centre. The last
    layer is not judged.

    Args:
        title: of the figure.
        rows: of `Report.rows`.
        findings: a line is drawn where each of them begins.
    """
    panels = 3 if any(row["cosine"] is not None for row in rows) else 2
    figure = _Drawing(figsize=(8, 1 + 3 * panels), layout="constrained")
    above, below, *others = every = figure.subplots(panels, sharex=True)
    _curve(above, rows, "second_moment")
    _bands(above, rows, "")
    _curve(below, rows, "gradient_second_moment")
    _bands(below, rows, "gradient_")
    above.set_ylabel("forward: E[y²]", fontsize=14)
    below.set_ylabel("backward: E[Δy²]", fontsize=14)
    for axes in others:
        _curve(axes, rows, "cosine", _apart)
        axes.set_ylabel("1 − cosine", fontsize=14)
    step = -(-len(rows) // _NAMES)
    shown = range(0, len(rows), step)
    lowest = every[-1]
    lowest.xaxis.set_major_locator(FixedLocator(list(shown)))
    lowest.set_xticklabels([rows[i]["name"] for i in shown], rotation=90, fontsize=11)
    lowest.set_xlabel("layer, in the order of computation", fontsize=14)
    for finding in findings:
        axes = below if finding.direction == "backward" else above
        axes = lowest if finding.verdict == COLLAPSING else axes
        at = next(i for i, row in enumerate(rows) if row["name"] == finding.layer)
        where = f" ({finding.direction})" if finding.direction else ""
        label = f"{finding.verdict}{where} from here"
        axes.axvline(at, color="tab:red", lw=1.5, ls=":", label=label)
    above.set_title(title, fontsize=15)
    for axes in every:
        axes.grid(alpha=0.25)
        axes.tick_params(axis="y", labelsize=12)
    drawn = [axes.get_legend_handles_labels() for axes in every]
    entries = {
        label: line for lines, labels in drawn for line, label in zip(lines, labels, strict=True)
    }
    figure.legend(entries.values(), entries, loc="outside lower center", ncols=2, fontsize=11)
    return figure


def _curve(
    axes: Any, rows: Sequence[dict[str, Any]], field: str, shown: Callable[[Any], Any] = lambda v: v
) -> None:
    """Draw ``shown`` of a measured field and of its prediction, on a log axis."""
    axes.set_yscale("log")
    measured = [shown(row[field]) for row in rows]
    axes.plot(_positive(measured), "o", color="tab:blue", label="measured")
    predicted = [shown(row[f"predicted_{field}"]) for row in rows]
    if any(value is not None for value in predicted):
        axes.plot(_positive(predicted), "-", color="tab:orange", lw=1.5, label="predicted")


def _apart(cosine: float | None) -> float | None:
    return None if cosine is None else 1 - cosine


def _bands(axes: Any, rows: Sequence[dict[str, Any]], direction: str) -> None:
    """Draw the accepted range and the noise; ``direction`` is '' or 'gradient_'."""
    x = np.arange(len(rows))
    least, centre, greatest = (
        _positive(row[f"{direction}accepted_{place}"] for row in rows)
        for place in ("least", "centre", "greatest")
    )
    if not np.isfinite(centre).any():
        return
    factor = math.exp(drift.TOLERANCE)
    label = f"accepted by the verdict: {drift.SIGMAS} σ, or a factor of {factor:.0f}"
    axes.fill_between(x, least, greatest, color="tab:green", alpha=0.12, lw=0, label=label)
    noise = np.exp(2 * np.array([row[f"{direction}log_noise"] for row in rows]))
    label = "random weights alone: 2 σ"
    axes.fill_between(x, centre / noise, centre * noise, color="0.5", alpha=0.4, lw=0, label=label)


def _positive(values: Any) -> np.ndarray:
    """Return the values, with a gap for zeros, infinities and missing ones."""
    array = np.array([np.nan if v is None else v for v in values], np.float64)
    return np.where((array > 0) & np.isfinite(array), array, np.nan)
