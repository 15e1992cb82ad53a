"""The origins of the arrays in a jaxpr: parameters, the signal, outer products of the two."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from jax.extend.core import JaxprEqn

Bits = int  # a set of parameters: bit i for parameter i


class Value(NamedTuple):
    """The origin of an array in a jaxpr.

    Attributes:
        made_of: every parameter that it depends on.
        weights: the parameters whose entries a product with it would multiply: of an array made of
            parameters alone all of them, of an outer product with the signal its factors.
        signal: whether it depends on the batch.
        flat: the axes along which a broadcast has made it constant.
        is_view: whether it is an arrangement of parameters, their entries unchanged.
        scans: the scans whose steps have parameters of their own in it: bit i for the i-th scan
            around it, from the outermost.
    """

    made_of: Bits = 0
    weights: Bits = 0
    signal: bool = False
    flat: frozenset[int] = frozenset()
    is_view: bool = False
    scans: Bits = 0

    @property
    def is_plain_signal(self) -> bool:
        return self.signal and not self.weights and not self.flat


def aval(atom: Any) -> Any:
    """Return the shape and type of an operand or result."""
    return atom.aval


def shape_of(atom: Any) -> tuple[int, ...]:
    """Return the shape of an operand or result."""
    return tuple(aval(atom).shape)


def union(sets: Iterable[Bits]) -> Bits:
    """Return the union of sets of parameters."""
    members = 0
    for bits in sets:
        members |= bits
    return members


def members(bits: Bits) -> Iterator[int]:
    """Yield the parameters of a set."""
    return (i for i in range(bits.bit_length()) if bits >> i & 1)


def merged(values: Iterable[Value]) -> Value:
    """Return the origin of an array that is one of these, or an arrangement of them."""
    values = list(values)
    made_of = union(value.made_of for value in values)
    flat = frozenset.intersection(*(value.flat for value in values)) if values else frozenset()
    scans = union(value.scans for value in values)
    if any(value.is_plain_signal for value in values):
        return Value(made_of, signal=True, scans=scans)
    signal = any(value.signal for value in values)
    weights = union(value.weights for value in values if value.signal or not signal)
    return Value(made_of, weights, signal, flat, scans=scans)


def joined(equation: JaxprEqn, operands: list[Value]) -> Value:
    """Return the result of an elementwise operation, a reduction or an arrangement."""
    shape = getattr(aval(equation.outvars[0]), "shape", ())
    shapes = [getattr(atom.aval, "shape", ()) for atom in equation.invars[-len(operands) :]]
    flats = [_stretched(before, shape) for before in shapes]
    used = [
        value._replace(flat=frozenset() if flat is None or None in flats else value.flat | flat)
        for value, flat, before in zip(operands, flats, shapes, strict=True)
        if before or value.made_of or value.signal  # no number such as 2.0
    ]
    if equation.primitive.name in ("mul", "div"):
        return multiplied(used)
    return merged(used)


def _stretched(before: Sequence[int], after: Sequence[int]) -> frozenset[int] | None:
    """Return the axes along which an elementwise operation broadcasts; None if it is none."""
    before = before or (1,) * len(after)
    if len(before) != len(after) or any(
        a not in (1, b) for a, b in zip(before, after, strict=True)
    ):
        return None
    return frozenset(i for i, size in enumerate(before) if size != after[i])


def multiplied(values: list[Value]) -> Value:
    """Return a product: an outer one where a factor was broadcast along the other's axes."""
    product = merged(values)
    if any(v.is_plain_signal for v in values) or product.weights or not product.signal:
        return product
    flat = frozenset.intersection(*(value.flat for value in values if value.signal))
    outer = union(value.weights for value in values if not value.signal and flat - value.flat)
    return product._replace(weights=outer)


def adds_axis(equation: JaxprEqn, other_is_rhs: bool, batched: Sequence[int]) -> bool:
    """Return whether the other operand of a product without contraction adds an axis."""
    shape = aval(equation.invars[int(other_is_rhs)]).shape
    return bool(math.prod(size for i, size in enumerate(shape) if i not in batched) > 1)


def broadcast(equation: JaxprEqn, value: Value) -> Value:
    """Return the origin of an array that was broadcast."""
    before, after = aval(equation.invars[0]).shape, aval(equation.outvars[0]).shape
    kept = equation.params["broadcast_dimensions"]
    source = {axis: i for i, axis in enumerate(kept)}
    flat = {
        axis
        for axis, size in enumerate(after)
        if size > 1
        and (axis not in source or before[source[axis]] == 1 or source[axis] in value.flat)
    }
    return value._replace(flat=frozenset(flat), is_view=value.is_view and not flat)
