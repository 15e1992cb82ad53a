"""Drawing a report: the only part of the library that needs matplotlib."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

if TYPE_CHECKING:
    from prelu_jax.signal.report import Report

_NAMES = 32  # more of them on an axis cannot be read


class _Drawing(Figure):
    """A figure that a notebook shows although pyplot knows nothing of it."""

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        self.savefig(out, format="png")
        return out.getvalue()


def draw(report: "Report") -> Figure:
    """Second moments over depth on a log axis, E[y²] above and E[Δy²] below.

    Measured as points; predicted as a line, where there is a prediction; the band is what random
    weights do (± 2 σ) around what the first hidden layer, or backward the last, has.
    """
    rows = list(report.rows())
    figure = _Drawing(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    _curve(above, rows, "second_moment", "log_noise", 0)
    _curve(below, rows, "gradient_second_moment", "gradient_log_noise", max(0, len(rows) - 2))
    above.set_ylabel("forward: E[y²]", fontsize=12)
    below.set_ylabel("backward: E[Δy²]", fontsize=12)
    step = -(-len(rows) // _NAMES)
    shown = range(0, len(rows), step)
    below.xaxis.set_major_locator(FixedLocator(list(shown)))
    below.set_xticklabels([rows[i]["name"] for i in shown], rotation=90, fontsize=9)
    below.set_xlabel("layer, in the order of computation", fontsize=12)
    for finding in report.findings:
        axes = below if finding.direction == "backward" else above
        at = next(i for i, row in enumerate(rows) if row["name"] == finding.layer)
        axes.axvline(at, color="tab:red", lw=1, ls=":", label=f"{finding.verdict} from here")
    above.set_title(f"{report.model}: {report.verdict}", fontsize=13)
    for axes in (above, below):
        axes.legend(fontsize=9)
        axes.grid(alpha=0.25)
        axes.tick_params(axis="y", labelsize=10)
    return figure


def _curve(axes: Any, rows: Sequence[dict[str, Any]], moment: str, noise: str, start: int) -> None:
    x = np.arange(len(rows))
    measured = _positive(row[moment] for row in rows)
    spread = np.exp(2 * np.array([row[noise] for row in rows]))
    reference = measured[start]
    axes.set_yscale("log")
    axes.plot(x, measured, "o", color="tab:blue", ms=4, label="measured")
    if any(row[f"predicted_{moment}"] is not None for row in rows):
        predicted = _positive(row[f"predicted_{moment}"] for row in rows)
        axes.plot(x, predicted, "-", color="tab:orange", lw=1.5, label="predicted")
    if np.isfinite(reference):
        band = (reference / spread, reference * spread)
        axes.fill_between(
            x, *band, color="0.5", alpha=0.15, lw=0, label="random weights alone, ± 2 σ"
        )


def _positive(values: Any) -> np.ndarray:
    """Zeros, infinities and what is missing leave a gap."""
    array = np.array([np.nan if v is None else v for v in values], np.float64)
    return np.where((array > 0) & np.isfinite(array), array, np.nan)
