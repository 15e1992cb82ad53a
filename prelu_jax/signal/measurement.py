"""A measurement in Python floats: one row for every call of an affine layer."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from prelu_jax.signal import moments
from prelu_jax.signal.batches import Examples
from prelu_jax.signal.coverage import Coverage

_OF_WEIGHTS = ("WeightNorm", "SpectralNorm")  # norms that leave the signal alone


@dataclasses.dataclass(frozen=True)
class LayerStatistics:
    """One call of one affine layer. None: not defined here; nan: not a finite number.

    Attributes:
        path: the path of its weights in the model's parameters, without 'kernel' and the like, and
            with the step of a scan that has weights for each step: 'blocks/mlp[17]'. '' for a model
            that is a layer itself.
        call: which call of this layer: 0, or more where it is shared.
        kind: the kind of operation: Dense, Conv, ConvTranspose, GroupedDense or Embed.
        input_shape: the shape of the input x, on one device.
        shape: that of the output y.
        channels: the number of output channels, over all axes that count them.
        kernel_shape: the shape of its kernel, or an embedding's table.
        mean: mean of y, before any rectifier, over examples, positions and channels.
        var: variance of y over the same.
        second_moment: E[y²].
        minimum: the least value of y.
        channel_spread: variance over channels of E[y²], over the square of its mean. Over the
            number of channels it is the relative variance of E[y²] over fresh weights.
        input_mean: mean of x, which is what rectifiers, pools and norms have made of the outputs
            before: post-activation. None for an embedding, whose input is the number of a row.
        input_var: variance of x.
        input_second_moment: E[x²].
        input_minimum: the least value of x.
        input_channel_spread: the same as channel_spread, of x.
        input_zero_fraction: fraction of x's channels that are 0 for every example and position:
            units that a rectifier has shut off.
        gradient_second_moment: E[Δy²], over the same as the mean.
        gradient_channel_spread: the same as channel_spread, of Δy.
        kernel_rms: root mean square of the kernel.
        kernel_gradient_rms: that of the kernel's gradient, summed over all calls of the layer. Of a
            kernel that is computed from parameters, that of its change when they follow their
            gradients.
        change_rate: kernel_gradient_rms / kernel_rms: C̃ of Krähenbühl et al. 2015, as their code
            takes it, from the batch's gradient.
        dead_fraction: fraction of channels with y <= 0 for every example at every position.
        cosine: mean cosine between the outputs of different examples, which are taken to be the
            entries of the first axis; 1 where the signal has collapsed. None where that axis is
            not as long as the batch, or the batch is one example.
        gradient_to_decay: kernel_gradient_rms / (weight_decay · kernel_rms). Far below 1, the
            weights are moved by their decay alone: the stall of He et al. 2015, footnote 2. None
            without a loss or without decay.
    """

    path: str
    call: int
    kind: str
    input_shape: tuple[int, ...]
    shape: tuple[int, ...]
    channels: int
    kernel_shape: tuple[int, ...] | None
    mean: float
    var: float
    second_moment: float
    minimum: float
    channel_spread: float
    input_mean: float | None
    input_var: float | None
    input_second_moment: float | None
    input_minimum: float | None
    input_channel_spread: float | None
    input_zero_fraction: float | None
    gradient_second_moment: float
    gradient_channel_spread: float
    kernel_rms: float | None
    kernel_gradient_rms: float | None
    change_rate: float | None
    dead_fraction: float
    cosine: float | None
    gradient_to_decay: float | None

    @property
    def name(self) -> str:
        """The path, with the number of the call where it is not the first: 'block/conv[1]'."""
        path = self.path or self.kind
        return f"{path}[{self.call}]" if self.call else path


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What `measure` found.

    Attributes:
        layers: the calls of affine layers, in execution order.
        kinds: the names of the classes of all modules that the model holds or calls.
        coverage: which of the model's weights the rows speak of.
        loss: the loss; None where the cotangent was noise.
        examples: the number of examples in the batch, and how it was found.
    """

    layers: tuple[LayerStatistics, ...]
    kinds: tuple[str, ...]
    coverage: Coverage = dataclasses.field(default_factory=Coverage)
    loss: float | None = None
    examples: Examples | None = None

    @property
    def unseen(self) -> tuple[str, ...]:
        """The weights that no row speaks of, then the parameters that the model does not use."""
        return (*(weight.parameter for weight in self.coverage.unseen), *self.coverage.unused)

    @property
    def collapse_not_judged(self) -> str | None:
        """The reason why a collapse cannot be judged, a clause; None if it can be."""
        if any(row.cosine is not None for row in self.layers):
            return None
        if self.examples is not None and self.examples.number == 1:
            return "the batch is one example"
        return "no layer's output has the examples along its first axis"

    @property
    def normalises(self) -> bool:
        """Whether it has layers that set a signal's scale anew: BatchNorm, LayerNorm and kin."""
        return any(kind.endswith("Norm") and kind not in _OF_WEIGHTS for kind in self.kinds)

    @property
    def first_nonfinite(self) -> str | None:
        """The name of the first layer where a number is not finite; None if all are finite.

        First in the order of computation: forward through inputs, kernels and outputs, then
        backward through the gradients.
        """
        for row in self.layers:
            forward = (row.input_second_moment, row.kernel_rms, row.second_moment)
            if not all(value is None or math.isfinite(value) for value in forward):
                return row.name
        for row in reversed(self.layers):
            backward = (row.gradient_second_moment, row.kernel_gradient_rms)
            if not all(value is None or math.isfinite(value) for value in backward):
                return row.name
        return None


@dataclasses.dataclass(frozen=True)
class Call:
    """An affine layer's call before it is computed.

    Attributes:
        path: the layer's path in the model, with the step where a scan has layers of its own.
        kind: the kind of layer.
        number: which call of this layer it is, from 0.
        channels: the number of output channels.
        looks_up: whether its input is the number of a row.
        input_shape: the input's shape, on one device.
        shape: the output's.
        kernel_shape: the kernel's; None where the layer's is not among the model's parameters.
        has_examples: whether the first axis of the output counts the batch's examples, two or more.
    """

    path: str
    kind: str
    number: int
    channels: int
    looks_up: bool
    input_shape: tuple[int, ...]
    shape: tuple[int, ...]
    kernel_shape: tuple[int, ...] | None
    has_examples: bool = False


def has_examples(shape: tuple[int, ...], examples: int) -> bool:
    """Return whether an output has several examples along its first axis, each a vector.

    The cosine of two numbers is their sign.
    """
    return shape[:1] == (examples,) and math.prod(shape) > examples > 1


def row(
    call: Call,
    numbers: Mapping[str, Any],
    of_gradient: Mapping[str, Any],
    kernel: float | None,
    gradient: float | None,
    weight_decay: float | None,
) -> LayerStatistics:
    """A row in Python floats.

    Args:
        call: what is known beforehand.
        numbers: of `moments.of_output`, those of `moments.of_input` with 'input_' before their
            names.
        of_gradient: of `moments.summarised`.
        kernel: the kernel's root mean square; None if there is none to be found.
        gradient: that of its gradient.
        weight_decay: None where a gradient is not to be compared with it.
    """
    mean, var, second_moment = _moments(numbers)
    x_mean, x_var, x_second_moment = _moments(numbers, "input_")
    dead, cosine, spread = (float(numbers[name]) for name in ("dead", "cosine", "spread"))
    x_zero, x_spread = (float(numbers[f"input_{name}"]) for name in ("zero", "spread"))
    change_rate = None if kernel is None or gradient is None else _ratio(gradient, kernel)
    to_decay = None
    if change_rate is not None and weight_decay is not None:
        to_decay = change_rate / weight_decay
    reads = not call.looks_up
    return LayerStatistics(
        path=call.path,
        call=call.number,
        kind=call.kind,
        input_shape=call.input_shape,
        shape=call.shape,
        channels=call.channels,
        kernel_shape=call.kernel_shape,
        mean=mean,
        var=var,
        second_moment=second_moment,
        minimum=_product(numbers, "scale", "minimum"),
        channel_spread=spread,
        input_mean=x_mean if reads else None,
        input_var=x_var if reads else None,
        input_second_moment=x_second_moment if reads else None,
        input_minimum=_product(numbers, "input_scale", "input_minimum") if reads else None,
        input_channel_spread=x_spread if reads else None,
        input_zero_fraction=_of_finite(x_zero, x_second_moment) if reads else None,
        gradient_second_moment=moments.second_moment(of_gradient["scale"], of_gradient["square"]),
        gradient_channel_spread=float(of_gradient["spread"]),
        kernel_rms=kernel,
        kernel_gradient_rms=gradient,
        change_rate=change_rate,
        dead_fraction=_of_finite(dead, second_moment),
        cosine=cosine if call.has_examples else None,
        gradient_to_decay=to_decay,
    )


def _moments(numbers: Mapping[str, Any], prefix: str = "") -> tuple[float, float, float]:
    """Mean, variance and second moment, in double precision: squares may not fit in float32."""
    scale, mean, var = (float(numbers[prefix + name]) for name in ("scale", "mean", "var"))
    return scale * mean, scale * scale * var, scale * scale * (var + mean * mean)


def _of_finite(value: float, second_moment: float) -> float:
    return value if math.isfinite(second_moment) else math.nan


def _product(numbers: Mapping[str, Any], a: str, b: str) -> float:
    return float(numbers[a]) * float(numbers[b])


def _ratio(numerator: float, denominator: float) -> float:
    if denominator == 0:
        return math.nan if numerator == 0 or math.isnan(numerator) else math.inf
    return numerator / denominator
