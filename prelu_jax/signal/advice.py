"""One line that can be followed, for what `verdict` has found, from the measurement alone.

From layer to layer a second moment changes by three factors, and each can be had from what was
measured: ``fan_in · mean(w²)``, what the kernel alone would do; ``E[x²] / E[y²]`` across whatever
stands between two layers, (1 + a²)/2 for a PReLU (He et al. 2015, Eq. 9 and 15); and what is then
still missing, which is lost at padded borders. Backward it is ``fan_out`` (Eq. 13).
"""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence

from prelu_jax.signal import verdict
from prelu_jax.signal.measurement import LayerStatistics, Measurement
from prelu_jax.signal.verdict import Finding

_NOTICEABLE = 0.02  # of a log factor per layer: 2 %
_RESCALE = (
    "set each layer's scale from the data, pj.calibrate(..., method='lsuv') (Mishkin & Matas "
    "2015), or normalise between the layers"
)
_OF_NORMS = (
    "norms set the signal's scale anew and may amplify gradients: in a residual net start the "
    "scale of each branch's last norm at 0 (Goyal et al. 2017), or warm the learning rate up"
)
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
        "the weights decay instead of learning (He et al. 2015, footnote 2): mend the "
        "initialisation so that a gradient arrives, or lower the weight decay"
    ),
}


@dataclasses.dataclass(frozen=True)
class _Kernels:
    """Kernels of another scale, for one direction.

    Attributes:
        kept: the factor of kernels and rectifiers in a layer.
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
        """Whether a leaky rectifier explains the factor between two layers."""
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


def advise_all(
    findings: Sequence[Finding], measurement: Measurement
) -> list[tuple[list[Finding], str]]:
    """Return groups of findings with one line of advice for each group; see `advices`."""
    groups: dict[str, list[Finding]] = {}
    for finding, line in zip(findings, advices(findings, measurement), strict=True):
        groups.setdefault(line, []).append(finding)
    return [(group, line) for line, group in groups.items()]


def advices(findings: Sequence[Finding], measurement: Measurement) -> list[str]:
    """Return one line of advice for each finding, in their order.

    Findings with the same remedy share a line. Where the forward and the backward signal ask for
    two scales of the same kernels, either will do (He et al. 2015, §2.2), and the line names both.
    """
    causes = [_cause(finding, measurement) for finding in findings]
    kernels = [cause for cause in causes if isinstance(cause, _Kernels)]
    both = {cause.mode: cause for cause in kernels}
    same_kind = len({cause.rectified for cause in kernels}) == 1
    merged = len(both) == 2 and same_kind
    return [
        _either(both["fan_in"], both["fan_out"])
        if merged and isinstance(cause, _Kernels)
        else str(cause)
        for cause in causes
    ]


def _either(forward: _Kernels, backward: _Kernels) -> str:
    """Return the advice for two directions at once; the gradient's comes first, as in the paper."""
    return (
        f"kernels and rectifiers multiply a second moment by {forward.kept:.2f} a layer forward "
        f"and by {backward.kept:.2f} backward: {backward.remedy}, or "
        f"{forward.remedy.removeprefix('take ')}. Either will do (He et al. 2015, §2.2); prefer "
        "the first, which keeps the gradient's scale and is the paper's choice"
    )


def advise(finding: Finding, measurement: Measurement) -> str:
    """Return the remedy for one finding of `verdict.judge` in a measurement."""
    return str(_cause(finding, measurement))


def _cause(finding: Finding, measurement: Measurement) -> str | _Kernels:
    layers = measurement.layers
    zeros = [row.name for row in layers[:-1] if row.kernel_rms == 0]
    if finding.verdict in (verdict.VANISHING, verdict.DEAD_UNITS) and zeros:
        return f"initialise the kernels that hold nothing but zeros: {', '.join(zeros)}"
    if finding.verdict == verdict.COLLAPSING and finding.layer == layers[0].name:
        return (
            "the examples of the batch are all but alike, or the layer's bias drowns them: "
            "subtract the mean of the data, and start biases at 0"
        )
    if finding.verdict in _ADVICE:
        return _ADVICE[finding.verdict]
    if finding.factor is None and finding.direction == "backward":
        return "look whether the loss depends on the model's outputs"
    if finding.factor is None:
        return "give a batch of data, or of noise: jax.random.normal(jax.random.key(0), shape)"
    sign = 1 if finding.verdict == verdict.EXPLODING else -1
    forward = finding.direction == "forward"
    steps = _steps(layers, forward)
    if not steps:
        return _RESCALE
    drift = sum(max(0.0, sign * step.total) for step in steps)
    largest = max(steps, key=lambda step: sign * step.total)
    if len(steps) > 2 and sign * largest.total > max(math.log(10), drift / 2):
        return _one_layer(largest)
    if measurement.normalises:
        return _OF_NORMS if sign > 0 and not forward else _RESCALE
    between = statistics.fmean([s.between for s in steps if s.adjacent] or [_log(0.5)])
    kernel = statistics.fmean(step.kernel for step in steps) + between
    border = statistics.fmean(step.total - step.kernel - step.between for step in steps)
    if sign * kernel > max(_NOTICEABLE, sign * border):
        mode = "fan_in" if forward else "fan_out"
        return _Kernels(math.exp(kernel), math.exp(between), _slope(layers), mode)
    if border < -_NOTICEABLE and sign < 0:
        return _borders(math.exp(border), layers)
    return _RESCALE


@dataclasses.dataclass(frozen=True)
class _Step:
    """From one layer to the next, or back: logs of factors of a second moment.

    Attributes:
        layer: whose kernel it is.
        total: as measured.
        kernel: fan · mean(w²).
        between: of what stands between the two layers.
        adjacent: whether that left the shape as it was: no pool, no flattening.
    """

    layer: LayerStatistics
    total: float
    kernel: float
    between: float
    adjacent: bool


def _steps(layers: Sequence[LayerStatistics], forward: bool) -> list[_Step]:
    """The steps that a drift of `verdict` is made of: neither data nor the last layer count."""
    steps = []
    for before, row in itertools.pairwise(layers[1:] if forward else layers[:-1]):
        layer = before if forward else row
        if before.input_second_moment is None or row.input_second_moment is None:
            continue
        if layer.kernel_rms is None or layer.kernel_shape is None:
            continue
        weights = math.prod(layer.kernel_shape)
        fan_in = weights / layer.channels
        fan_out = weights / layer.input_shape[-1] if "Conv" in layer.kind else layer.channels
        total = (
            _log(row.input_second_moment) - _log(before.input_second_moment)
            if forward
            else _log(before.gradient_second_moment) - _log(row.gradient_second_moment)
        )
        kernel = _log((fan_in if forward else fan_out) * layer.kernel_rms**2)
        between = _log(row.input_second_moment) - _log(before.second_moment)
        adjacent = before.shape == row.input_shape
        steps.append(_Step(layer, total, kernel, between, adjacent))
    return steps


def _log(value: float) -> float:
    return math.log(max(value, 1e-300))


def _one_layer(step: _Step) -> str:
    row = step.layer
    return (
        f"one layer does most of it: {row.name} multiplies the second moment by "
        f"{verdict.power_of_ten(step.total)}; its kernel of shape {row.kernel_shape} has an "
        f"rms of {row.kernel_rms:.2g}, see pj.initializers.table(...) for its rule and fans"
    )


def _slope(layers: Sequence[LayerStatistics]) -> float:
    """The negative slope of a leaky rectifier between two layers: min f(y) = a min y."""
    pairs = itertools.pairwise(layers)
    slopes = [
        row.input_minimum / before.minimum
        for before, row in pairs
        if before.shape == row.input_shape and before.minimum < 0 and row.input_minimum is not None
    ]
    return statistics.median(slopes) if slopes else 0.0


def _borders(kept: float, layers: Sequence[LayerStatistics]) -> str:
    maps = [
        (r.kernel_shape[:-2], r.shape[1:-1]) for r in layers if r.kernel_shape and "Conv" in r.kind
    ]
    if not maps:
        return _RESCALE
    kernel, sides = min(maps, key=lambda pair: math.prod(pair[1]))
    even = any(size % 2 == 0 for size in kernel)
    remedy = "pad before and after in turn, or " if even else ""
    return (
        f"padding of {_times(kernel)} kernels loses {1 - kept:.0%} of the signal a layer at the "
        f"borders, on maps down to {_times(sides)}: {remedy}{_RESCALE}"
    )


def _times(sides: Sequence[int]) -> str:
    return "×".join(map(str, sides))
