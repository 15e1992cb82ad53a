"""A measurement in Python floats: one row for every call of an affine layer."""

import dataclasses
import math
from collections.abc import Iterator

from prelu_jax.signal.batches import Examples
from prelu_jax.signal.coverage import Coverage

_OF_WEIGHTS = ("WeightNorm", "SpectralNorm")  # norms that leave the signal alone


@dataclasses.dataclass(frozen=True)
class LayerCall:
    """One call of one affine layer.

    Attributes:
        path: the path of its weights in the model's parameters, without 'kernel' and the like, and
            with the step of a scan that has weights for each step: 'blocks/mlp[17]'. '' for a model
            that is a layer itself.
        call: which call of this layer: 0, or more where it is shared.
        kind: the kind of operation: Dense, Conv, ConvTranspose, GroupedDense or Embed.
        input_shape: the shape of the input x, on one device.
        input_channels: the number of x's channels, over all axes that count them.
        shape: that of the output y.
        channels: the number of output channels, over all axes that count them.
        window: the sizes of a convolution's window; () for other layers.
        positions: the sizes of the axes of y other than the first and those of channels.
        kernel_shape: the shape of its kernel, or an embedding's table. None where it is not among
            the model's parameters.
    """

    path: str
    call: int
    kind: str
    input_shape: tuple[int, ...]
    input_channels: int
    shape: tuple[int, ...]
    channels: int
    window: tuple[int, ...]
    positions: tuple[int, ...]
    kernel_shape: tuple[int, ...] | None

    @property
    def name(self) -> str:
        """The path, with the number of the call after the first, as in 'block/conv[1]'."""
        path = self.path or self.kind
        return f"{path}[{self.call}]" if self.call else path


@dataclasses.dataclass(frozen=True)
class LayerStatistics(LayerCall):
    """The statistics of a `LayerCall`; None where one is not defined, nan where it is not finite.

    Attributes:
        mean: mean of y, before any rectifier, over examples, positions and channels.
        var: variance of y over the same.
        second_moment: E[y²].
        minimum: the least value of y.
        channel_spread: variance over channels of E[y²], over the square of its mean. Over the
            number of channels it is the relative variance of E[y²] over fresh weights.
        input_mean: mean of x, which rectifiers, pools and norms have made of the outputs before.
            None for an embedding, whose input is the number of a row.
        input_var: variance of x.
        input_second_moment: E[x²].
        input_minimum: the least value of x.
        input_channel_spread: the same as channel_spread, of x.
        input_zero_fraction: fraction of x's channels that are 0 for every example and position:
            units that a rectifier has shut off.
        input_cosine: the same as cosine, of x. Independent zero-mean weights give outputs of this
            cosine, exactly if they read all positions equally often.
        gradient_second_moment: E[Δy²], over the same as the mean.
        gradient_channel_spread: the same as channel_spread, of Δy.
        kernel_rms: root mean square of the kernel.
        kernel_gradient_rms: that of the kernel's gradient, summed over all calls of the layer; for
            a kernel that is computed from parameters, that of its change when these follow their
            gradients.
        change_rate: kernel_gradient_rms / kernel_rms: C̃ of Krähenbühl et al. 2015, computed as in
            their code from the batch's gradient.
        dead_fraction: fraction of channels with y <= 0 for every example at every position.
        cosine: mean cosine between the outputs of different examples, which are taken to be the
            entries of the first axis; 1 where the signal has collapsed. None where that axis is
            not as long as the batch, or the batch is one example.
        gradient_to_decay: kernel_gradient_rms / (weight_decay · kernel_rms). Far below 1, the
            weights are moved by their decay alone: the stall of He et al. 2015, footnote 2. None
            without a loss or without decay.
        kernel_factor: E[y²] / E[x²], the factor of the kernel and the bias. None for an embedding.
        expected_kernel_factor: the expectation of kernel_factor, given x and the bias, over
            independent weights of mean 0 and the kernel's mean square: exact at borders, with
            strides, dilation and groups. None for an embedding and for products whose groups depend
            on the data.
        gradient_kernel_factor: E[Δx²] / E[Δy²], where Δx = Wᵀ Δy is the part of x's gradient that
            comes through this layer. Where x is padded or unfolded before the product takes
            it, the gradients at all entries of the product's operand count, over the number of
            entries of x. None where x is the batch, and for an embedding.
        expected_gradient_kernel_factor: its expectation over the same weights, given Δy.
        previous: the name of the layer whose output reaches this one's input through other
            operations alone; of several layers the last, at a residual sum the branch's. None if x
            comes from the batch alone.
        between: the kinds of those operations: 'rectifier', 'residual sum', ...
        between_factor: E[x²] / E[y²] of the previous layer.
        gradient_between_factor: E[Δy²] of the previous layer / E[Δx²].
    """

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
    input_cosine: float | None
    gradient_second_moment: float
    gradient_channel_spread: float
    kernel_rms: float | None
    kernel_gradient_rms: float | None
    change_rate: float | None
    dead_fraction: float
    cosine: float | None
    gradient_to_decay: float | None
    kernel_factor: float | None = None
    expected_kernel_factor: float | None = None
    gradient_kernel_factor: float | None = None
    expected_gradient_kernel_factor: float | None = None
    previous: str | None = None
    between: tuple[str, ...] = ()
    between_factor: float | None = None
    gradient_between_factor: float | None = None


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The result of `measure`.

    Attributes:
        layers: the calls of affine layers, in execution order.
        kinds: the names of the classes of all modules that the model holds or calls.
        coverage: the share of the model's weights that the rows cover.
        loss: the loss; None where the cotangent was noise.
        examples: the number of examples in the batch, and how it was found.
    """

    layers: tuple[LayerStatistics, ...]
    kinds: tuple[str, ...]
    coverage: Coverage = dataclasses.field(default_factory=Coverage)
    loss: float | None = None
    examples: Examples | None = None

    @property
    def not_measured(self) -> tuple[str, ...]:
        """The weights that no row covers, then the parameters that the model does not use."""
        return (*(weight.parameter for weight in self.coverage.not_measured), *self.coverage.unused)

    @property
    def unseen(self) -> tuple[str, ...]:
        """The former name of `not_measured`."""
        return self.not_measured

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
        """Return whether layers normalise the signal, such as BatchNorm or LayerNorm."""
        return any(kind.endswith("Norm") and kind not in _OF_WEIGHTS for kind in self.kinds)

    @property
    def first_nonfinite(self) -> str | None:
        """The name of the first layer where a number is not finite; None if all are finite."""
        return next((row.name for row, *_ in self.nonfinite()), None)

    def nonfinite(self) -> Iterator[tuple[LayerStatistics, str, str]]:
        """Yield every number that is not finite: its layer, the direction and the field.

        They come in the order of computation: forward through inputs, kernels and outputs, then
        backward through the gradients.
        """
        for direction, rows, fields in (
            ("forward", self.layers, ("input_second_moment", "kernel_rms", "second_moment")),
            ("backward", self.layers[::-1], ("gradient_second_moment", "kernel_gradient_rms")),
        ):
            for row in rows:
                for field in fields:
                    value = getattr(row, field)
                    if value is not None and not math.isfinite(value):
                        yield row, direction, field
