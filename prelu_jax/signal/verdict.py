"""What a measurement means: whether the signal arrives, forward and backward, and where it dies.

Depth multiplies, so a signal is judged on a logarithmic scale, against what fresh random weights do
to it by chance. Channels of a layer with independent weights are independent given its input: the
relative variance of a mean square over d of them is their spread over d (`channel_spread`), and
layers add. For a rectifier the spread is 5, E[f⁴]/E[f²]² − 1, if all examples and positions are
alike, and less if they are not (Hanin & Nica 2018); here it is measured. The log of a moment then
has a variance s² of the sum, and a mean of -s²/2. What lies within `SIGMAS` standard deviations, or
within `TOLERANCE`, is no finding. A prediction has no noise: what it and the measurement both put
outside of `TOLERANCE` is one.
"""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from prelu_jax.signal.measurement import LayerStatistics, Measurement

HEALTHY = "healthy"
NOT_JUDGED = "not judged"
NOT_FINITE = "not finite"
EXPLODING = "exploding"
VANISHING = "vanishing"
DEAD_UNITS = "dead units"
COLLAPSING = "collapsing"
STALLED = "stalled"

TOLERANCE = math.log(100)  # of a second moment from end to end: a factor of 10 in the signal
SIGMAS = 4.5
# 1 − cosine. A wide ReLU net comes to 9π² / (2 L²) after L layers, here at 210; narrow ones vary as
# moments do. Below the second, float32 no longer tells examples apart.
COLLAPSED, IDENTICAL = 1e-3, 1e-6
FEW = 8  # entries of a channel, over examples and positions, that may all be 0 by chance
STALL = 0.1  # of the median gradient over its weight decay


class Prediction(Protocol):
    """Predicted second moments of one layer, e.g. a `theory.LayerMoments`."""

    @property
    def forward(self) -> float:
        """E[y²]."""

    @property
    def backward(self) -> float:
        """E[Δy²]."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something wrong.

    Attributes:
        verdict: one of this module's names.
        direction: 'forward' or 'backward'; None where it is neither.
        layer: the name of the first layer at fault, in the order of computation.
        factor: of the second moment per layer, a geometric mean from end to end; None if there is
            no such thing.
        what: what was found, a sentence.
    """

    verdict: str
    direction: str | None
    layer: str
    factor: float | None
    what: str


class Accepted(NamedTuple):
    """Range of a second moment that is no finding; None where nothing is judged.

    Attributes:
        least: lower end.
        centre: the moment without any drift.
        greatest: upper end.
    """

    least: float | None = None
    centre: float | None = None
    greatest: float | None = None


class _Curve(NamedTuple):
    """A drift over layers.

    Attributes:
        names: the layers, in the order in which the signal passes them.
        logs: of the second moment over the first one.
        noise: the standard deviation of each log over fresh weights.
        predicted: second moments, one for each layer, or fewer where nothing is predicted.
        after_first: whether it is `_after_first`'s.
    """

    names: list[str]
    logs: list[float]
    noise: list[float]
    predicted: list[float]
    after_first: bool = False


def judge(
    measurement: Measurement, predicted: Mapping[str, Prediction] | None = None
) -> tuple[Finding, ...]:
    """What is wrong, the gravest first; nothing for a healthy signal.

    * not finite: an input, kernel, output or gradient holds an inf or a nan.
    * exploding, vanishing: forward, the input's second moment of the last layer over that of the
      second; backward, the output gradient's of the first layer over that of the last but one.
      The first layer reads the data's scale and the last often has a small one by design: neither
      counts. Where weights are unseen, or only two layers are seen, forward also begins at the
      first layer's output, and a moment between that and 1 is no drift. Backward both the moment
      and its sum over positions have to leave the band: strides and pooling keep the sum, a
      flattening before a dense layer keeps the moment. In a model that normalises, so has the
      product of either with the output's moment, since a norm makes of an output twice as large a
      gradient half as large.
    * dead units: more channels are shut off for the whole batch than by chance.
    * collapsing: the outputs of different examples point the same way.
    * stalled: most kernels move by their decay more than by their gradient (He et al. 2015,
      footnote 2); it takes a loss and a weight decay.
    """
    layers = measurement.layers
    broken = _not_finite(layers)
    if broken is not None:
        return (broken,)
    if layers[0].input_second_moment == 0:
        what = "it reads nothing but zeros"
        return (Finding(VANISHING, "forward", layers[0].name, None, what),)
    loss, last = measurement.loss, layers[-1].name
    if loss is not None and not math.isfinite(loss):
        what = f"the loss is {loss}, though all outputs of layers are finite"
        return (Finding(NOT_FINITE, "backward", last, None, what),)
    if loss is not None and not any(row.gradient_second_moment for row in layers):
        return (Finding(VANISHING, "backward", last, None, "the loss sends no gradient back"),)
    found = (
        _forward(measurement, predicted or {}),
        _backward(measurement, predicted or {}),
        _dead(layers),
        _collapsed(layers),
        _stall(layers),
    )
    order = (EXPLODING, VANISHING, DEAD_UNITS, COLLAPSING, STALLED)
    present = [finding for finding in found if finding is not None]
    return tuple(sorted(present, key=lambda finding: order.index(finding.verdict)))


def accepted(
    measurement: Measurement, predicted: Mapping[str, Prediction] | None = None
) -> dict[str, dict[str, Accepted]]:
    """Return the second moments that `judge` accepts, as a range for every layer.

    A moment leaves its range where, and only where, the drift that is judged leaves its limits.

    Returns:
        direction -> layer -> range: of E[y²] for 'forward', of E[Δy²] for 'backward'. The last
        layer has none, nor has one that gives or passes on nothing but zeros.
    """
    layers = measurement.layers
    ranges: dict[str, dict[str, Accepted]] = {"forward": {}, "backward": {}}
    if _not_finite(layers):
        return ranges
    curves = {"forward": _forward_curve(measurement, predicted or {})}
    if not _head_of_zeros(layers):
        curves["backward"] = _backward_logs(measurement, predicted or {})
    for direction, curve in curves.items():
        field = "second_moment" if direction == "forward" else "gradient_second_moment"
        moments = {row.name: getattr(row, field) for row in layers}
        limits = _limits(curve.noise, curve.predicted)
        for name, log, (low, high) in zip(curve.names, curve.logs, limits, strict=True):
            if moments[name] > 0 and math.isfinite(log):
                centre = math.log(moments[name]) - log
                edges = (_exp(centre + shift) for shift in (low, 0.0, high))
                ranges[direction][name] = Accepted(*edges)
    return ranges


def _exp(log: float) -> float:
    return math.exp(min(log, 700.0))  # the largest float is e^709


def forward_noise(layers: Sequence[LayerStatistics]) -> list[float]:
    """The standard deviation over fresh weights of log E[y²] at every layer."""
    own = (row.channel_spread / row.channels for row in layers)
    return [math.sqrt(a + b) for a, b in zip(_variances_of_inputs(layers), own, strict=True)]


def _variances_of_inputs(layers: Sequence[LayerStatistics]) -> list[float]:
    """The variance over fresh weights of log E[x²] at every layer; 0 at the first."""
    steps = [0.0]
    for before, row in itertools.pairwise(layers):
        spread = row.input_channel_spread
        steps.append((before.channel_spread if spread is None else spread) / before.channels)
    return list(itertools.accumulate(steps))


def backward_noise(layers: Sequence[LayerStatistics]) -> list[float]:
    """The standard deviation over fresh weights of log E[Δy²] at every layer; 0 at the last."""
    steps = [0.0, *(row.gradient_channel_spread / row.channels for row in layers[-2::-1])]
    return [math.sqrt(variance) for variance in itertools.accumulate(steps)][::-1]


def _not_finite(layers: Sequence[LayerStatistics]) -> Finding | None:
    """The first number that is not finite, in the order of computation."""
    what = {
        "input_second_moment": "what it reads holds an inf or a nan",
        "kernel_rms": "its kernel holds an inf or a nan",
        "second_moment": "its output is not finite, though its input and kernel are",
        "gradient_second_moment": "the gradient that reaches it is not finite",
        "kernel_gradient_rms": "its kernel's gradient is not finite, though its output's is",
    }
    forward, backward = list(what)[:3], list(what)[3:]
    for direction, rows, fields in (
        ("forward", layers, forward),
        ("backward", layers[::-1], backward),
    ):
        for row in rows:
            for field in fields:
                value = getattr(row, field)
                if value is not None and not math.isfinite(value):
                    return Finding(NOT_FINITE, direction, row.name, None, what[field])
    return None


def _forward(measurement: Measurement, predicted: Mapping[str, Prediction]) -> Finding | None:
    """Judge by what the hidden layers read."""
    curve = _forward_curve(measurement, predicted)
    finding = _drift("forward", curve)
    if finding is None or not curve.after_first:
        return finding
    layers = measurement.layers
    start, last = layers[0], layers[_reading(layers)[-1]]
    total = (last.input_second_moment or 0.0) / start.second_moment
    times = power_of_ten(math.log(total) if total else -math.inf)
    what = f"E[x²] of {last.name} is {times} times E[y²] of {start.name}"
    return dataclasses.replace(finding, what=what)


def _forward_curve(measurement: Measurement, predicted: Mapping[str, Prediction]) -> _Curve:
    """Return the curve by which the forward signal is judged.

    It is that of the hidden layers, unless the one from the first layer's output alone leaves its
    limits, or the other is a single point.
    """
    curve = _forward_logs(measurement.layers, predicted)
    after = _after_first(measurement)
    if after is None or _drift("forward", curve):
        return curve
    return after if len(curve.logs) < 2 or _drift("forward", after) else curve


def _reading(layers: Sequence[LayerStatistics]) -> list[int]:
    """Return the layers after the first that read a signal, not the numbers of rows."""
    return [i for i, row in enumerate(layers) if i and row.input_second_moment is not None]


def _forward_logs(layers: Sequence[LayerStatistics], predicted: Mapping[str, Prediction]) -> _Curve:
    """Names, logs, noise, predictions; what layer i reads, layer i − 1 is named for."""
    read = _reading(layers)
    logs = _from_first([layers[i].input_second_moment or 0.0 for i in read])
    variances = _variances_of_inputs(layers)
    noise = [math.sqrt(variances[i] - variances[read[0]]) for i in read]
    names = [layers[i - 1].name for i in read]
    expected = [predicted[name].forward for name in names if name in predicted]
    return _Curve(names, logs, noise, expected)


def _after_first(measurement: Measurement) -> _Curve | None:
    """Return the factors between the first layer's output and what later ones read.

    Norms and bounded activations bring a signal of any scale to about 1: no moment between the
    first one and 1 counts. A mean over P positions may divide by P, a sum multiply by P²: neither
    counts. The scale of an embedding is the data's. None where these factors are not judged.
    """
    layers = measurement.layers
    read = _reading(layers)
    start = layers[0]
    if start.input_second_moment is None or not start.second_moment:
        return None
    lowest, highest = sorted([1.0, start.second_moment])
    if not read or (len(read) > 1 and not measurement.coverage.unseen):
        return None
    logs, noise = [0.0], [0.0]
    variances = _variances_of_inputs(layers)
    for i in read:
        moment = layers[i].input_second_moment or 0.0
        nearest = min(max(moment, lowest), highest)
        log = math.log(moment / nearest) if moment else -math.inf
        ratio = math.prod(start.shape) / math.prod(layers[i].input_shape)
        pooled = max(0.0, math.log(ratio))
        logs.append(_least([log, log + pooled, log - 2 * pooled]))
        noise.append(math.sqrt(variances[i]))
    names = [start.name, *(layers[i - 1].name for i in read)]
    return _Curve(names, logs, noise, [], after_first=True)


def _backward(measurement: Measurement, predicted: Mapping[str, Prediction]) -> Finding | None:
    if _head_of_zeros(measurement.layers):
        return None
    return _drift("backward", _backward_logs(measurement, predicted))


def _backward_logs(measurement: Measurement, predicted: Mapping[str, Prediction]) -> _Curve:
    """Names, logs, noise, predictions, from the last hidden layer back."""
    layers = measurement.layers
    hidden = layers[-2::-1]
    moments = [row.gradient_second_moment for row in hidden]
    times_met = [math.prod(row.shape) / row.channels for row in hidden]
    weights = [[1.0] * len(hidden), times_met]
    if measurement.normalises:
        outputs = [row.second_moment for row in hidden]
        weights += [[y * w for y, w in zip(outputs, of, strict=True)] for of in weights]
    curves = [_from_first([m * w for m, w in zip(moments, of, strict=True)]) for of in weights]
    logs = [_least(values) for values in zip(*curves, strict=True)]
    noise = backward_noise(layers)[-2::-1]
    names = [row.name for row in hidden]
    expected = [predicted[name].backward for name in names if name in predicted]
    return _Curve(names, logs, noise, expected)


def _head_of_zeros(layers: Sequence[LayerStatistics]) -> bool:
    """A design: no gradient passes the last kernel before the first step has changed it."""
    return layers[-1].kernel_rms == 0


def _least(logs: Sequence[float]) -> float:
    """The one nearest to 0; 0 if some rose and others fell."""
    return min(logs, key=abs) if min(logs) > 0 or max(logs) < 0 else 0.0


def _from_first(moments: Sequence[float]) -> list[float]:
    """log(moment / first moment that is not zero); of zero, minus infinity."""
    first = next((moment for moment in moments if moment > 0), 1.0)
    return [math.log(moment / first) if moment > 0 else -math.inf for moment in moments]


def _drift(direction: str, curve: _Curve) -> Finding | None:
    """Whether a moment ends outside its band, and from which layer on it stays outside."""
    names, logs = curve.names, curve.logs
    limits = _limits(curve.noise, curve.predicted)
    outside = [not low <= log <= high for log, (low, high) in zip(logs, limits, strict=True)]
    if len(logs) < 2 or not outside[-1]:
        return None
    first = len(outside) - len(list(itertools.takewhile(bool, reversed(outside))))
    end, steps = logs[-1], len(logs) - 1
    factor = math.exp(end / steps)
    symbol = "E[x²]" if direction == "forward" else "E[Δy²]"
    factors = f"by {power_of_ten(end)} over {steps} layers, by {factor:.3g} a layer"
    what = f"{symbol} is multiplied {factors}"
    verdict = EXPLODING if end > 0 else VANISHING
    return Finding(verdict, direction, names[first], factor, what)


def _limits(noise: Sequence[float], predicted: Sequence[float]) -> list[tuple[float, float]]:
    """Return the least and the greatest log of a moment that is no finding, for every layer."""
    sure = _from_first(predicted) if len(predicted) == len(noise) else [0.0] * len(noise)
    limits = []
    for s, expected in zip(noise, sure, strict=True):
        low, high = -max(TOLERANCE, s * s / 2 + SIGMAS * s), max(TOLERANCE, SIGMAS * s)
        if expected < -TOLERANCE:  # it is no chance: the noise is no excuse
            low = -TOLERANCE
        if expected > TOLERANCE:
            high = TOLERANCE
        limits.append((low, high))
    return limits


def power_of_ten(log: float) -> str:
    """exp(log) for people, however small: '3.2e-412'."""
    if not math.isfinite(log):
        return "0" if log < 0 else "inf"
    exponent = math.floor(log / math.log(10))
    mantissa = round(math.exp(log - exponent * math.log(10)), 1)
    if mantissa >= 10:
        mantissa, exponent = mantissa / 10, exponent + 1
    return f"{mantissa:.1f}e{exponent:+03d}"


def _dead(layers: Sequence[LayerStatistics]) -> Finding | None:
    """Beyond chance: where examples hardly differ half of d channels are off, ± √d / 2."""
    for before, row in itertools.pairwise(layers):
        fraction, channels = row.input_zero_fraction, row.input_shape[-1]
        if fraction is None or math.prod(row.input_shape[:-1]) < FEW:
            continue
        if fraction == 1 or fraction > 0.5 + SIGMAS * 0.5 / math.sqrt(channels):
            what = f"{fraction:.0%} of the {channels} channels that {row.name} reads are always 0"
            return Finding(DEAD_UNITS, "forward", before.name, None, what)
    return None


def _collapsed(layers: Sequence[LayerStatistics]) -> Finding | None:
    alike = []
    for row, s in zip(layers, forward_noise(layers), strict=True):
        bound = max(IDENTICAL, COLLAPSED * math.exp(-s * s / 2 - SIGMAS * s))
        if row.cosine is not None:
            alike.append((1 - row.cosine < bound, row))
    behind = list(itertools.takewhile(lambda pair: pair[0], reversed(alike)))
    if not behind:
        return None
    first = behind[-1][1]
    what = f"the outputs of different examples have a cosine of {first.cosine:.7f}"
    return Finding(COLLAPSING, "forward", first.name, None, what)


def _stall(layers: Sequence[LayerStatistics]) -> Finding | None:
    ratios = [(r.name, r.gradient_to_decay) for r in layers if r.gradient_to_decay is not None]
    ratios = [(name, ratio) for name, ratio in ratios if not math.isnan(ratio)]  # a kernel of zeros
    median = statistics.median(ratio for _, ratio in ratios) if ratios else math.inf
    if median >= STALL or _head_of_zeros(layers):
        return None
    first = next(name for name, ratio in ratios if ratio < STALL)
    what = f"the gradient of the median kernel is {median:.2g} of its weight decay"
    return Finding(STALLED, "backward", first, None, what)
