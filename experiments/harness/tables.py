"""Markdown of sentences and tables."""

from collections.abc import Iterable, Sequence


def document(*blocks: str) -> str:
    """Return paragraphs and tables with an empty line between them."""
    return "\n\n".join(blocks) + "\n"


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table: the heads of its columns, and its rows of cells."""
    return "\n".join([_line(heads), "|---" * len(heads) + "|", *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|"
