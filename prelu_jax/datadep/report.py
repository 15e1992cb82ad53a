"""The report of a calibration, layer by layer: a table for people, rows for programs."""

import dataclasses
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from prelu_jax import printing
from prelu_jax.datadep.calibration_pass import Outcome
from prelu_jax.datadep.channels import Moments
from prelu_jax.datadep.layers import Layer, Skipped
from prelu_jax.signal.batches import Examples
from prelu_jax.signal.coverage import Coverage

_WIDTH = 110


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """One layer under a one-pass method.

    Attributes:
        layer: its path in the model.
        parameter: the path of its kernel.
        calls: how often it is called; its moments are pooled over them.
        scale: the factor on its kernel: the geometric mean over channels.
        least_scale, greatest_scale: the extremes over channels.
        shift: the number added to its output: the root mean square over channels.
        mean_before, std_before: of its whole output, given corrected layers before it.
        mean_after, std_after: the same, measured by a separate pass at the end.
        error: the distance of its output from the method's target at the end (`OnePass.error`).
        constant: the channels, counted over all their axes, that do not vary on the batch.
        notes: for the reader.
    """

    layer: str
    parameter: str
    calls: int
    scale: float
    least_scale: float
    greatest_scale: float
    shift: float
    mean_before: float
    std_before: float
    mean_after: float
    std_after: float
    error: float
    constant: tuple[int, ...]
    notes: tuple[str, ...]

    @staticmethod
    def of(
        layer: Layer, name: str, outcome: Outcome, after: Moments, *, error: float, resists: bool
    ) -> "LayerRow":
        """Return the row of the outcome of a pass, and of the moments measured after it."""
        before, (scale, shift) = outcome.before, outcome.correction
        constant = tuple(int(i) for i in np.flatnonzero(~np.asarray(before.varies)))
        return LayerRow(
            layer=name,
            parameter=layer.parameter,
            calls=layer.calls,
            scale=float(np.exp(np.mean(np.log(np.asarray(scale, np.float64))))),
            least_scale=float(np.min(scale)),
            greatest_scale=float(np.max(scale)),
            shift=float(np.sqrt(np.mean(np.square(np.asarray(shift, np.float64))))),
            mean_before=float(np.mean(before.mean)),
            std_before=_std(before),
            mean_after=float(np.mean(after.mean)),
            std_after=_std(after),
            error=error,
            constant=constant,
            notes=tuple(_notes(layer, constant, outcome, resists)),
        )


def _std(moments: Moments) -> float:
    """Return the std of the whole output: within channels and between their means."""
    var = np.mean(np.square(moments.std, dtype=np.float64)) + np.var(moments.mean, dtype=np.float64)
    return float(np.sqrt(var))


def _notes(
    layer: Layer, constant: tuple[int, ...], outcome: Outcome, resists: bool
) -> Iterator[str]:
    if not outcome.ran:
        yield "in a branch that did not run: left as it was"
        return
    if resists:
        yield f"{layer.obstacle or 'it does not follow its kernel and bias'}: left as it was"
    if not outcome.enough:
        yield "neither dense nor conv, or too few patches or directions: random filters fill up"
    if not layer.has_bias:
        yield "no bias: the mean is free"
    if constant:
        shown = ", ".join(map(str, constant[:8])) + (", …" if len(constant) > 8 else "")
        yield f"constant on the batch: {len(constant)} channels ({shown})"


@dataclasses.dataclass(frozen=True)
class OnePassStage:
    """The record of a one-pass method.

    Attributes:
        method: the method with its options.
        layers: a row for every layer, in the order of execution.
        passes: the correcting passes of the last attempt; one where no layer is shared.
    """

    method: Any
    layers: tuple[LayerRow, ...]
    passes: int

    def table(self) -> Table:
        """Return the rows, for rich."""
        passes = "one pass" if self.passes == 1 else f"{self.passes} passes"
        columns = ("scale", "shift", "mean before", "std before", "mean after", "std after")
        table = _table(f"{self.method}: {passes}", columns)
        for row in self.layers:
            name = row.layer if row.calls == 1 else f"{row.layer} ({row.calls} calls)"
            numbers = (row.scale, row.shift, row.mean_before, row.std_before)
            table.add_row(
                Text(name),
                *(f"{value:.3g}" for value in numbers),
                f"{row.mean_after:.3f}",
                f"{row.std_after:.3f}",
                Text("; ".join(row.notes)),
            )
        return table


def _table(title: str, columns: Iterable[str]) -> Table:
    """Return a table of layers, numbers and notes, without its rows."""
    table = Table(
        title=Text(title),  # brackets in a str would be markup
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("layer", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    return table


@dataclasses.dataclass(frozen=True)
class BetweenRow:
    """One layer under `between_layer`.

    Attributes:
        layer: its path in the model.
        parameter: the path of its kernel.
        factor: on its kernel.
        rate_before, rate_after: its rate of change C̃; nan for none.
        held: whether its factor must be 1: any other would change the model's function.
    """

    layer: str
    parameter: str
    factor: float
    rate_before: float
    rate_after: float
    held: bool


@dataclasses.dataclass(frozen=True)
class BetweenStage:
    """The record of `between_layer`.

    Attributes:
        method: the method with its options.
        layers: a row for every layer, in the order of execution.
        iterations: how many times the kernels were rescaled.
        removable: the part of the spread of log C̃ that a rescaling could remove, before each
            iteration and at the end.
    """

    method: Any
    layers: tuple[BetweenRow, ...]
    iterations: int
    removable: tuple[float, ...]

    @property
    def spread_before(self) -> float:
        """The standard deviation of log C̃ over layers before the first rescaling."""
        return _spread([row.rate_before for row in self.layers])

    @property
    def spread_after(self) -> float:
        """The standard deviation of log C̃ over layers after the last rescaling."""
        return _spread([row.rate_after for row in self.layers])

    def table(self) -> Table:
        """Return the rows, for rich."""
        spreads = f"{self.spread_before:.3g} to {self.spread_after:.3g}"
        iterations = "one iteration" if self.iterations == 1 else f"{self.iterations} iterations"
        table = _table(
            f"{self.method}: spread of the log change rate C̃ from {spreads} in {iterations}",
            ("factor", "change rate before", "change rate after"),
        )
        for row in self.layers:
            rates = (f"{rate:.3g}" for rate in (row.rate_before, row.rate_after))
            notes = "; ".join(_between_notes(row))
            table.add_row(Text(row.layer), f"{row.factor:.3g}", *rates, Text(notes))
        return table


def _between_notes(row: BetweenRow) -> Iterator[str]:
    if row.held:
        yield "held: a factor would change the model's function"
    if np.isnan(row.rate_before):
        yield "no rate: its kernel or the gradient there is zero or not finite"


def _spread(rates: list[float]) -> float:
    return float(np.nanstd(np.log(rates)))


Stage = OnePassStage | BetweenStage


@dataclasses.dataclass(frozen=True, repr=False)
class CalibrationReport:
    """The record of a calibration. Printed, or left last in a notebook's cell, it is a table.

    Attributes:
        model: its name.
        stages: the records of the methods, in turn.
        skipped: the weights left as they are, and why; none where no method was asked for.
        coverage: which of the model's weights a calibration sees.
        examples: the number of examples in the batch, and how it was found.
    """

    model: str
    stages: tuple[Stage, ...]
    skipped: tuple[Skipped, ...] = ()
    coverage: Coverage = dataclasses.field(default_factory=Coverage)
    examples: Examples | None = None

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield every layer of every stage as a dict; 'method' names the stage."""
        for stage in self.stages:
            for row in stage.layers:
                yield {"method": str(stage.method), **dataclasses.asdict(row)}

    def to_dict(self) -> dict[str, Any]:
        """Return everything in plain Python; numbers may be nan."""
        skipped = {row.parameter: row.why for row in self.skipped}
        return {
            "model": self.model,
            "layers": list(self.rows()),
            "skipped": skipped,
            "coverage": self.coverage.to_dict(),
            "examples": self.examples and self.examples._asdict(),
        }

    def to_csv(self, file: str | os.PathLike[str] | None = None) -> str:
        """Return `rows` as comma-separated values with a header; write them to a given file."""
        return printing.to_csv(self.rows(), file)

    def to_markdown(self) -> str:
        """Return the printed tables as Markdown of GitHub, and a list of the lines around them."""
        lines = [self._outcome(), *self._left(), *self._facts(), *self.coverage.notes()]
        tables = (printing.markdown_table(stage.table()) for stage in self.stages)
        return "\n".join([*tables, printing.markdown_list(lines)])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self._outcome())
        for stage in self.stages:
            yield stage.table()
        for line in self._left():
            yield Text(line, style="yellow")
        for line in self._facts():
            yield Text(line, style="dim")
        for line in self.coverage.notes():
            yield Text(line, style="yellow")

    def _outcome(self) -> str:
        return f"{self.model}, calibrated" if self.stages else f"{self.model}: left as it is"

    def _left(self) -> list[str]:
        """Return a line about each weight that is left as it was."""
        return [f"Left as it was: {row.parameter}: {row.why}" for row in self.skipped]

    def _facts(self) -> list[str]:
        """Return the lines about the weights and the examples."""
        return [*self.coverage.lines(), *(self.examples.lines() if self.examples else ())]

    def __repr__(self) -> str:
        return printing.to_text(self, _WIDTH)

    def _repr_html_(self) -> str:
        return printing.to_html(self, _WIDTH)
