import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from prelu_jax import printing
from tests.markdown import read_markdown

SIGNS = "|\\*_<>`[]()!~#&$+-=.:1a ×"
EVIL = (
    *(
        "a|b",
        "a\\|b",
        "\\",
        "`",
        "``a`` b",
        "*a*",
        "__init__",
        "<b>",
        "<!-- x -->",
        "&lt;",
        "~~x~~",
    ),
    *("[a](b)", "![a](b)", "<https://x.org>", "a\n| b", "$x$", "| --- |", "layers_0/kernel"),
    *("# a", "- a", "+ a", "> a", "1. a", "2) a", "[a]: b", "[ ] a", "***", "---", "```", "\tx"),
)
# One line without the signs that no page shows; outer spaces are no part of a cell.
texts = st.one_of(st.text(SIGNS), st.text(st.characters(exclude_categories=["C", "Z"]))).map(
    str.strip
)


def lines(text):
    """Text as a page shows it."""
    return "\n".join(map(str.strip, text.splitlines()))


@given(st.lists(st.lists(texts, min_size=3, max_size=3), min_size=1, max_size=4), texts)
@example([EVIL[i : i + 3] for i in range(0, len(EVIL) - 2, 3)], "# [title]")
@example([["", "", ""]], "")
def test_a_parser_reads_back_the_cells_of_a_table(cells, title):
    table = Table(title=Text(title))
    for head in cells[0]:
        table.add_column(Text(head))
    for row in cells[1:]:
        table.add_row(*map(Text, row))
    rows, _ = read_markdown(printing.markdown_table(table))
    assert rows == [[lines(cell) for cell in row] for row in cells]


@given(st.lists(texts.filter(bool), min_size=1))
@example([text for text in EVIL if text.strip()])
def test_a_parser_reads_back_the_items_of_a_list(items):
    _, read = read_markdown(printing.markdown_list(items))
    assert read == [lines(item) for item in items]


def test_numbers_are_on_the_right_and_a_title_is_above():
    table = Table(title="All of *them*")
    table.add_column("name")
    table.add_column("value", justify="right")
    table.add_row("conv1_a", "1.0")
    assert printing.markdown_table(table) == (
        "All of \\*them\\*\n\n| name | value |\n| --- | ---: |\n| conv1_a | 1.0 |\n"
    )


def test_an_indented_line_is_an_item_below_the_one_before():
    text = printing.markdown_list(["a fault:", "  Advice: _none_", "b"])
    assert text == "- a fault:\n  - Advice: \\_none\\_\n- b\n"
    assert read_markdown(text) == ([], ["a fault:", "Advice: _none_", "b"])


@pytest.mark.parametrize("name", ["conv2_1/kernel", "layers_0", "a_b_c"])
def test_names_stay_as_they_are(name):
    assert printing.escape_markdown(name) == name
