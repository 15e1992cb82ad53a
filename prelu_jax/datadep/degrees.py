"""Degrees of arrays, and of stacks, whose entries along an axis have degrees of their own."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn
from numpy.typing import NDArray

from prelu_jax.tracing.values import shape_of

Rows = NDArray[np.float64]
# None: zeros, infinities and nans only, which no positive factor changes.
Degree = NDArray[np.float64] | None


class Stack(NamedTuple):
    """The degrees of an array whose entries along one axis have degrees of their own.

    Attributes:
        axis: the axis.
        entries: the degree of each, or a stack again.
    """

    axis: int
    entries: tuple[Any, ...]


Degrees = Degree | Stack


def of_units(units: Iterator[Rows], shape: Sequence[int], axes: Sequence[int]) -> Degrees:
    """Return a degree for every entry along some axes of an array of this shape."""
    if not axes:
        return next(units)
    axis, *rest = axes
    inner = [i - 1 for i in rest]  # one axis fewer in an entry
    return Stack(
        axis,
        tuple(
            of_units(units, [*shape[:axis], *shape[axis + 1 :]], inner) for _ in range(shape[axis])
        ),
    )


def flat(degrees: Iterable[Degrees]) -> Iterator[Degree]:
    """Yield all degrees in stacks."""
    for degree in degrees:
        if isinstance(degree, Stack):
            yield from flat(degree.entries)
        else:
            yield degree


def entry(degrees: Degrees, step: int) -> Degrees:
    """Return the degrees of one entry along the first axis."""
    if not isinstance(degrees, Stack):
        return degrees
    if degrees.axis == 0:
        of_step: Degrees = degrees.entries[step]
        return of_step
    return degrees._replace(axis=degrees.axis - 1)


def stacked(degrees: Degrees) -> Degrees:
    """Return the degrees of an array of such entries along a new first axis."""
    return degrees._replace(axis=degrees.axis + 1) if isinstance(degrees, Stack) else degrees


def after(equation: JaxprEqn, stack: Degrees) -> Degrees | None:
    """Return a stack after an equation, if this keeps its entries apart; else None."""
    name, params = equation.primitive.name, equation.params
    if not isinstance(stack, Stack) or len(equation.outvars) != 1:
        return None
    axis, parts = stack
    if name in ("convert_element_type", "copy", "sharding_constraint", "neg", "stop_gradient"):
        return stack if is_inexact(equation.outvars[0]) else None
    if name == "slice":
        steps = (params["strides"] or (1,) * len(params["start_indices"]))[axis]
        chosen = parts[params["start_indices"][axis] : params["limit_indices"][axis] : steps]
        return Stack(axis, chosen)
    if name == "rev":
        return Stack(axis, parts[::-1]) if axis in params["dimensions"] else stack
    if any(isinstance(part, Stack) for part in parts):
        return None  # whose axes would move too
    if name == "transpose":
        return Stack(list(params["permutation"]).index(axis), parts)
    if name in ("squeeze", "reshape"):
        before, after = (shape_of(atom) for atom in (equation.invars[0], equation.outvars[0]))
        if len(parts) == 1:
            only: Degrees = parts[0]  # an array of one entry has its degree
            return only
        at = int(np.prod(before[:axis]))
        sizes = np.cumprod([1, *after]).tolist()
        axes = [i for i, size in enumerate(sizes[:-1]) if size == at and after[i] == before[axis]]
        return Stack(axes[0], parts) if axes else None
    return None


def is_inexact(atom: Any) -> bool:
    """Return whether an operand or result is of floats or complex numbers."""
    return bool(jnp.issubdtype(getattr(atom.aval, "dtype", bool), jnp.inexact))
