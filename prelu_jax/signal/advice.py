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


def advise(finding: Finding, measurement: Measurement) -> str:
    """What to do about a finding of `verdict.judge` in a measurement."""
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
        return _other_kernels(math.exp(kernel), math.exp(between), _slope(layers), forward)
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
        f"rms of {row.kernel_rms:.2g}, see pj.initializers.table(...) for what it should be"
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


def _other_kernels(kept: float, between: float, slope: float, forward: bool) -> str:
    """``kept`` is the factor of kernels and rectifiers in a layer, ``between`` of the latter."""
    found = f"kernels and rectifiers multiply a second moment by {kept:.2f} a layer: "
    if abs(2 * between / (1 + slope**2) - 1) > 0.2:  # what is between is no leaky rectifier
        return f"{found}multiply the kernels by {kept**-0.5:.2g}, or normalise between the layers"
    mode = "fan_in" if forward else "fan_out"
    option = f", negative_slope={slope:.2g}" if slope > 0.01 else ""
    return f"{found}for a factor of 1 take pj.initializers.he_normal({mode!r}{option})"


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
