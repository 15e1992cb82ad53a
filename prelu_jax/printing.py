"""Reports as text, as HTML for a notebook, as Markdown, and as comma-separated values."""

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table

# Signs that CommonMark, or GitHub, would read as markup.
_MARKUP = re.compile(
    r"[\\`*|~$]|&(?=[\w#])|<(?=[\w/!?])"
    r"|(?<![^\W_])_|_(?![^\W_])"  # within a word it is no markup: names of layers stay as they are
    r"|\](?=[(\[])"  # of a link; other brackets stay, as in "[within] trains"
)
_BLOCK = re.compile(r"^(\d*)([-+#>\[.)])")  # start of a list, heading, quote, box or definition


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


def escape_markdown(text: str) -> str:
    """Return Markdown that shows this text, in a cell of a table too, with <br> between lines."""
    return "<br>".join(_MARKUP.sub(r"\\\g<0>", line.strip()) for line in text.splitlines())


def markdown_table(table: Table) -> str:
    """Return the title and the rows of a table as Markdown of GitHub."""
    title = [_paragraph(str(table.title)), ""] if table.title else []
    heads = [escape_markdown(str(column.header)) for column in table.columns]
    rules = ["---:" if column.justify == "right" else "---" for column in table.columns]
    cells = ([escape_markdown(str(cell)) for cell in column.cells] for column in table.columns)
    rows = zip(*cells, strict=True)
    return "".join(f"{line}\n" for line in (*title, *map(_row, (heads, rules, *rows))))


def markdown_list(lines: Iterable[str]) -> str:
    """Return lines as a Markdown list; one that begins with two spaces is below the one before."""
    return "".join(
        f"{'  - ' if line.startswith('  ') else '- '}{_paragraph(line)}\n" for line in lines
    )


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _paragraph(text: str) -> str:
    """Return text that also begins no other block."""
    return _BLOCK.sub(r"\1\\\2", escape_markdown(text))
