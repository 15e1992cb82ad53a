"""Reader of Markdown for tests: the text of cells and items, as a page would show it."""

from markdown_it import MarkdownIt


def read_markdown(text):
    """Return the rows of all tables, and the items of all lists; raise an error for other markup.

    Rows and items are plain text, with a line break where the Markdown has <br>.
    """
    rows, items, opened = [], [], []
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text):
        kind = token.type.removesuffix("_open")
        if token.nesting == 1:
            assert kind in {
                *("table", "thead", "tbody", "tr", "th", "td"),
                *("bullet_list", "list_item", "paragraph"),
            }, token
            opened.append(kind)
            if kind == "tr":
                rows.append([])
        elif token.nesting == -1:
            opened.pop()
        else:
            assert token.type == "inline", token
            if opened[-1] in ("th", "td"):
                rows[-1].append(_plain(token))
            elif "list_item" in opened:
                items.append(_plain(token))
    return rows, items


def _plain(inline):
    for child in inline.children:
        assert child.type == "text" or child.content == "<br>", child
    return "".join("\n" if c.type == "html_inline" else c.content for c in inline.children)
