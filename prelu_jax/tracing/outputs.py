"""From a product to the output of its layer, and back to the layer's input."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Var
from numpy.typing import NDArray

from prelu_jax.tracing.operations import Axes
from prelu_jax.tracing.values import shape_of


class Graph:
    """A jaxpr with the equations that make and use each of its variables."""

    def __init__(self, jaxpr: Jaxpr) -> None:
        self.equations = jaxpr.eqns
        self.results = {atom for atom in jaxpr.outvars if isinstance(atom, Var)}
        self.maker: dict[Any, int] = {}
        self.users: dict[Any, list[int]] = {}
        for i, equation in enumerate(jaxpr.eqns):
            self.maker |= dict.fromkeys(equation.outvars, i)
            for atom in {a for a in equation.invars if isinstance(a, Var)}:
                self.users.setdefault(atom, []).append(i)


@dataclasses.dataclass(frozen=True)
class Output:
    """The output of a layer.

    Attributes:
        chain: the equations from the product to it.
        channels: its axes that count channels.
        numbers: its channels' numbers among those of the product, ``[size of each such axis]`` from
            left to right.
        bias: the variable that is added to it last; None without a bias.
    """

    chain: tuple[int, ...]
    channels: Axes
    numbers: NDArray[np.int64]
    bias: Any = None

    def after(self, place: int, equation: JaxprEqn) -> "Output | None":
        """Return the output after one more equation; None if that mixes or changes channels."""
        moved = _moved(equation, self.channels)
        if moved is None:
            return None
        if equation.primitive.name == "transpose":
            before = sorted(self.channels)
            permutation = equation.params["permutation"]
            order = [before.index(permutation[axis]) for axis in sorted(moved)]
            numbers = self.numbers.transpose(order)
        else:
            shape = shape_of(equation.outvars[0])
            numbers = self.numbers.reshape([shape[axis] for axis in sorted(moved)])
        return Output((*self.chain, place), moved, numbers)


def to_output(
    graph: Graph, product: int, channels: Axes, is_bias: Callable[[Any, Axes], bool]
) -> Output:
    """Follow a product to the sum that adds its bias.

    Args:
        graph: of the jaxpr.
        product: the place of its equation.
        channels: the axes of its result that count channels.
        is_bias: whether a variable, added where these axes count channels, is a bias.

    Returns:
        The sum, or without a bias the transposition that follows the product, if one does.
    """
    shape = shape_of(graph.equations[product].outvars[0])
    sizes = [shape[axis] for axis in sorted(channels)]
    here = best = Output((product,), channels, np.arange(math.prod(sizes)).reshape(sizes))
    while True:
        y = graph.equations[here.chain[-1]].outvars[0]
        users = graph.users.get(y, [])
        if len(users) != 1 or y in graph.results:
            return best
        equation = graph.equations[users[0]]
        if equation.primitive.name in ("add", "add_any"):
            added = [atom for atom in equation.invars if atom is not y]
            if len(added) == 1 and is_bias(added[0], here.channels):
                chain = (*here.chain, users[0])
                return dataclasses.replace(here, chain=chain, bias=added[0])
            return best
        after = here.after(users[0], equation)
        if after is None:
            return best
        here = after
        if equation.primitive.name == "transpose":
            best = here


def before_padding(graph: Graph, atom: Any, is_constant: Callable[[Any], bool]) -> Any:
    """Return the array that was padded, with a number or with itself, or cut into patches.

    Args:
        graph: of the jaxpr.
        atom: an operand of a product.
        is_constant: whether a variable depends on neither parameters nor the batch.
    """
    while atom in graph.maker:
        equation = graph.equations[graph.maker[atom]]
        name = equation.primitive.name
        if name == "pad" or (name == "conv_general_dilated" and is_constant(equation.invars[1])):
            atom = equation.invars[0]
        elif name == "concatenate":
            parts = {_unsliced(graph, part) for part in equation.invars}
            if len(parts) > 1 or not parts & {*equation.invars}:
                return atom
            (atom,) = parts
        else:
            return atom
    return atom


def _unsliced(graph: Graph, atom: Any) -> Any:
    while atom in graph.maker:
        equation = graph.equations[graph.maker[atom]]
        if equation.primitive.name != "slice":
            return atom
        atom = equation.invars[0]
    return atom


def _moved(equation: JaxprEqn, axes: Axes) -> Axes | None:
    """Return where axes are after an equation that moves no number to another channel."""
    name = equation.primitive.name
    if name in ("convert_element_type", "copy", "name", "sharding_constraint"):
        return axes
    if name == "transpose":
        return through_transpose(axes, equation.params["permutation"])
    if name in ("reshape", "squeeze", "expand_dims"):
        return through_reshape(axes, shape_of(equation.invars[0]), shape_of(equation.outvars[0]))
    return None


def through_transpose(axes: Axes, permutation: Sequence[int]) -> Axes:
    """Return where axes are after a transposition."""
    return tuple(permutation.index(axis) for axis in axes)


def through_reshape(axes: Axes, before: Sequence[int], after: Sequence[int]) -> Axes | None:
    """Return where axes are after a reshape; None if they are merged with others."""
    found: list[int] = []
    for old, new in _stretches(before, after):
        if not set(old) & set(axes):
            continue
        if not all(axis in axes or before[axis] == 1 for axis in old):
            return None
        found += [axis for axis in new if after[axis] > 1] or list(new[:1])
    return tuple(found)


def _stretches(before: Sequence[int], after: Sequence[int]) -> list[tuple[Axes, Axes]]:
    """Pair the shortest stretches of axes, from the left, that hold as many numbers."""
    pairs: list[tuple[Axes, Axes]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        begins, starts = i, j
        old = new = 1
        if i < len(before):
            old, i = before[i], i + 1
        if j < len(after):
            new, j = after[j], j + 1
        while old != new:
            if old < new:
                old, i = old * before[i], i + 1
            else:
                new, j = new * after[j], j + 1
        pairs.append((tuple(range(begins, i)), tuple(range(starts, j))))
    return pairs
