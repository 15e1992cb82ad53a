"""Markdown as one HTML file that needs no other: its style and its figures are in it."""

import base64
import mimetypes
import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt

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
a { color: var(--link) }
table { display: block; overflow-x: auto; border-collapse: collapse; font-size: 0.9em }
th, td { border: 1px solid var(--line); padding: 0.3em 0.6em; text-align: left }
th, pre, code { background: var(--shade) }
pre { overflow-x: auto; padding: 0.6em }
img { max-width: 100%; background: white }
</style>
"""


def render(text: str, folder: Path, figures: Mapping[str, Path]) -> str:
    """Return the page.

    Args:
        text: CommonMark with tables.
        folder: where its links start from.
        figures: present place of files that are to be there, by their path in it.

    Raises:
        ValueError: a figure is in neither, or no image by its ending.
    """
    markdown = MarkdownIt("commonmark").enable("table")
    tokens = markdown.parse(text)
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
    return f"{_HEAD}{markdown.renderer.render(tokens, markdown.options, {})}</html>\n"
