"""What a measurement says: a verdict with advice, for people, programs and test suites."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult

from prelu_jax import printing
from prelu_jax.signal import rendering, verdict
from prelu_jax.signal.advice import advices, advise_all
from prelu_jax.signal.measurement import LayerStatistics, Measurement
from prelu_jax.signal.verdict import Finding, Prediction

_LISTED = 3  # findings about parameters in a summary


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """A measured model with a verdict. Printed, or left last in a notebook's cell, it is a table.

    Attributes:
        model: its name.
        measurement: what was measured.
        predicted: by layer name, where the network's architecture is known; else empty.
        of_parameters: what an audit of the parameters found (`initializers.table`), in sentences.
    """

    model: str
    measurement: Measurement
    predicted: Mapping[str, Prediction] = dataclasses.field(default_factory=dict)
    of_parameters: tuple[str, ...] = ()

    @property
    def layers(self) -> tuple[LayerStatistics, ...]:
        """The calls of affine layers, in execution order."""
        return self.measurement.layers

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is wrong, the gravest first; nothing for a healthy signal."""
        return verdict.judge(self.measurement, self.predicted)

    @property
    def verdict(self) -> str:
        """'healthy', 'not judged', or the gravest of 'not finite', 'exploding', 'vanishing',
        'dead units', 'collapsing' and 'stalled'; `verdict.judge` defines each.

        'not judged': nothing is wrong in what is seen, but `Coverage.suffices` is False.
        """
        findings = self.findings
        if findings:
            return findings[0].verdict
        return verdict.HEALTHY if self.measurement.coverage.suffices else verdict.NOT_JUDGED

    @property
    def summary(self) -> str:
        """The verdict in sentences: for every finding the first layer at fault, and what to do."""
        lines = []
        for findings, advice in advise_all(self.findings, self.measurement):
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

        For a test suite. What random weights of this width and depth do by chance is no finding
        (`verdict`).

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
        """The table in dicts: all statistics, predictions (None for none) and noise.

        'log_noise' and 'gradient_log_noise' are the standard deviations of the log of the second
        moments over random weights, at most; multiply and divide by exp(2 · noise) for 95 %.
        From 'accepted_least' over 'accepted_centre' to 'accepted_greatest' the verdict accepts
        E[y²], and with 'gradient_' before it E[Δy²]; None where it does not judge.
        """
        accepted = verdict.accepted(self.measurement, self.predicted)
        forward = verdict.forward_noise(self.layers)
        backward = verdict.backward_noise(self.layers)
        for row, of_y, of_gradient in zip(self.layers, forward, backward, strict=True):
            predicted = self.predicted.get(row.name)
            yield {
                "name": row.name,
                **dataclasses.asdict(row),
                "predicted_second_moment": predicted.forward if predicted else None,
                "predicted_gradient_second_moment": predicted.backward if predicted else None,
                "log_noise": of_y,
                "gradient_log_noise": of_gradient,
                **_accepted("", accepted["forward"].get(row.name)),
                **_accepted("gradient_", accepted["backward"].get(row.name)),
            }

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain Python: numbers may be nan or inf, None stands for no such thing."""
        advised = zip(self.findings, advices(self.findings, self.measurement), strict=True)
        findings = [{**dataclasses.asdict(finding), "advice": line} for finding, line in advised]
        return {
            "model": self.model,
            "verdict": self.verdict,
            "findings": findings,
            "of_parameters": list(self.of_parameters),
            "loss": self.measurement.loss,
            "layers": list(self.rows()),
            "unseen": list(self.measurement.unseen),
            "coverage": self.measurement.coverage.to_dict(),
            "collapse_not_judged": self.measurement.collapse_not_judged,
            "examples": self.measurement.examples and self.measurement.examples._asdict(),
        }

    def to_csv(self, file: str | os.PathLike[str] | None = None) -> str:
        """`rows` as comma-separated values with a header; written to the file, if there is one."""
        return printing.to_csv(self.rows(), file)

    def plot(self) -> Any:
        """Forward and backward second moments over depth, as a matplotlib figure."""
        from prelu_jax.signal import plot  # matplotlib is slow to import

        return plot.draw(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from rendering.render(self)

    def __repr__(self) -> str:
        return printing.to_text(self, rendering.width(self))

    def _repr_html_(self) -> str:
        return printing.to_html(self, rendering.width(self))


def _accepted(direction: str, accepted: verdict.Accepted | None) -> dict[str, float | None]:
    fields = (accepted or verdict.Accepted())._asdict()
    return {f"{direction}accepted_{place}": value for place, value in fields.items()}
