"""The result of an audit: rows and findings, as text, tables and data."""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from prelu_jax import printing
from prelu_jax.initializers.audited import Finding
from prelu_jax.initializers.declared import matches

_HTML_WIDTH = 200


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter of a model.

    Attributes:
        parameter: its path, e.g. 'conv2_1/kernel'.
        shape: its shape.
        role: 'kernel', 'look-up', 'bias', 'scale', 'slope', 'other' or 'unused'.
        rule: the declared rule in words; '?' if the model does not declare one.
        fan_in: number of weights that enter one output; None if it is not a kernel.
        fan_out: number of weights that leave one input; None if it is not a kernel.
        std: standard deviation by the rule; None if the rule is not known.
        measured_std: standard deviation of its numbers; None if the variables are abstract.
        mean: mean of its numbers; None if the variables are abstract.
        largest: largest absolute value over the standard deviation: 2 to 2.3 for JAX's truncated
            normals, 1.7 for a uniform distribution; None if it is not defined.
        fits: the rule that its numbers fit; None if the variables are abstract.
        confidence: the probability of that rule; None if no rule is certain.
    """

    parameter: str
    shape: tuple[int, ...]
    role: str
    rule: str
    fan_in: float | None
    fan_out: float | None
    std: float | None
    measured_std: float | None
    mean: float | None
    largest: float | None
    fits: str | None
    confidence: float | None


class Table(tuple[Row, ...]):
    """The rows of an audit with its findings; it prints, and shows in a notebook, as a table.

    Attributes:
        findings: the mistakes that were found.
    """

    findings: tuple[Finding, ...] = ()

    def assert_as_declared(self, ignore: str | None = None) -> None:
        """Raise an AssertionError that lists the findings, if there are any.

        This is for test suites.

        Args:
            ignore: a regular expression; findings about parameters whose whole path it matches do
                not count.

        Raises:
            AssertionError: there are findings, or the variables are abstract, so that nothing could
                be measured.
        """
        if self and all(row.measured_std is None for row in self):
            raise AssertionError(
                "the variables are abstract, so nothing is measured; expected arrays, or values=."
            )
        counted = [
            finding
            for finding in self.findings
            if ignore is None or not matches("ignore", ignore, finding.parameter)
        ]
        if counted:
            listed = "\n".join(f"  {finding}" for finding in counted)
            plural = "s" if len(counted) > 1 else ""
            raise AssertionError(
                f"{len(counted)} finding{plural} about the model's parameters:\n{listed}\n"
                "assert_as_declared(ignore='REGEX') ignores findings about matching parameters."
            )

    def rows(self) -> Iterator[dict[str, Any]]:
        """Return the rows as dicts."""
        return (dataclasses.asdict(row) for row in self)

    def to_dict(self) -> dict[str, Any]:
        """Return rows and findings in plain Python types."""
        return {
            "parameters": list(self.rows()),
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
        }

    def to_csv(self, file: str | os.PathLike[str] | None = None) -> str:
        """Return `rows` as comma-separated values; also write them to ``file`` if given."""
        return printing.to_csv(self.rows(), file)

    def to_markdown(self) -> str:
        """Return the table as Markdown of GitHub, and a list of the findings."""
        table = printing.markdown_table(self._table())
        listed = printing.markdown_list(map(str, self.findings))
        return f"{table}\n{listed}" if listed else table

    def __str__(self) -> str:
        lines = _cells(self)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        return "\n".join([*text, *map(str, self.findings)])

    __repr__ = __str__

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._table()
        for finding in self.findings:
            yield Text(str(finding), style="bold red")

    def _repr_html_(self) -> str:
        return printing.to_html(self, _HTML_WIDTH)

    def _table(self) -> RichTable:
        header, *lines = _cells(self)
        table = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in header:
            table.add_column(Text(name), overflow="fold")
        faulty = {finding.parameter for finding in self.findings}
        for line in lines:
            table.add_row(*map(Text, line), style="bold red" if line[0] in faulty else "")
        return table


def _cells(table: Table) -> list[list[str]]:
    """Return the header and the rows as text, without columns that hold no value."""
    names = [field.name for field in dataclasses.fields(Row)]
    known = [
        name
        for name in names
        if name not in _MEASURED or any(getattr(row, name) is not None for row in table)
    ]
    return [known] + [[_cell(getattr(row, name)) for name in known] for row in table]


_MEASURED = ("measured_std", "mean", "largest", "fits", "confidence")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
