"""The rows of a measurement: which call of which layer each is, and its statistics."""

import collections
import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from prelu_jax import tracing
from prelu_jax.signal import checks, reductions
from prelu_jax.signal.measurement import LayerCall, LayerStatistics
from prelu_jax.signal.reductions import SecondMoments
from prelu_jax.signal.split import ratio
from prelu_jax.signal.taps import Sinks
from prelu_jax.tracing import Program

KINDS = {
    "dense": "Dense",
    "conv": "Conv",
    "conv transpose": "ConvTranspose",
    "grouped dense": "GroupedDense",
    "look-up": "Embed",
}
_OF_LAYERS = ("kernel", "embedding", "weight", "w", "embeddings")  # names of weights in a layer


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a measurement before it is computed.

    Attributes:
        call: of the layer.
        number: of the operation.
        index: the step of each scan around it.
        weights: the paths of the parameters that the layer's kernel is made of.
        has_examples: whether the first axis of the output counts the batch's examples, two or more.
        input_has_examples: the same for the input; False for that of a look-up, which is no signal.
        has_counts: whether the moments for independent weights are known (`tracing.counts`).
        sources: the names of the layers that feed its input, in execution order.
        between: the kinds of operations between those layers and its input.
    """

    call: LayerCall
    number: int
    index: tuple[int, ...]
    weights: tuple[str, ...]
    has_examples: bool
    input_has_examples: bool
    has_counts: bool
    sources: tuple[str, ...]
    between: tuple[str, ...]

    def records(self, statistics: Mapping[str, Any]) -> list[Any]:
        """Return its records of `Probe.statistics`: forward, backward, change of the weights."""
        parts = ("forward", "backward", "changes")
        return [tracing.at(statistics[part][self.number], self.index) for part in parts]

    def read(
        self, statistics: Mapping[str, Any], weight_decay: float, ran: Collection[str]
    ) -> LayerStatistics:
        """Return the row in Python floats.

        Args:
            statistics: as `probe.Probe.statistics` returns them, on the host.
            weight_decay: the coefficient λ; 0 for none.
            ran: the names of the calls that ran: of a `cond`, those of one branch.
        """
        forward, backward, change = self.records(statistics)
        kernel = gradient = rate = None
        if self.call.kernel_shape is not None:
            kernel, gradient = (math.sqrt(_square(pair)) for pair in (forward["kernel"], change))
            rate = ratio(gradient, kernel)
        of_y, of_x = (_moments(forward[name]) for name in "yx")
        inputs: dict[str, Any] = {f"input_{name}": value for name, value in of_x.items()}
        inputs["input_zero_fraction"] = _fraction(_always_zero(forward["x"]), of_x)
        inputs["input_cosine"] = _cosine(forward["x"]) if self.input_has_examples else None
        if self.call.kind == KINDS["look-up"]:
            inputs = dict.fromkeys(inputs)
        return LayerStatistics(
            **vars(self.call),
            **of_y,
            **inputs,
            gradient_second_moment=_square(backward.output),
            gradient_channel_spread=_channel_spread(np.asarray(backward.output.means, np.float64)),
            kernel_rms=kernel,
            kernel_gradient_rms=gradient,
            change_rate=rate,
            dead_fraction=_fraction(forward["y"]["highest"] <= 0, of_y),
            cosine=_cosine(forward["y"]) if self.has_examples else None,
            gradient_to_decay=rate / weight_decay if rate is not None and weight_decay else None,
            previous=next((name for name in reversed(self.sources) if name in ran), None),
            between=self.between,
            **self._factors(forward, backward, of_x["second_moment"], of_y["second_moment"]),
        )

    def _factors(
        self, forward: Mapping[str, Any], backward: Sinks, x: float, y: float
    ) -> dict[str, Any]:
        """Return the factors of the layer itself, measured and for independent weights.

        Args:
            forward, backward: its records.
            x, y: the second moments of its input and output.
        """
        variance = _square(forward["kernel"])
        expected_y = variance * reductions.second_moment(
            forward["x"]["scale"], forward["for_unit_variance"]
        )
        of_y, of_x, of_x_for_unit_variance = map(
            _square, (backward.output, backward.operand, backward.for_unit_variance)
        )
        is_look_up = self.call.kind == KINDS["look-up"]
        has_gradient = bool(forward["has_operand_gradient"])
        return {
            "kernel_factor": None if is_look_up else ratio(y, x),
            "expected_kernel_factor": (
                ratio(expected_y + _square(forward["bias"]), x) if self.has_counts else None
            ),
            "gradient_kernel_factor": ratio(of_x, of_y) if has_gradient else None,
            "expected_gradient_kernel_factor": (
                ratio(variance * of_x_for_unit_variance, of_y)
                if has_gradient and self.has_counts
                else None
            ),
        }


def _square(moments: SecondMoments) -> float:
    """Return the second moment over all channels, in double precision on the host."""
    return reductions.second_moment(moments.scale, np.mean(moments.means, dtype=np.float64))


def _moments(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the moments of an array over all channels, from `reductions.of_channels`.

    In double precision: squares may not fit in float32.
    """
    scale = float(record["scale"])
    mean, var = (np.asarray(record[name], np.float64) for name in ("mean", "var"))
    squares = var + mean**2
    return {
        "mean": scale * float(mean.mean()),
        "var": scale * scale * float(var.mean() + mean.var()),
        "second_moment": scale * scale * float(squares.mean()),
        "minimum": float(record["lowest"].min()),
        "channel_spread": _channel_spread(squares),
    }


def _channel_spread(squares: np.ndarray) -> float:
    """Return the unbiased variance of the channels' second moments, divided by their squared mean.

    Channels of a layer with independent weights are independent given its input, so this divided
    by their number is the relative variance of the layer's second moment. 0 for zeros and for one
    channel.
    """
    mean = float(squares.mean())
    if squares.size == 1 or mean == 0:
        return 0.0 * mean  # nan stays nan
    return float(squares.var(ddof=1)) / mean**2


def _cosine(record: Mapping[str, Any]) -> float:
    """Return the mean cosine of the pairs of different examples that are not 0; nan without any."""
    n, resultant = float(record["vectors"]), float(record["resultant"])
    return (resultant - n) / (n * (n - 1)) if n > 1 else math.nan


def _always_zero(record: Mapping[str, Any]) -> Any:
    """Return which channels are 0 for every example and position."""
    return (record["lowest"] == 0) & (record["highest"] == 0)


def _fraction(channels: Any, moments: Mapping[str, float]) -> float:
    """Return the share of the channels that are true; nan where the array is not finite."""
    return float(channels.mean()) if math.isfinite(moments["second_moment"]) else math.nan


def of(program: Program, parameters: Mapping[str, Any], examples: int) -> tuple[Row, ...]:
    """Return the rows in execution order.

    Args:
        program: the model.
        parameters: all of them, by path.
        examples: the number of examples in the batch.
    """
    rows: list[Row] = []
    calls = collections.Counter[str]()
    for (operation, index), feed in zip(program.rows(), program.feeds(), strict=True):
        steps = "".join(f"[{step}]" for step in operation.of_own_scans(index))
        name = path(parameters, operation.parameters) + steps
        held = [parameters[name] for name in operation.parameters if name in parameters]
        shape = operation.shape
        call = LayerCall(
            path=name,
            call=calls[name],
            kind=KINDS[operation.kind],
            input_shape=operation.input_shape,
            input_channels=operation.input_channels,
            shape=shape,
            channels=math.prod(operation.channels),
            window=operation.window,
            positions=operation.positions,
            kernel_shape=operation.weight_shape if any(map(checks.is_float, held)) else None,
        )
        calls[name] += 1
        # Each example has to be a vector: the cosine of two numbers is their sign.
        y_has, x_has = (
            dimensions[:1] == (examples,) and math.prod(dimensions) > examples > 1
            for dimensions in (shape, operation.input_shape)
        )
        rows.append(
            Row(
                call,
                operation.number,
                index,
                operation.parameters,
                has_examples=y_has,
                input_has_examples=x_has and operation.kind != "look-up",
                has_counts=operation.counts is not None,
                sources=tuple(rows[i].call.name for i in feed.sources),
                between=feed.kinds,
            )
        )
    return tuple(rows)


def path(parameters: Mapping[str, Any], made_of: Sequence[str]) -> str:
    """Return a layer's path: that of the largest of its weights, without 'kernel' and the like."""
    main = largest(parameters, made_of)
    layer, _, name = main.rpartition("/")
    if name in _OF_LAYERS and (layer or name in ("kernel", "embedding")):
        return layer
    return main


def largest(parameters: Mapping[str, Any], made_of: Sequence[str]) -> str:
    """Return the path of the largest of some weights."""
    sizes = {name: math.prod(parameters[name].shape) for name in made_of if name in parameters}
    return max(sizes, key=lambda name: sizes[name]) if sizes else made_of[0]
