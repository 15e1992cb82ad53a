"""Reports as text, as HTML for a notebook, and as comma-separated values."""

import csv
import io
import os
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console, RenderableType


def to_text(report: RenderableType, width: int) -> str:
    """Return a report as plain text, ``width`` columns wide."""
    return _record(report, width).export_text()


def to_html(report: RenderableType, width: int) -> str:
    """Return a report as HTML for a notebook."""
    form = '<pre style="font-family:monospace;line-height:1.3">{code}</pre>'
    return _record(report, width).export_html(inline_styles=True, code_format=form)


def _record(report: RenderableType, width: int) -> Console:
    # Without force_jupyter=False, Rich would also display the report in a notebook.
    console = Console(width=width, file=io.StringIO(), record=True, force_jupyter=False)
    console.print(report)
    return console


def to_csv(rows: Iterable[Mapping[str, Any]], file: str | os.PathLike[str] | None = None) -> str:
    """Return rows as comma-separated values with a header; also write them to ``file`` if given.

    Columns are in the order in which they first occur in the rows.
    """
    rows = list(rows)
    out = io.StringIO()
    fields = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(out, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    if file is not None:
        with open(file, "w", encoding="utf-8") as stream:
            stream.write(out.getvalue())
    return out.getvalue()
