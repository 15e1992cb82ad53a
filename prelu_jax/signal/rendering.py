"""A `report.Report` as a table, in a terminal and in a notebook."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from prelu_jax.signal import verdict
from prelu_jax.signal.measurement import Measurement

if TYPE_CHECKING:
    from prelu_jax.signal.report import Report

_WIDTH = 112  # characters, without the layers' names
_LONGEST_NAME = 60
_FAULT = " ◀ "
_GOOD, _BAD, _NOTE = "bold green", "bold red", "yellow"
_ABOUT = (
    "E[y²]: mean square of the layer's outputs. E[Δy²]: mean square of the gradient there.",
    f"accepted: a moment that ends outside is a finding. Random weights stay inside "
    f"({verdict.SIGMAS} σ, or a factor of {math.exp(verdict.TOLERANCE):.0f}).",
    "always 0: share of the input's channels that are 0 for the whole batch.",
    "cosine: between the outputs of different examples; at 1 the layer maps all to one direction.",
    "change rate: the kernel's gradient over the kernel, root mean squares (C̃ of Krähenbühl et al. "
    "2015).",
)
_PREDICTED = "predicted: for independent weights of the kernels' variances and slopes."


def render(report: "Report") -> Iterator[RenderableType]:
    """The table, the verdict with its advice, and what could not be seen."""
    yield _table(report)
    about = (*_ABOUT, _PREDICTED) if report.predicted else _ABOUT
    yield Text("\n".join(about), style="dim")
    measurement = report.measurement
    judged = _GOOD if measurement.coverage.suffices else _NOTE
    yield Text(report.summary, style=_BAD if report.findings else judged)
    examples = measurement.examples.lines() if measurement.examples else []
    for line in (*measurement.coverage.lines(), *examples):
        yield Text(line, style="dim")
    for line in _notes(measurement):
        yield Text(line, style=_NOTE)


def _notes(measurement: Measurement) -> list[str]:
    """Return what the verdict does not cover."""
    reason = measurement.collapse_not_judged
    collapse = [] if reason is None else [f"Collapse is not judged: {reason}."]
    return [*measurement.coverage.notes(), *collapse]


def width(report: "Report") -> int:
    """Return how many columns the table takes."""
    return _WIDTH + min(max(len(label) for label in _labels(report)), _LONGEST_NAME)


def _table(report: "Report") -> Table:
    loss = report.measurement.loss
    objective = "unit noise sent back from its outputs" if loss is None else f"loss {loss:.4g}"
    table = Table(
        title=Text(f"{report.model}: {objective}"),  # brackets in a str would be markup
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("layer", overflow="fold")
    table.add_column("output")
    predicted = ("predicted",) if report.predicted else ()
    signal = ("E[y²]", *predicted, "accepted", "E[Δy²]", *predicted, "accepted")
    for name in (*signal, "always 0", "cosine", "change rate"):
        table.add_column(Text(name), justify="right", no_wrap=True)
    for label, row in zip(_labels(report), report.rows(), strict=True):
        table.add_row(
            Text(label, style=_BAD if _FAULT in label else ""),
            "×".join(map(str, row["shape"][1:])),
            *_moment(row, "second_moment", "accepted", report),
            *_moment(row, "gradient_second_moment", "gradient_accepted", report),
            "" if row["input_zero_fraction"] is None else f"{row['input_zero_fraction']:.0%}",
            "" if row["cosine"] is None else f"{row['cosine']:.4f}",
            "" if row["change_rate"] is None else f"{row['change_rate']:.1e}",
        )
    return table


def _labels(report: "Report") -> list[str]:
    """The layers' names, with a verdict behind those that are first at fault."""
    at_fault = {finding.layer: finding.verdict for finding in reversed(report.findings)}
    names = [row.name for row in report.layers]
    return [f"{name}{_FAULT}{at_fault[name]}" if name in at_fault else name for name in names]


def _moment(row: dict[str, Any], moment: str, accepted: str, report: "Report") -> Iterator[str]:
    yield f"{row[moment]:.1e}"
    if report.predicted:
        predicted = row[f"predicted_{moment}"]
        yield "" if predicted is None else f"{predicted:.1e}"
    least, greatest = row[f"{accepted}_least"], row[f"{accepted}_greatest"]
    yield "" if least is None else f"{least:.0e}…{greatest:.0e}"
