"""One line of advice for every finding of `verdict`, from the measurement alone.

From layer to layer a second moment is multiplied by two factors, that of the kernel and that of
the operations before it (`split`). For independent weights the kernel's factor is
``fan_in · mean(w²)``, less at padded borders; backward it is ``fan_out · mean(w²)``. The factor of
a PReLU is (1 + a²)/2 (He et al. 2015, Eq. 9, 13 and 15).
"""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence

from prelu_jax import cosines
from prelu_jax.signal import drift, split, verdict
from prelu_jax.signal.measurement import LayerStatistics, Measurement
from prelu_jax.signal.steps import NOTHING, Step, Steps
from prelu_jax.signal.steps import blocks as blocks_of
from prelu_jax.signal.steps import steps as steps_of
from prelu_jax.signal.verdict import Finding
from prelu_jax.tracing import kinds

_NOTICEABLE = 0.02  # of a log factor per layer: 2 %
_ALIKE = 0.97  # cosine: a ReLU net has it after 30 layers, and deeper ones learn badly
_RESCALE = (
    "set each layer's scale from the data, pj.calibrate(..., method='lsuv') (Mishkin & Matas "
    "2015), or normalise between the layers"
)
_OF_NORMS = (
    "norms reset the signal's scale and may amplify gradients: in a residual net start the "
    "scale of each branch's last norm at 0 (Goyal et al. 2017), or warm the learning rate up"
)
_EQUAL_EXAMPLES = (
    "the examples of the batch hardly differ, or the layer's bias drowns them: "
    "subtract the mean of the data, and start biases at 0"
)
_NO_GRADIENT = "check whether the loss depends on the model's outputs"
_NO_INPUT = "give a batch of data, or of noise: jax.random.normal(jax.random.key(0), shape)"
_ADVICE = {
    verdict.NOT_FINITE: (
        "look at the batch and at the parameters up to there with jnp.isfinite; if all are finite "
        "the signal overflows"
    ),
    verdict.DEAD_UNITS: (
        "start biases at 0 and lower the learning rate, or let the units come back: pj.PReLU() in "
        "place of the ReLU"
    ),
    verdict.COLLAPSING: (
        "start biases at 0 and subtract the mean of the data; residual connections and slopes "
        "above 0 (pj.PReLU()) keep examples apart in a very deep net"
    ),
    verdict.STALLED: (
        "the weights decay instead of learning (He et al. 2015, footnote 2): change the "
        "initialisation so that a gradient arrives, or lower the weight decay"
    ),
}


@dataclasses.dataclass(frozen=True)
class _RescaleKernels:
    """Advice to change the scale of all kernels, for one direction.

    Attributes:
        kept: the factor of a layer's kernel and rectifier together.
        between: the factor of the rectifiers alone.
        slope: of the rectifiers.
        mode: the fan that keeps the moment of this direction.
    """

    kept: float
    between: float
    slope: float
    mode: str

    @property
    def rectified(self) -> bool:
        """Return whether a leaky rectifier explains the factor between two layers."""
        return abs(2 * self.between / (1 + self.slope**2) - 1) <= 0.2

    @property
    def remedy(self) -> str:
        """The rule to take, or the factor to apply."""
        if not self.rectified:
            return f"multiply the kernels by {self.kept**-0.5:.2g}"
        option = f", negative_slope={self.slope:.2g}" if self.slope > 0.01 else ""
        return f"take pj.initializers.he_normal({self.mode!r}{option})"

    def __str__(self) -> str:
        start = f"kernels and rectifiers multiply a second moment by {self.kept:.2f} a layer: "
        if not self.rectified:
            return f"{start}{self.remedy}, or normalise between the layers"
        return f"{start}for a factor of 1 {self.remedy}"


def grouped_advice(
    findings: Sequence[Finding], measurement: Measurement
) -> list[tuple[list[Finding], str]]:
    """Return groups of findings with one line of advice for each group; see `advice_lines`."""
    groups: dict[str, list[Finding]] = {}
    for finding, line in zip(findings, advice_lines(findings, measurement), strict=True):
        groups.setdefault(line, []).append(finding)
    return [(group, line) for line, group in groups.items()]


def note_on_similar_examples(measurement: Measurement) -> str | None:
    """Return a note if rectifiers make examples nearly equal; None with shortcuts or norms."""
    measured = [row.cosine for row in measurement.layers if row.cosine is not None]
    every = steps_of(measurement.layers, forward=True)
    depth = sum(kinds.RECTIFIER in step.kinds for step in every) + 1  # the first layer's too
    operations = {kind for step in every for kind in step.kinds}
    if not measured or measurement.normalises or {kinds.RESIDUAL, kinds.NORM} & operations:
        return None
    slope = _slope(measurement.layers)
    if not measured[0] < _ALIKE < measured[-1] or cosines.cosine_at_depth(slope, depth) < _ALIKE:
        return None
    better = f"negative_slope={cosines.tailored_slope(depth):.2g}"
    return (
        f"Examples become alike: their cosine rises from {measured[0]:.2f} to {measured[-1]:.3f} "
        f"over {depth} rectified layers, and deeper plain nets of this slope learn slowly or not "
        f"at all. Take {better}, which is pj.tailored_slope({depth})."
    )


def advice_lines(findings: Sequence[Finding], measurement: Measurement) -> list[str]:
    """Return one line of advice for each finding, in their order.

    Findings with the same remedy share a line. Where the forward and the backward signal ask for
    two scales of the same kernels, either will do (He et al. 2015, §2.2), and the line names both.
    """
    causes = [_cause(finding, measurement) for finding in findings]
    kernels = [cause for cause in causes if isinstance(cause, _RescaleKernels)]
    both = {cause.mode: cause for cause in kernels}
    same_kind = len({cause.rectified for cause in kernels}) == 1
    merged = len(both) == 2 and same_kind
    return [
        _either(both["fan_in"], both["fan_out"])
        if merged and isinstance(cause, _RescaleKernels)
        else str(cause)
        for cause in causes
    ]


def _either(forward: _RescaleKernels, backward: _RescaleKernels) -> str:
    """Return the advice for two directions at once; the gradient's comes first, as in the paper."""
    return (
        f"kernels and rectifiers multiply a second moment by {forward.kept:.2f} a layer forward "
        f"and by {backward.kept:.2f} backward: {backward.remedy}, or "
        f"{forward.remedy.removeprefix('take ')}. Either will do (He et al. 2015, §2.2); prefer "
        "the first, which keeps the gradient's scale and is the paper's choice"
    )


Cause = str | _RescaleKernels


def _cause(finding: Finding, measurement: Measurement) -> Cause:
    """Return the advice of the first rule that applies."""
    steps = steps_of(measurement.layers, finding.direction == "forward")
    causes = (rule(finding, measurement, steps) for rule in _RULES)
    return next((cause for cause in causes if cause), _RESCALE)


def _zero_kernels(finding: Finding, measurement: Measurement, steps: Steps) -> Cause | None:
    zeros = [row.name for row in measurement.layers[:-1] if row.kernel_rms == 0]
    if finding.verdict not in (verdict.VANISHING, verdict.DEAD_UNITS) or not zeros:
        return None
    return f"initialise the kernels that hold nothing but zeros: {', '.join(zeros)}"


def _of_verdict(finding: Finding, measurement: Measurement, steps: Steps) -> Cause | None:
    at_first = finding.layer == measurement.layers[0].name
    if finding.verdict == verdict.COLLAPSING and at_first:
        return _EQUAL_EXAMPLES
    if finding.factor is None and finding.verdict not in _ADVICE:
        return _NO_GRADIENT if finding.direction == "backward" else _NO_INPUT
    return _ADVICE.get(finding.verdict)


def _without_steps(finding: Finding, measurement: Measurement, steps: Steps) -> Cause | None:
    return None if steps else _RESCALE


def _one_layer(finding: Finding, measurement: Measurement, steps: Steps) -> Cause | None:
    """Return the advice where one layer, or one place between layers, causes most of the drift."""
    sign = _sign(finding)
    changes = [(sign * sum(step.total for step in block), block) for block in blocks_of(steps)]
    total = sum(max(0.0, change) for change, _ in changes)
    largest, block = max(changes, key=lambda pair: pair[0])
    if len(steps) <= 2 or not largest > max(math.log(10), total / 2):
        return None
    step = max(block, key=lambda step: sign * step.total)
    of_layer = step.total - step.between
    if sign * step.between > sign * of_layer:
        return (
            f"one place does most of it: {step.where} the second moment is multiplied by "
            f"{_factor(step.between)}; {_remedy(step)}"
        )
    row = step.layer
    return (
        f"one layer does most of it: {row.name} multiplies the second moment by "
        f"{_factor(of_layer)}; its kernel of shape {row.kernel_shape} has an rms of "
        f"{row.kernel_rms:.2g}, see pj.initializers.table(...) for its rule and fans"
    )


def _remedy(step: Step) -> str:
    if any(kinds.is_factor(kind) for kind in step.kinds):
        return f"take the factor out, or make up for it in the kernel of {step.end}"
    return _RESCALE


def _residual_sums(finding: Finding, measurement: Measurement, steps: Steps) -> Cause | None:
    """Return the advice where residual sums grow without normalisation."""
    sums = [step for step in steps if kinds.RESIDUAL in step.kinds]
    if len(sums) < 2 or any(kinds.NORM in step.kinds for step in steps):
        return None
    every = [sum(step.total for step in block) for block in blocks_of(steps)]
    growth = sum(every[: len(sums)])
    if finding.verdict != verdict.EXPLODING or not growth > sum(every) / 2:
        return None
    return (
        f"the residual sums multiply the second moment by {math.exp(growth / len(sums)):.2g} a "
        f"block, first {sums[0].where}, and nothing normalises it: normalise the input of every "
        "branch, or start the last kernel of every branch at 0 or small"
    )


def _operations(finding: Finding, measurement: Measurement, steps: Steps) -> Cause | None:
    """Return the advice where operations of one kind between layers cause most of the drift."""
    sign = _sign(finding)
    groups: dict[tuple[str, ...], list[Step]] = {}
    for step in steps:
        if not step.plain and not {kinds.RESIDUAL, kinds.NORM} & {*step.kinds}:
            groups.setdefault(step.kinds, []).append(step)
    if not groups:
        return None
    group = max(groups.values(), key=lambda group: sign * sum(step.total for step in group))
    total = sum(step.total for step in group)
    between = sum(step.between for step in group)
    whole = sum(sign * step.total for step in steps)
    causes_most = sign * total > whole / 2 > 0
    if not causes_most or not sign * between > sign * (total - between):
        return None
    places = f", and so at {len(group) - 1} more places" if len(group) > 1 else ""
    return (
        f"{group[0].where} the second moment is multiplied by "
        f"{math.exp(between / len(group)):.2g}{places}: {_remedy(group[0])}"
    )


def _factor(log: float) -> str:
    return "0" if log <= NOTHING / 2 else drift.power_of_ten(log)


def _sign(finding: Finding) -> int:
    return 1 if finding.verdict == verdict.EXPLODING else -1


def _norms(finding: Finding, measurement: Measurement, steps: Steps) -> Cause | None:
    if not measurement.normalises:
        return None
    grows_back = finding.verdict == verdict.EXPLODING and finding.direction == "backward"
    return _OF_NORMS if grows_back else _RESCALE


def _kernel_scale(finding: Finding, measurement: Measurement, steps: Steps) -> Cause | None:
    """Return the advice where the scale of the kernels causes the drift."""
    sign = _sign(finding)
    between = statistics.fmean([s.between for s in steps if s.plain] or [math.log(0.5)])
    kept = statistics.fmean(step.kernel for step in steps) + between
    if not sign * kept > max(_NOTICEABLE, sign * _border(steps)):
        return None
    mode = "fan_in" if finding.direction == "forward" else "fan_out"
    return _RescaleKernels(math.exp(kept), math.exp(between), _slope(measurement.layers), mode)


def _slope(layers: Sequence[LayerStatistics]) -> float:
    """Return the negative slope of a leaky rectifier between two layers: min f(y) = a min y."""
    slopes = [
        row.input_minimum / before.minimum
        for before, row in itertools.pairwise(split.path(layers))
        if before.shape == row.input_shape and before.minimum < 0 and row.input_minimum is not None
        if kinds.RESIDUAL not in row.between
    ]
    return statistics.median(slopes) if slopes else 0.0


def _border(steps: Steps) -> float:
    """Return the mean log of the factor of padded borders."""
    return statistics.fmean(step.border for step in steps)


def _borders(finding: Finding, measurement: Measurement, steps: Steps) -> Cause | None:
    """Return the advice where padded borders cause the drift."""
    maps = [(row.window, row.positions) for row in measurement.layers if row.window]
    border = _border(steps)
    if not maps or finding.verdict == verdict.EXPLODING or border >= -_NOTICEABLE:
        return None
    kernel, sides = min(maps, key=lambda pair: math.prod(pair[1]))
    even = any(size % 2 == 0 for size in kernel)
    remedy = "pad before and after in turn, or " if even else ""
    return (
        f"padding of {_times(kernel)} kernels loses {1 - math.exp(border):.0%} of the signal a "
        f"layer at the borders, on maps down to {_times(sides)}: {remedy}{_RESCALE}"
    )


def _times(sides: Sequence[int]) -> str:
    return "×".join(map(str, sides))


# In this order; each returns None where it does not apply. Those after `_without_steps` explain a
# drift by its steps.
_RULES = (
    *(_zero_kernels, _of_verdict, _without_steps),
    *(_one_layer, _residual_sums, _operations, _norms, _kernel_scale, _borders),
)
