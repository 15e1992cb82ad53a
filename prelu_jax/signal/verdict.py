"""The verdict on a measurement: whether the signal arrives, and where it dies.

Changes of a moment that random weights cause by chance (`drift`) are no finding.
"""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence

from prelu_jax.signal import drift
from prelu_jax.signal.drift import SIGMAS, Curve, Predictions, power_of_ten
from prelu_jax.signal.measurement import LayerStatistics, Measurement

HEALTHY = "healthy"
NOT_JUDGED = "not judged"
NOT_FINITE = "not finite"
EXPLODING = "exploding"
VANISHING = "vanishing"
DEAD_UNITS = "dead units"
COLLAPSING = "collapsing"
STALLED = "stalled"

# 1 − cosine. A wide ReLU net comes to 9π² / (2 L²) after L layers, here at 210; narrow ones vary as
# moments do. Below the second, float32 no longer distinguishes examples.
COLLAPSED, IDENTICAL = 1e-3, 1e-6
FEW = 8  # entries of a channel, over examples and positions, that may all be 0 by chance
STALL = 0.1  # of the median gradient over its weight decay

_NOT_FINITE = {  # a field of a layer -> the sentence about it
    "input_second_moment": "its input holds an inf or a nan",
    "kernel_rms": "its kernel holds an inf or a nan",
    "second_moment": "its output is not finite, though its input and kernel are",
    "gradient_second_moment": "the gradient that reaches it is not finite",
    "kernel_gradient_rms": "its kernel's gradient is not finite, though its output's is",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """A fault of the signal.

    Attributes:
        verdict: one of this module's names.
        direction: 'forward' or 'backward'; None where it is neither.
        layer: the name of the first layer at fault, in the order of computation.
        factor: of the second moment per layer, a geometric mean from end to end; None if there is
            no such thing.
        what: the fault, a sentence.
    """

    verdict: str
    direction: str | None
    layer: str
    factor: float | None
    what: str


def judge(measurement: Measurement, predicted: Predictions | None = None) -> tuple[Finding, ...]:
    """Return the faults, the gravest first; nothing for a healthy signal.

    * not finite: an input, kernel, output or gradient holds an inf or a nan.
    * exploding, vanishing: forward, the input's second moment of the last layer over that of the
      second; backward, the output gradient's of the first layer over that of the last but one. The
      first layer reads the data's scale and the last often has a small one by design: neither
      counts. Where weights are not measured, or only two layers are, forward also begins at the
      first layer's output, and a moment between that and 1 is no drift. Forward a mean over P
      positions may divide by P. Backward both the moment and its sum over positions have to leave
      the band: strides and pooling keep the sum, a flattening before a dense layer keeps the
      moment. In a model that normalises, so has the product of either with the output's moment,
      since a norm makes of an output twice as large a gradient half as large.
    * dead units: more channels are shut off for the whole batch than by chance.
    * collapsing: the outputs of different examples point the same way.
    * stalled: most kernels move by their decay more than by their gradient (He et al. 2015,
      footnote 2); it takes a loss and a weight decay.
    """
    broken = _broken(measurement)
    if broken is not None:
        return (broken,)
    layers, predicted = measurement.layers, predicted or {}
    findings = [  # the gravest first
        *_drifts(measurement, predicted),
        _dead(layers),
        _collapsed(layers),
        _stall(layers),
    ]
    return tuple(finding for finding in findings if finding is not None)


def _broken(measurement: Measurement) -> Finding | None:
    """Return a fault that makes the other statistics meaningless."""
    layers, loss = measurement.layers, measurement.loss
    for row, direction, field in measurement.nonfinite():
        return Finding(NOT_FINITE, direction, row.name, None, _NOT_FINITE[field])
    # One of several layers may read the zeros that a recurrent cell begins with.
    if all(row.input_second_moment == 0 for row in _first(layers) or layers[:1]):
        return Finding(VANISHING, "forward", layers[0].name, None, "its input is all zeros")
    if loss is None:
        return None
    last = layers[-1].name
    if not math.isfinite(loss):
        what = f"the loss is {loss}, though all outputs of layers are finite"
        return Finding(NOT_FINITE, "backward", last, None, what)
    if not any(row.gradient_second_moment for row in layers):
        return Finding(VANISHING, "backward", last, None, "the loss sends no gradient back")
    return None


def _first(layers: Sequence[LayerStatistics]) -> list[LayerStatistics]:
    """Return the layers that no layer feeds: they read the batch or constants."""
    return [row for row in layers if row.previous is None]


def _drifts(measurement: Measurement, predicted: Predictions) -> list[Finding]:
    layers = measurement.layers
    curve = drift.forward(measurement, predicted)
    finding = _drift("forward", curve)
    if finding and curve.after_first:
        start, last = layers[0], layers[drift.reading(layers)[-1]]
        total = (last.input_second_moment or 0.0) / start.second_moment
        times = power_of_ten(math.log(total) if total else -math.inf)
        what = f"E[x²] of {last.name} is {times} times E[y²] of {start.name}"
        finding = dataclasses.replace(finding, what=what)
    findings = [finding]
    if not drift.has_zero_head(layers):
        findings.append(_drift("backward", drift.backward(measurement, predicted)))
    return sorted(filter(None, findings), key=lambda found: found.verdict)


def _drift(direction: str, curve: Curve) -> Finding | None:
    """Return the finding of a moment that ends outside of its limits."""
    first = curve.first_outside()
    if first is None:
        return None
    end, steps = curve.logs[-1], len(curve.logs) - 1
    factor = math.exp(end / steps)
    symbol = "E[x²]" if direction == "forward" else "E[Δy²]"
    factors = f"by {power_of_ten(end)} over {steps} layers, by {factor:.3g} a layer"
    what = f"{symbol} is multiplied {factors}"
    if curve.has_means:
        what = f"{what}, without the means over positions"
    verdict = EXPLODING if end > 0 else VANISHING
    return Finding(verdict, direction, curve.names[first], factor, what)


def _dead(layers: Sequence[LayerStatistics]) -> Finding | None:
    """Return the first layer with more dead units than by chance.

    Where examples hardly differ, half of d channels are off, ± √d / 2. An input that no layer
    feeds, such as the initial state of a recurrent cell, has no units.
    """
    for before, row in itertools.pairwise(layers):
        fraction, channels = row.input_zero_fraction, row.input_channels
        if fraction is None or row.previous is None:
            continue
        if math.prod(row.input_shape) < FEW * channels:
            continue
        if fraction == 1 or fraction > 0.5 + SIGMAS * 0.5 / math.sqrt(channels):
            what = f"{fraction:.0%} of the {channels} channels that {row.name} reads are always 0"
            return Finding(DEAD_UNITS, "forward", before.name, None, what)
    return None


def _collapsed(layers: Sequence[LayerStatistics]) -> Finding | None:
    """Return the layer from which on all outputs of different examples point the same way."""
    first = None
    for row, s in zip(layers, drift.forward_noise(layers), strict=True):
        bound = max(IDENTICAL, COLLAPSED * math.exp(-s * s / 2 - SIGMAS * s))
        if row.cosine is not None:
            first = (first or row) if 1 - row.cosine < bound else None
    if first is None:
        return None
    what = f"the outputs of different examples have a cosine of {first.cosine:.7f}"
    return Finding(COLLAPSING, "forward", first.name, None, what)


def _stall(layers: Sequence[LayerStatistics]) -> Finding | None:
    ratios = {
        row.name: row.gradient_to_decay
        for row in layers
        if row.gradient_to_decay is not None
        and not math.isnan(row.gradient_to_decay)  # a kernel of zeros
    }
    median = statistics.median(ratios.values()) if ratios else math.inf
    if median >= STALL or drift.has_zero_head(layers):
        return None
    first = next(name for name, ratio in ratios.items() if ratio < STALL)
    what = f"the gradient of the median kernel is {median:.2g} of its weight decay"
    return Finding(STALLED, "backward", first, None, what)
