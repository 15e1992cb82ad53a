"""The rows of a measurement, one for each call of an affine layer, before it is computed."""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from prelu_jax.signal import checks, measurement
from prelu_jax.signal.measurement import Call
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
    """

    call: Call
    number: int
    index: tuple[int, ...]
    weights: tuple[str, ...]


def of(program: Program, parameters: Mapping[str, Any], examples: int) -> list[Row]:
    """Return the rows in execution order.

    Args:
        program: the model.
        parameters: all of them, by path.
        examples: the number of examples in the batch.
    """
    rows, calls = [], collections.Counter[str]()
    for operation, index in program.rows():
        own = [step for step, is_own in zip(index, operation.own, strict=True) if is_own]
        name = path(parameters, operation.parameters) + "".join(f"[{step}]" for step in own)
        held = [parameters[name] for name in operation.parameters if name in parameters]
        shape = operation.shape
        call = Call(
            path=name,
            kind=KINDS[operation.kind],
            number=calls[name],
            channels=math.prod(shape[axis] for axis in operation.channel_axes),
            looks_up=operation.kind == "look-up",
            input_shape=operation.input_shape,
            shape=shape,
            kernel_shape=operation.weight_shape if any(map(checks.is_float, held)) else None,
            has_examples=measurement.has_examples(shape, examples),
        )
        calls[name] += 1
        rows.append(Row(call, operation.number, index, operation.parameters))
    return rows


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
