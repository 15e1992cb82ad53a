"""The change of second moments over layers, and how much of it random weights cause by chance.

Depth multiplies, so moments are compared on a logarithmic scale. Channels of a layer with
independent weights are independent given its input: the relative variance of a mean square over d
of them is their spread (`LayerStatistics.channel_spread`) over d, and layers add. For a rectifier
the spread is 5, E[f⁴]/E[f²]² − 1, if all examples and positions are equal, and less if they are not
(Hanin & Nica 2018); here it is measured. The log of a moment then has a variance s² of the sum, and
a mean of -s²/2. A change within `SIGMAS` standard deviations, or within `TOLERANCE`, is accepted. A
prediction has no noise: a change that both it and the measurement put outside of `TOLERANCE` is
not accepted.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from prelu_jax.signal.measurement import LayerStatistics, Measurement
from prelu_jax.tracing import kinds

TOLERANCE = math.log(100)  # of a second moment from end to end: a factor of 10 in the signal
SIGMAS = 4.5


class Prediction(Protocol):
    """Predicted second moments and cosine of one layer, e.g. a `theory.LayerMoments`."""

    @property
    def forward(self) -> float:
        """E[y²]."""

    @property
    def backward(self) -> float:
        """E[Δy²]."""

    @property
    def cosine(self) -> float | None:
        """Cosine of two examples' outputs; None if it is not predicted."""


Predictions = Mapping[str, Prediction]  # by a layer's name


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


class Curve(NamedTuple):
    """A drift over layers.

    Attributes:
        names: the layers, in the order in which the signal passes them.
        logs: of the second moment over the first one.
        noise: the standard deviation of each log over fresh weights.
        predicted: second moments, one for each layer, or fewer where nothing is predicted.
        after_first: whether it begins at the first layer's output (`_after_first`).
        has_means: whether the last log leaves out the means over positions.
    """

    names: list[str]
    logs: list[float]
    noise: list[float]
    predicted: list[float]
    after_first: bool = False
    has_means: bool = False

    def limits(self) -> list[tuple[float, float]]:
        """Return the least and the greatest log that is accepted, for every layer."""
        complete = len(self.predicted) == len(self.noise)
        expected = _from_first(self.predicted) if complete else [0.0] * len(self.noise)
        return list(map(_limits, self.noise, expected))

    def first_outside(self) -> int | None:
        """Return from which layer on all are outside of their limits; None if the last is not."""
        inside = [
            low <= log <= high for log, (low, high) in zip(self.logs, self.limits(), strict=True)
        ]
        if len(self.logs) < 2 or inside[-1]:
            return None
        return max((i + 1 for i, is_inside in enumerate(inside) if is_inside), default=0)


def _limits(noise: float, expected: float) -> tuple[float, float]:
    low = -max(TOLERANCE, noise * noise / 2 + SIGMAS * noise)
    high = max(TOLERANCE, SIGMAS * noise)
    # A predicted drift is not due to chance: there the noise does not widen the limits.
    return (
        -TOLERANCE if expected < -TOLERANCE else low,
        TOLERANCE if expected > TOLERANCE else high,
    )


def accepted(
    measurement: Measurement, predicted: Predictions | None = None
) -> dict[str, dict[str, Accepted]]:
    """Return the second moments that `verdict.judge` accepts, as a range for every layer.

    A moment leaves its range where, and only where, the drift that is judged leaves its limits.

    Returns:
        direction -> layer -> range: of E[y²] for 'forward', of E[Δy²] for 'backward'. The last
        layer has none, nor has one that gives or passes on nothing but zeros.
    """
    ranges: dict[str, dict[str, Accepted]] = {"forward": {}, "backward": {}}
    if measurement.first_nonfinite:
        return ranges
    curves = {"forward": forward(measurement, predicted or {})}
    if not has_zero_head(measurement.layers):
        curves["backward"] = backward(measurement, predicted or {})
    for direction, curve in curves.items():
        field = "second_moment" if direction == "forward" else "gradient_second_moment"
        moments = {row.name: getattr(row, field) for row in measurement.layers}
        for name, log, (low, high) in zip(curve.names, curve.logs, curve.limits(), strict=True):
            if moments[name] > 0 and math.isfinite(log):
                centre = math.log(moments[name]) - log
                edges = (_exp(centre + shift) for shift in (low, 0.0, high))
                ranges[direction][name] = Accepted(*edges)
    return ranges


def _exp(log: float) -> float:
    return math.exp(min(log, 700.0))  # the largest float is e^709


def has_zero_head(layers: Sequence[LayerStatistics]) -> bool:
    """Return whether the last kernel is zero by design: no gradient passes it before a step."""
    return layers[-1].kernel_rms == 0


def forward_noise(layers: Sequence[LayerStatistics]) -> list[float]:
    """Return the standard deviation over fresh weights of log E[y²] at every layer."""
    own = (row.channel_spread / row.channels for row in layers)
    return [math.sqrt(a + b) for a, b in zip(_variances_of_inputs(layers), own, strict=True)]


def _variances_of_inputs(layers: Sequence[LayerStatistics]) -> list[float]:
    """Return the variance over fresh weights of log E[x²] at every layer; 0 at the first."""
    steps = [0.0]
    for before, row in itertools.pairwise(layers):
        spread = row.input_channel_spread
        steps.append((before.channel_spread if spread is None else spread) / before.channels)
    return list(itertools.accumulate(steps))


def backward_noise(layers: Sequence[LayerStatistics]) -> list[float]:
    """Return the standard deviation over fresh weights of log E[Δy²] at every layer."""
    steps = [0.0, *(row.gradient_channel_spread / row.channels for row in layers[-2::-1])]
    return [math.sqrt(variance) for variance in itertools.accumulate(steps)][::-1]


def forward(measurement: Measurement, predicted: Predictions) -> Curve:
    """Return the curve by which the forward signal is judged.

    It is that of the hidden layers, unless the one from the first layer's output alone leaves its
    limits, or the other is a single point.
    """
    curve = _hidden(measurement.layers, predicted)
    after = _after_first(measurement)
    if after is None or curve.first_outside() is not None:
        return curve
    return after if len(curve.logs) < 2 or after.first_outside() is not None else curve


def reading(layers: Sequence[LayerStatistics]) -> list[int]:
    """Return the indices of the layers after the first that read a signal.

    Look-ups, which read numbers of rows, do not count. Layers that read the batch count only if all
    do: a recurrent cell reads it at every step.
    """
    read = [i for i, row in enumerate(layers) if i and row.input_second_moment is not None]
    return [i for i in read if layers[i].previous is not None] or read


def _hidden(layers: Sequence[LayerStatistics], predicted: Predictions) -> Curve:
    """Return the curve of the inputs of layers, each with the name of the layer before."""
    read = reading(layers)
    means = _means(layers)
    moments = _from_first([layers[i].input_second_moment or 0.0 for i in read])
    logs = [
        _nearest_to_zero([log, log + means[i] - means[read[0]]])
        for log, i in zip(moments, read, strict=True)
    ]
    variances = _variances_of_inputs(layers)
    noise = [math.sqrt(variances[i] - variances[read[0]]) for i in read]
    names = [layers[i - 1].name for i in read]
    expected = [predicted[name].forward for name in names if name in predicted]
    has_means = bool(read) and logs[-1] != moments[-1]
    return Curve(names, logs, noise, expected, has_means=has_means)


def _means(layers: Sequence[LayerStatistics]) -> list[float]:
    """Return the log of the most by which means over positions have divided each layer's E[x²].

    A mean over P positions divides by up to P, which is no fault: a ReLU's outputs have a positive
    mean, which is kept, and those of tanh have none.
    """
    divided: dict[str | None, float] = {}
    for row in layers:
        own = 0.0
        if row.between_factor and kinds.MEANS & set(row.between):
            before = next(other for other in layers if other.name == row.previous)
            positions = math.prod(before.shape) / math.prod(row.input_shape)
            own = max(0.0, min(math.log(positions), -math.log(row.between_factor)))
        divided[row.name] = divided.get(row.previous, 0.0) + own
    return [divided[row.name] for row in layers]


def _after_first(measurement: Measurement) -> Curve | None:
    """Return the factors between the first layer's output and the inputs of later ones.

    Norms and bounded activations bring a signal of any scale to about 1: no moment between the
    first one and 1 counts. A mean over P positions may divide by P, a sum multiply by P²: neither
    counts. The scale of an embedding is the data's. None where these factors are not judged.
    """
    layers = measurement.layers
    read = reading(layers)
    start = layers[0]
    if start.input_second_moment is None or not start.second_moment:
        return None
    if not read or (len(read) > 1 and not measurement.coverage.not_measured):
        return None
    lowest, highest = sorted([1.0, start.second_moment])
    logs = [0.0]
    for i in read:
        moment = layers[i].input_second_moment or 0.0
        nearest = min(max(moment, lowest), highest)
        log = math.log(moment / nearest) if moment else -math.inf
        ratio = math.prod(start.shape) / math.prod(layers[i].input_shape)
        pooled = max(0.0, math.log(ratio))
        logs.append(_nearest_to_zero([log, log + pooled, log - 2 * pooled]))
    variances = _variances_of_inputs(layers)
    noise = [0.0, *(math.sqrt(variances[i]) for i in read)]
    names = [start.name, *(layers[i - 1].name for i in read)]
    return Curve(names, logs, noise, [], after_first=True)


def backward(measurement: Measurement, predicted: Predictions) -> Curve:
    """Return the curve of the gradients, from the last hidden layer back.

    Of several layers that no layer feeds, those without a gradient do not count, unless none has
    one. A GRU that begins with a state of zeros passes no gradient to its reset gate there.
    """
    layers = measurement.layers
    noise = backward_noise(layers)
    reached = any(row.previous is None and row.gradient_second_moment for row in layers[:-1])
    counted = [
        i
        for i, row in reversed([*enumerate(layers[:-1])])
        if row.gradient_second_moment or row.previous is not None or not reached
    ]
    hidden = [layers[i] for i in counted]
    positions = [math.prod(row.shape) / row.channels for row in hidden]
    weights = [[1.0] * len(hidden), positions]
    if measurement.normalises:
        weights += [
            [row.second_moment * w for row, w in zip(hidden, ws, strict=True)] for ws in weights
        ]
    curves = [
        _from_first([row.gradient_second_moment * w for row, w in zip(hidden, ws, strict=True)])
        for ws in weights
    ]
    logs = [_nearest_to_zero(values) for values in zip(*curves, strict=True)]
    names = [row.name for row in hidden]
    expected = [predicted[name].backward for name in names if name in predicted]
    return Curve(names, logs, [noise[i] for i in counted], expected)


def _nearest_to_zero(logs: Sequence[float]) -> float:
    """Return the one nearest to 0; 0 if some rose and others fell."""
    return min(logs, key=abs) if min(logs) > 0 or max(logs) < 0 else 0.0


def _from_first(moments: Sequence[float]) -> list[float]:
    """Return log(moment / first moment that is not zero); of zero, minus infinity."""
    first = next((moment for moment in moments if moment > 0), 1.0)
    return [math.log(moment / first) if moment > 0 else -math.inf for moment in moments]


def power_of_ten(log: float) -> str:
    """Return exp(log) for people, however small: '3.2e-412'."""
    if not math.isfinite(log):
        return "0" if log < 0 else "inf"
    exponent = math.floor(log / math.log(10))
    mantissa = round(math.exp(log - exponent * math.log(10)), 1)
    if mantissa >= 10:
        mantissa, exponent = mantissa / 10, exponent + 1
    return f"{mantissa:.1f}e{exponent:+03d}"
