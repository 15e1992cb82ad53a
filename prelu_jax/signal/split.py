"""Factors of second moments from layer to layer: of each layer, and of the operations before it.

Forward, E[y²] of a layer over E[y²] of the layer before is ``between_factor · kernel_factor``.
Backward, E[Δy²] of the layer before over E[Δy²] of the layer is
``gradient_kernel_factor · gradient_between_factor``. A table shows these factors beside those
expected for independent weights.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from prelu_jax import printing
from prelu_jax.signal.measurement import LayerStatistics

_WIDTH, _LONGEST_NAME = 100, 60  # characters: of the table without names, and of a name
_ABOUT = (
    "between: E[x²] over E[y²] of the layer before, through the operations named; backward E[Δy²] "
    "of that layer over E[Δx²].",
    "kernel: E[y²] over E[x²], bias included; backward E[Δx²] over E[Δy²], Δx through this layer "
    "alone.",
    "expected: the kernel's factor for independent weights with its mean square.",
)


def ratio(numerator: float, denominator: float) -> float:
    """Return the quotient of two moments: nan for 0 / 0, infinity for any other number over 0."""
    if denominator == 0:
        return math.nan if numerator == 0 or math.isnan(numerator) else math.inf
    return numerator / denominator


def linked(rows: Sequence[LayerStatistics]) -> tuple[LayerStatistics, ...]:
    """Return the rows with the factors between each layer and the previous one, where that ran."""
    by_name = {row.name: row for row in rows}
    return tuple(_linked(row, by_name.get(row.previous or "")) for row in rows)


def _linked(row: LayerStatistics, previous: LayerStatistics | None) -> LayerStatistics:
    if previous is None:
        return dataclasses.replace(row, previous=None, between=())
    forward = backward = None
    if row.input_second_moment is not None:
        forward = ratio(row.input_second_moment, previous.second_moment)
    if row.gradient_kernel_factor is not None:
        of_x = row.gradient_kernel_factor * row.gradient_second_moment
        backward = ratio(previous.gradient_second_moment, of_x)
    return dataclasses.replace(row, between_factor=forward, gradient_between_factor=backward)


def path(layers: Sequence[LayerStatistics]) -> list[LayerStatistics]:
    """Return the layers on the signal's way to the last one, in execution order."""
    by_name = {row.name: row for row in layers}
    way: list[LayerStatistics] = []
    row: LayerStatistics | None = layers[-1]
    while row is not None:
        way.append(row)
        row = by_name.get(row.previous or "")
    return way[::-1]


@dataclasses.dataclass(frozen=True, repr=False)
class Factors:
    """The factors of every layer as a table, printed or left last in a notebook's cell.

    Attributes:
        model: its name.
        layers: the calls of affine layers, in execution order.
    """

    model: str
    layers: tuple[LayerStatistics, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table, and an explanation of its columns."""
        table = Table(
            title=Text(f"{self.model}: factors of second moments, forward and backward"),
            title_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        for name in ("layer", "layer before", "operations between"):
            table.add_column(name, overflow="fold")
        for name in ("between", "kernel", "expected", "Δ kernel", "expected", "Δ between"):
            table.add_column(Text(name), justify="right", no_wrap=True)
        for row in self.layers:
            factors = (
                *(row.between_factor, row.kernel_factor, row.expected_kernel_factor),
                *(row.gradient_kernel_factor, row.expected_gradient_kernel_factor),
                row.gradient_between_factor,
            )
            names = Text(row.name), Text(row.previous or ""), ", ".join(row.between)
            table.add_row(*names, *map(_cell, factors))
        yield table
        yield Text("\n".join(_ABOUT), style="dim")

    def __repr__(self) -> str:
        return printing.to_text(self, self._width())

    def _repr_html_(self) -> str:
        return printing.to_html(self, self._width())

    def _width(self) -> int:
        longest = max(len(row.name) for row in self.layers)
        return _WIDTH + 2 * min(longest, _LONGEST_NAME)


def _cell(factor: Any) -> str:
    return "" if factor is None else f"{factor:.3g}"
