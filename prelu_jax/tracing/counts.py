"""Numbers of readers in a product, for E[(W x)²] with independent zero-mean weights.

With weights of variance v, E[Σ y²] = v Σ_i c_i x_i², where c_i outputs read input i. Backward,
E[Σ Δx²] = v Σ_o r_o Δy_o², where output o reads r_o inputs. These counts include the effects of
borders, strides, dilation and groups.
"""

import math
from typing import NamedTuple

import numpy as np
from jax.extend.core import JaxprEqn
from numpy.typing import NDArray

from prelu_jax.tracing.values import shape_of

AlongAxis = tuple[int, tuple[int, ...]]  # an axis, and a factor for each place along it
ByAxis = tuple[AlongAxis, ...]


class Counts(NamedTuple):
    """Counts of a product: a number, times a factor for each axis along which they vary.

    Attributes:
        readers: the number of outputs that read an entry of the operand.
        by_operand_axis: its factors.
        inputs: the number of entries of the operand that an output reads.
        by_output_axis: its factors.
        output_channels: the axis of the output that counts channels, where it has factors.
    """

    readers: int
    by_operand_axis: ByAxis
    inputs: int
    by_output_axis: ByAxis
    output_channels: int = -1


def of(equation: JaxprEqn, operand: int) -> Counts | None:
    """Return the counts of a product; None where they are not known.

    Unknown are those of a look-up, which sums over nothing, of a ragged product, whose groups
    depend on the data, and of a convolution with groups of examples.

    Args:
        equation: of a jaxpr.
        operand: which of its operands holds the weights.
    """
    name = equation.primitive.name
    if name == "dot_general":
        contracted, batched = equation.params["dimension_numbers"]
        shape = shape_of(equation.invars[operand])
        inputs = math.prod(shape[axis] for axis in contracted[operand])
        shared = math.prod(shape[axis] for axis in batched[operand])
        return Counts(math.prod(shape) // max(inputs * shared, 1), (), inputs, ())
    if name == "conv_general_dilated" and operand == 1:
        return _conv(equation)
    return None


def _conv(equation: JaxprEqn) -> Counts | None:
    params = equation.params
    if params["batch_group_count"] != 1:
        return None
    numbers = params["dimension_numbers"]
    data, kernel = (shape_of(atom) for atom in equation.invars[:2])
    output = shape_of(equation.outvars[0])
    features, inputs, *window = numbers.rhs_spec
    readers, read = kernel[features] // params["feature_group_count"], kernel[inputs]
    of_data: list[AlongAxis] = []
    of_output: list[AlongAxis] = []
    for i, axis in enumerate(window):
        at, to = numbers.lhs_spec[2 + i], numbers.out_spec[2 + i]
        by_data, by_output = _along(
            (data[at], params["lhs_dilation"][i], params["padding"][i][0]),
            (kernel[axis], params["rhs_dilation"][i]),
            (output[to], params["window_strides"][i]),
        )
        readers *= _constant(by_data, at, of_data)
        read *= _constant(by_output, to, of_output)
    return Counts(readers, tuple(of_data), read, tuple(of_output), numbers.out_spec[1])


def _along(
    data: tuple[int, int, int], window: tuple[int, int], output: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return along one axis the number of readers of each input, and of inputs to each output.

    Args:
        data: the size, the dilation, and the padding before it.
        window: the size and the dilation.
        output: the size and the stride.
    """
    size, spacing, before = data
    readers, inputs = np.zeros(size, np.int64), np.zeros(output[0], np.int64)
    for tap in range(window[0]):
        place = np.arange(output[0]) * output[1] + tap * window[1] - before
        met = (place >= 0) & (place % spacing == 0) & (place < size * spacing)
        inputs += met
        np.add.at(readers, place[met] // spacing, 1)
    return readers, inputs


def _constant(counts: NDArray[np.int64], axis: int, varying: list[AlongAxis]) -> int:
    """Return the count where it is the same everywhere; else 1, and append it to ``varying``."""
    if counts.size and (counts == counts[0]).all():
        return int(counts[0])
    varying.append((axis, tuple(counts.tolist())))
    return 1
