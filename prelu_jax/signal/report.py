"""The report of a measurement: a verdict with advice, for people, programs and test suites."""

import dataclasses
import math
import os
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from prelu_jax import extras, printing
from prelu_jax.signal import drift, verdict
from prelu_jax.signal.advice import advice_lines, grouped_advice, note_on_similar_examples
from prelu_jax.signal.drift import Accepted, Prediction, Predictions
from prelu_jax.signal.measurement import LayerStatistics, Measurement
from prelu_jax.signal.split import Factors
from prelu_jax.signal.verdict import Finding

_LISTED = 3  # findings about parameters in a summary
_WIDTH = 112  # characters, without the layers' names
_LONGEST_NAME = 60
_FAULT = " ◀ "
_GOOD, _BAD, _NOTE = "bold green", "bold red", "yellow"
_ABOUT = (
    "E[y²]: mean square of the layer's outputs. E[Δy²]: mean square of the gradient there.",
    f"accepted: a moment that ends outside is a finding. Random weights stay inside "
    f"({drift.SIGMAS} σ, or a factor of {math.exp(drift.TOLERANCE):.0f}).",
    "always 0: share of the input's channels that are 0 for the whole batch.",
    "cosine: between the outputs of different examples; at 1 the layer maps all to one direction.",
    "change rate: the kernel's gradient over the kernel, root mean squares (C̃ of Krähenbühl et al. "
    "2015).",
    "report.factors() shows the factors of each layer beside those for independent weights.",
)
_PREDICTED = (
    "predicted: for the rectifiers' slopes and independent weights with the kernels' variances; "
    "narrow layers have lower cosines."
)
_PREDICTED_COSINE = "predicted cosine: that of the layer's input, which independent weights keep."


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """A measured model with a verdict. Printed, or left last in a notebook's cell, it is a table.

    Attributes:
        model: its name.
        measurement: the measured statistics.
        predicted: by layer name, where the network's architecture is known; else empty.
        of_parameters: the findings of an audit of the parameters (`initializers.table`), in
            sentences.
    """

    model: str
    measurement: Measurement
    predicted: Predictions = dataclasses.field(default_factory=dict)
    of_parameters: tuple[str, ...] = ()

    @property
    def layers(self) -> tuple[LayerStatistics, ...]:
        """The calls of affine layers, in execution order."""
        return self.measurement.layers

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The faults, the gravest first; nothing for a healthy signal."""
        return verdict.judge(self.measurement, self.predicted)

    @property
    def verdict(self) -> str:
        """'healthy', 'not judged', or the gravest of 'not finite', 'exploding', 'vanishing',
        'dead units', 'collapsing' and 'stalled'; `verdict.judge` defines each.

        'not judged': no fault is measured, but `Coverage.suffices` is False.
        """
        findings = self.findings
        if findings:
            return findings[0].verdict
        return verdict.HEALTHY if self.measurement.coverage.suffices else verdict.NOT_JUDGED

    @property
    def summary(self) -> str:
        """The verdict in sentences, with the first layer of every fault and the advice."""
        lines = []
        for findings, advice in grouped_advice(self.findings, self.measurement):
            for finding in findings:
                direction = f" ({finding.direction})" if finding.direction else ""
                start = f"{finding.verdict}{direction} from {finding.layer} on"
                lines.append(f"{start}: {finding.what}.")
            lines.append(f"  Advice: {advice}.")
        if lines and self.of_parameters:
            lines.append("Found in the parameters (pj.initializers.table):")
            lines += [f"  {finding}" for finding in self.of_parameters[:_LISTED]]
            more = len(self.of_parameters) - _LISTED
            lines += [f"  and {more} more"] if more > 0 else []
        if not self.measurement.coverage.suffices:
            lines.append(f"not judged: {self.measurement.coverage.sentence()}")
        return "\n".join(lines) or "healthy: nothing beyond what random weights do"

    def assert_healthy(self, *, allow_unseen: bool = False) -> None:
        """Raise an AssertionError with the summary unless the verdict is 'healthy'.

        For a test suite. Changes that random weights of this width and depth cause by chance are no
        finding (`drift`).

        Args:
            allow_unseen: accept 'not judged' too.
        """
        if self.verdict == verdict.NOT_JUDGED and not allow_unseen:
            raise AssertionError(
                f"the signal of {self.model} is {self.summary}.\nassert_healthy(allow_unseen=True) "
                "accepts that."
            )
        if self.findings:
            raise AssertionError(f"the signal of {self.model} is not healthy.\n{self.summary}")

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows as dicts: all statistics, predictions (None for none) and noise.

        'log_noise' and 'gradient_log_noise' are the standard deviations of the log of the second
        moments over random weights, at most; multiply and divide by exp(2 · noise) for 95 %.
        'predicted_cosine' is the cosine of the layer's input if there is no prediction for the
        layer: independent zero-mean weights keep it, if they read all positions equally often.
        From 'accepted_least' over 'accepted_centre' to 'accepted_greatest' the verdict accepts
        E[y²], and with ``gradient_`` before it E[Δy²]; None where it does not judge.
        """
        accepted = drift.accepted(self.measurement, self.predicted)
        forward = drift.forward_noise(self.layers)
        backward = drift.backward_noise(self.layers)
        for row, of_y, of_gradient in zip(self.layers, forward, backward, strict=True):
            predicted = self.predicted.get(row.name)
            yield {
                "name": row.name,
                **dataclasses.asdict(row),
                "predicted_second_moment": predicted.forward if predicted else None,
                "predicted_gradient_second_moment": predicted.backward if predicted else None,
                "predicted_cosine": _predicted_cosine(row, predicted),
                "log_noise": of_y,
                "gradient_log_noise": of_gradient,
                **_accepted("", accepted["forward"].get(row.name)),
                **_accepted("gradient_", accepted["backward"].get(row.name)),
            }

    def to_dict(self) -> dict[str, Any]:
        """Return everything in plain Python: numbers may be nan or inf, None means not defined."""
        advised = zip(self.findings, advice_lines(self.findings, self.measurement), strict=True)
        findings = [{**dataclasses.asdict(finding), "advice": line} for finding, line in advised]
        return {
            "model": self.model,
            "verdict": self.verdict,
            "findings": findings,
            "of_parameters": list(self.of_parameters),
            "loss": self.measurement.loss,
            "layers": list(self.rows()),
            "unseen": list(self.measurement.not_measured),
            "coverage": self.measurement.coverage.to_dict(),
            "collapse_not_judged": self.measurement.collapse_not_judged,
            "examples": self.measurement.examples and self.measurement.examples._asdict(),
        }

    def to_csv(self, file: str | os.PathLike[str] | None = None) -> str:
        """Return `rows` as comma-separated values with a header; write them to a given file."""
        return printing.to_csv(self.rows(), file)

    def to_markdown(self) -> str:
        """Return the printed table as Markdown of GitHub, and a list of the lines below it.

        The list begins with the verdict's findings and the advice. The explanations of the
        columns are left out.
        """
        lines = [*self.summary.splitlines(), *self._facts(), *self._notes()]
        return f"{printing.markdown_table(self._table())}\n{printing.markdown_list(lines)}"

    def factors(self) -> Factors:
        """Return a table of the factors by which layers, and operations between, change moments.

        Print it, or leave it last in a notebook's cell. The numbers are in `rows` too.
        """
        return Factors(self.model, self.layers)

    def plot(self) -> Any:
        """Return second moments and 1 - cosine over depth, as a matplotlib figure.

        Raises:
            ImportError: matplotlib is not installed: ``pip install 'prelu_jax[plot]'``.
        """
        with extras.needed("report.plot()", "plot"):
            from prelu_jax.signal import plot  # matplotlib is slow to import

        return plot.draw(f"{self.model}: {self.verdict}", list(self.rows()), self.findings)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table, the verdict with its advice, and the limits of both."""
        yield self._table()
        about = list(_ABOUT)
        if self.predicted:
            about.append(_PREDICTED)
        elif self._predicts_cosines():
            about.append(_PREDICTED_COSINE)
        yield Text("\n".join(about), style="dim")
        judged = _GOOD if self.measurement.coverage.suffices else _NOTE
        yield Text(self.summary, style=_BAD if self.findings else judged)
        for line in self._facts():
            yield Text(line, style="dim")
        for line in self._notes():
            yield Text(line, style=_NOTE)

    def __repr__(self) -> str:
        return printing.to_text(self, self._width())

    def _repr_html_(self) -> str:
        return printing.to_html(self, self._width())

    def _facts(self) -> Iterator[str]:
        """Yield the lines about the weights and the examples."""
        yield from self.measurement.coverage.lines()
        if self.measurement.examples:
            yield from self.measurement.examples.lines()

    def _notes(self) -> Iterator[str]:
        """Yield the lines about what is not measured or judged, or may be better though healthy."""
        if not self.findings and (line := note_on_similar_examples(self.measurement)):
            yield line
        yield from self.measurement.coverage.notes()
        if reason := self.measurement.collapse_not_judged:
            yield f"Collapse is not judged: {reason}."

    def _width(self) -> int:
        """Return how many columns the table takes."""
        names = min(max(map(len, self._labels())), _LONGEST_NAME)
        return _WIDTH + names + (len(" predicted ") if self._predicts_cosines() else 0)

    def _labels(self) -> list[str]:
        """Return the layers' names, each with the verdict that begins there."""
        at_fault = {finding.layer: finding.verdict for finding in reversed(self.findings)}
        names = [row.name for row in self.layers]
        return [f"{name}{_FAULT}{at_fault[name]}" if name in at_fault else name for name in names]

    def _predicts_cosines(self) -> bool:
        cosines = (_predicted_cosine(row, self.predicted.get(row.name)) for row in self.layers)
        return any(cosine is not None for cosine in cosines)

    def _table(self) -> Table:
        loss = self.measurement.loss
        objective = "unit noise sent back from its outputs" if loss is None else f"loss {loss:.4g}"
        table = Table(
            title=Text(f"{self.model}: {objective}"),  # brackets in a str would be markup
            title_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        table.add_column("layer", overflow="fold")
        table.add_column("output")
        predicted = ("predicted",) if self.predicted else ()
        signal = ("E[y²]", *predicted, "accepted", "E[Δy²]", *predicted, "accepted")
        cosines = {"cosine": "cosine"}  # field -> column
        if self._predicts_cosines():
            cosines["predicted_cosine"] = "predicted"
        for name in (*signal, "always 0", *cosines.values(), "change rate"):
            table.add_column(Text(name), justify="right", no_wrap=True)
        for label, row in zip(self._labels(), self.rows(), strict=True):
            table.add_row(
                Text(label, style=_BAD if _FAULT in label else ""),
                "×".join(map(str, row["shape"][1:])),
                *self._moment(row, "second_moment", "accepted"),
                *self._moment(row, "gradient_second_moment", "gradient_accepted"),
                _cell(row["input_zero_fraction"], ".0%"),
                *(_cell(row[cosine], ".4f") for cosine in cosines),
                _cell(row["change_rate"], ".1e"),
            )
        return table

    def _moment(self, row: dict[str, Any], moment: str, accepted: str) -> Iterator[str]:
        yield _cell(row[moment], ".1e")
        if self.predicted:
            yield _cell(row[f"predicted_{moment}"], ".1e")
        least, greatest = row[f"{accepted}_least"], row[f"{accepted}_greatest"]
        yield "" if least is None else f"{least:.0e}…{greatest:.0e}"


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _predicted_cosine(row: LayerStatistics, predicted: Prediction | None) -> float | None:
    if row.cosine is None:
        return None
    return row.input_cosine if predicted is None else predicted.cosine


def _accepted(direction: str, accepted: Accepted | None) -> dict[str, float | None]:
    fields = (accepted or Accepted())._asdict()
    return {f"{direction}accepted_{place}": value for place, value in fields.items()}
