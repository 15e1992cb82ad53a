"""Affine operations, their channels and fans, and the jaxprs that hold them."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Var

from prelu_jax.tracing.counts import Counts
from prelu_jax.tracing.values import shape_of

Axes = tuple[int, ...]

PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot_general", "ragged_dot")
LOOK_UP = "gather"


@dataclasses.dataclass(frozen=True)
class Layout:
    """The axes of an affine operation y = W x.

    Attributes:
        kind: 'dense', 'conv', 'conv transpose', 'grouped dense' (a product for each entry of an
            axis, as of experts) or 'look-up', for people.
        operand: which operand of the equation holds the weights.
        channel_axes: the axes of y that count channels: those that the weights bring.
        weight_axes: the same axes of W, in the same order.
        input_axes: the axes of W that count input features, which one output sums over. The other
            axes are those of a convolution's window.
        feature_axes: the axes of the data that count input features: those that the product sums
            over or pairs with stacked axes of W, without a convolution's positions.
        operand_axes: the axes of the data that the product neither sums over nor pairs with axes of
            W: of examples and positions.
        stacked_axes: those of the channel axes of W that number parts, each with inputs of its own.
        fan_in: the number of entries of W that one output sums over.
        fan_out: the number of outputs that one input reaches, without strides.
        groups: the number of parts, each with channels and inputs of its own.
    """

    kind: str
    operand: int
    channel_axes: Axes
    weight_axes: Axes
    input_axes: Axes
    stacked_axes: Axes
    feature_axes: Axes
    operand_axes: Axes
    fan_in: int
    fan_out: int
    groups: int = 1


@dataclasses.dataclass(frozen=True)
class Operation:
    """One affine operation y = W x + b of a function.

    Attributes:
        number: its place in the order of execution.
        kind: its name for people: 'dense', 'conv', 'look-up' and so on (`Layout`).
        parameters: the names of the parameters that W is made of.
        is_view: whether W is an arrangement of its parameters: their entries, none of them
            changed. Else W is computed, as by weight normalisation.
        bias: the name of the parameter that is added to every channel; None if there is none.
        layout: the axes of W and of W x.
        channel_axes: the axes of y that count channels, from the end.
        channel_order: the number of every channel of y among those of the product W x, both counted
            along their axes from left to right; None where they are in one order.
        weight_shape: the shape of W.
        input_shape: the shape of x.
        input_channel_axes: the axes of x that count channels, from the end; none for a look-up.
        shape: the shape of y.
        dtype: the name of the type of y.
        steps: the lengths of the scans around it, outermost first.
        own: of each scan, whether every step has weights of its own. Else they are shared.
        counts: how many outputs read an input, and inputs an output reads; None if not known.
        reads_parameters: whether x depends on parameters, not on the batch alone.
    """

    number: int
    kind: str
    parameters: tuple[str, ...]
    is_view: bool
    bias: str | None
    layout: Layout
    channel_axes: Axes
    channel_order: tuple[int, ...] | None
    weight_shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    input_channel_axes: Axes
    shape: tuple[int, ...]
    dtype: str
    steps: tuple[int, ...] = ()
    own: tuple[bool, ...] = ()
    counts: Counts | None = None
    reads_parameters: bool = True

    @property
    def fans(self) -> tuple[int, int]:
        """Fan-in and fan-out of W."""
        return self.layout.fan_in, self.layout.fan_out

    @property
    def channels(self) -> tuple[int, ...]:
        """The shape of the channels of y, from left to right."""
        return tuple(self.shape[axis] for axis in sorted(self.channel_axes))

    @property
    def input_channels(self) -> int:
        """The number of channels of x."""
        return math.prod(self.input_shape[axis] for axis in self.input_channel_axes)

    @property
    def window(self) -> tuple[int, ...]:
        """The sizes of a convolution's window; () for other operations."""
        rank = len(self.weight_shape)
        known = {*self.layout.weight_axes, *self.layout.input_axes, *self.layout.stacked_axes}
        return tuple(self.weight_shape[axis] for axis in range(rank) if axis not in known)

    @property
    def positions(self) -> tuple[int, ...]:
        """The sizes of the axes of y other than the first and those that count channels."""
        rank = len(self.shape)
        return tuple(
            self.shape[axis] for axis in range(1, rank) if axis - rank not in self.channel_axes
        )

    def of_own_scans(self, values: Sequence[int]) -> tuple[int, ...]:
        """Return the entries, one per scan, of the scans whose steps have weights of their own."""
        return tuple(value for value, own in zip(values, self.own, strict=True) if own)


@dataclasses.dataclass(frozen=True, eq=False)
class Watched:
    """The place of an operation in a jaxpr.

    Attributes:
        operation: its description.
        chain: the equations from the product to y, by their place in the jaxpr.
        x: the input, before any padding.
        weight: the weights.
        bias: the summand, in the shape of y; None without a bias.
        y: the output, bias included.
    """

    operation: Operation
    chain: tuple[int, ...]
    x: Any
    weight: Any
    bias: Any
    y: Var


@dataclasses.dataclass(frozen=True, eq=False)
class Body:
    """A jaxpr and the operations in it.

    Attributes:
        jaxpr: the computation.
        consts: the arrays that it closes over.
        watched: by the place of the equation that computes y, the operations.
        inner: by the place of the equation, the bodies of a call that holds operations.
    """

    jaxpr: Jaxpr
    consts: tuple[Any, ...]
    watched: Mapping[int, Watched]
    inner: Mapping[int, tuple["Body", ...]]

    @property
    def is_empty(self) -> bool:
        """Return whether there is no operation."""
        return not self.watched and not self.inner

    def operations(self) -> Iterator[Operation]:
        """Yield the operations in the order of execution, those of a scan once."""
        for place in sorted({*self.watched, *self.inner}):
            for body in self.inner.get(place, ()):
                yield from body.operations()
            if place in self.watched:
                yield self.watched[place].operation


def layout(equation: JaxprEqn, operand: int) -> Layout | None:
    """Return the axes of a product, a convolution or a look-up; None if it is none of these.

    Args:
        equation: of a jaxpr.
        operand: which of its operands holds the weights.
    """
    name = equation.primitive.name
    if name == "dot_general":
        return _dot(equation, operand)
    if name == "conv_general_dilated" and operand == 1:
        return _conv(equation)
    if name in ("ragged_dot_general", "ragged_dot") and operand == 1:
        return _ragged(equation)
    if name == LOOK_UP and operand == 0:
        return _look_up(equation)
    return None


def _size(shape: Sequence[int], axes: Iterable[int]) -> int:
    return math.prod(shape[axis] for axis in axes)


def _dot(equation: JaxprEqn, operand: int) -> Layout:
    contracted, batched = equation.params["dimension_numbers"]
    shape = shape_of(equation.invars[operand])
    taken = {*contracted[operand], *batched[operand]}
    free = tuple(axis for axis in range(len(shape)) if axis not in taken)
    shared = len(batched[0])
    other = 1 - operand
    paired = {*contracted[other], *batched[other]}
    at = shared  # y: the batched axes, the free ones of the left, those of the right
    if operand == 1:
        at += len(shape_of(equation.invars[0])) - len(contracted[0]) - shared
    return Layout(
        "grouped dense" if shared else "dense",
        operand,
        (*range(shared), *range(at, at + len(free))),
        (*batched[operand], *free),
        tuple(contracted[operand]),
        tuple(batched[operand]),
        (*batched[other], *contracted[other]),
        tuple(i for i in range(len(shape_of(equation.invars[other]))) if i not in paired),
        fan_in=_size(shape, contracted[operand]),
        fan_out=_size(shape, free),
        groups=_size(shape, batched[operand]),
    )


def _conv(equation: JaxprEqn) -> Layout:
    numbers, groups = equation.params["dimension_numbers"], equation.params["feature_group_count"]
    transposed = any(step > 1 for step in equation.params["lhs_dilation"])
    shape = shape_of(equation.invars[1])
    features, inputs, *window = numbers.rhs_spec
    return Layout(
        "conv transpose" if transposed else "conv",
        1,
        (numbers.out_spec[1],),
        (features,),
        (inputs,),
        (),
        (numbers.lhs_spec[1],),
        (numbers.lhs_spec[0],),
        fan_in=_size(shape, (inputs, *window)),
        fan_out=_size(shape, (features, *window)) // groups,
        groups=groups,
    )


def _ragged(equation: JaxprEqn) -> Layout:
    numbers = equation.params["ragged_dot_dimension_numbers"]
    contracted, _ = numbers.dot_dimension_numbers
    shape = shape_of(equation.invars[1])
    group = tuple(numbers.rhs_group_dimensions)
    taken = {*contracted[1], *group}
    free = tuple(axis for axis in range(len(shape)) if axis not in taken)
    rank = len(shape_of(equation.outvars[0]))
    return Layout(
        "grouped dense",
        1,
        tuple(range(rank - len(free), rank)),
        free,
        tuple(contracted[1]),
        group,
        tuple(contracted[0]),
        (),
        fan_in=_size(shape, contracted[1]),
        fan_out=_size(shape, free),
        groups=_size(shape, group),
    )


def _look_up(equation: JaxprEqn) -> Layout:
    numbers = equation.params["dimension_numbers"]
    shape = shape_of(equation.invars[0])
    rows = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = tuple(axis for axis in range(len(shape)) if axis not in rows)
    return Layout(
        "look-up",
        0,
        tuple(numbers.offset_dims),
        kept,
        tuple(sorted(rows)),
        (),
        (),
        (),
        fan_in=_size(shape, rows),
        fan_out=_size(shape, kept),
    )
