"""Markdown as one HTML file that needs no other: its style and its figures are in it."""

import base64
import itertools
import mimetypes
import os
import re
from collections.abc import Container, Mapping, Sequence
from html import escape
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

_LONGEST_TABLE = 15  # rows that are shown before a click
_LISTED = ("h1", "h2", "h3")  # headings in the table of contents

_HEAD = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Results</title>
<style>
:root { color-scheme: light dark; --line: #d0d0d0; --shade: #f4f4f4; --link: #0a58ca }
@media (prefers-color-scheme: dark) {
  :root { --line: #484848; --shade: #282828; --link: #7ab0ff }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56em; margin: 2em auto; padding: 0 1em }
h2 { margin-top: 2.5em; border-top: 1px solid var(--line); padding-top: 1em }
nav ul { list-style: none; padding: 0 }
nav .h1 { font-weight: bold }
nav .h3 { padding-left: 1.5em }
summary { cursor: pointer; background: var(--shade); padding: 0.3em 0.6em }
a { color: var(--link) }
table { display: block; overflow-x: auto; border-collapse: collapse; font-size: 0.9em }
th, td { border: 1px solid var(--line); padding: 0.3em 0.6em; text-align: left }
th, pre, code { background: var(--shade) }
pre { overflow-x: auto; padding: 0.6em }
img { max-width: 100%; background: white }
</style>
"""


def render(text: str, folder: Path, figures: Mapping[str, Path]) -> str:
    """Return the page: a table of contents after the title, long tables closed until a click.

    Args:
        text: CommonMark with tables.
        folder: where its links start from.
        figures: present place of files that are to be there, by their path in it.

    Raises:
        ValueError: a figure is in neither, or no image by its ending.
    """
    markdown = MarkdownIt("commonmark").enable("table")
    tokens = markdown.parse(text)
    _embed_images(tokens, folder, figures)
    _insert_contents(tokens)
    _fold_long_tables(tokens)
    return f"{_HEAD}{markdown.renderer.render(tokens, markdown.options, {})}</html>\n"


def _embed_images(tokens: Sequence[Token], folder: Path, figures: Mapping[str, Path]) -> None:
    for token in (child for block in tokens for child in block.children or ()):
        path = unquote(str(token.attrs.get("src", "")))
        if token.type != "image" or re.match(r"\w+:", path):  # an image on the web stays there
            continue
        file = figures.get(path, folder / os.fsdecode(path.encode()))
        if not file.is_file():
            raise ValueError(f"{folder / path} is shown, but not there. Correct the link to it.")
        kind = mimetypes.guess_type(path)[0] or ""
        if not kind.startswith("image/"):
            raise ValueError(
                f"{folder / path} is shown, but its ending is that of no kind of image."
            )
        data = base64.b64encode(file.read_bytes()).decode()
        token.attrs["src"] = f"data:{kind};base64,{data}"


def _insert_contents(tokens: list[Token]) -> None:
    """Give every heading an anchor, and insert links to them after the title."""
    links, taken = [], set[str]()
    for heading, text in itertools.pairwise(tokens):
        if heading.type != "heading_open":
            continue
        words = _words(text)
        anchor = _anchor(words, taken)
        taken.add(anchor)
        heading.attrs["id"] = anchor
        if heading.tag in _LISTED:
            link = f'<a href="#{anchor}">{escape(words)}</a>'
            links.append(f'<li class="{heading.tag}">{link}</li>\n')
    has_title = bool(tokens) and tokens[0].tag == "h1"
    listed = "".join(links[has_title:])
    if listed:  # a heading is three tokens
        tokens.insert(3 * has_title, _html(f"<nav>\n<ul>\n{listed}</ul>\n</nav>\n"))


def _words(text: Token) -> str:
    """Return the words of a heading or a cell, without its markup."""
    shown = (child for child in text.children or () if child.type in ("text", "code_inline"))
    return "".join(child.content for child in shown)


def _anchor(words: str, taken: Container[str]) -> str:
    """Return the anchor of a heading, made as GitHub makes those of results.md.

    Of several headings with the same words, all but the first get a number.
    """
    anchor = re.sub(r"[^\w -]", "", words.lower()).replace(" ", "-") or "section"
    numbered = (f"{anchor}-{i}" for i in itertools.count(1))
    return next(name for name in itertools.chain([anchor], numbered) if name not in taken)


def _fold_long_tables(tokens: list[Token]) -> None:
    """Put every long table in an element that a click opens."""
    starts = [i for i, token in enumerate(tokens) if token.type == "table_open"]
    for start in reversed(starts):
        types = [token.type for token in tokens[start:]]
        end = start + types.index("table_close")
        rows = types[: end - start].count("tr_open") - 1
        if rows <= _LONGEST_TABLE:
            continue
        heads = [_words(tokens[i + 1]) for i in range(start, end) if tokens[i].type == "th_open"]
        columns = escape(", ".join(filter(None, heads)))
        tokens.insert(end + 1, _html("</details>\n"))
        tokens.insert(start, _html(f"<details>\n<summary>{rows} rows: {columns}</summary>\n"))


def _html(content: str) -> Token:
    return Token("html_block", "", 0, content=content)
