"""The branches of residual sums: sums of an array and another that was computed from it."""

from collections import Counter
from typing import Any

from jax.extend.core import Literal, Var

from prelu_jax.tracing import jaxprs
from prelu_jax.tracing.operations import Body
from prelu_jax.tracing.outputs import Graph

_KEPT = {  # equations that an output passes on its way to the sum
    *("convert_element_type", "copy", "name", "sharding_constraint", "optimization_barrier"),
    *("reshape", "transpose", "squeeze", "expand_dims", "mul", "div", "neg", "select_n"),
}
_RESIDUAL = ("add", "add_any")
_SUMS = (*_RESIDUAL, "sub")  # with a constant, a bias or the mean of a norm


def branches(body: Body) -> dict[int, bool]:
    """Return the operations in the branches of residual sums: whether each is the branch's last.

    A sum of two arrays is residual if one is computed from the other; that one is the branch.
    """
    return _branches(body)[0]


def _branches(body: Body) -> tuple[dict[int, bool], dict[int, set[int]]]:
    """Return the operations in branches, and those that reach each output without a sum."""
    graph = Graph(body.jaxpr)
    made = _made(body)
    reached: dict[Any, set[int]] = {}  # variable -> the operations that it is an output of
    found: dict[int, bool] = {}
    streams: dict[Any, set[Any]] = {}  # residual sum -> the arrays that branches were added to
    summands = (
        equation.invars for equation in graph.equations if equation.primitive.name in _RESIDUAL
    )
    addends = Counter(atom for atoms in summands for atom in atoms if isinstance(atom, Var))
    for place in sorted({*body.watched, *body.inner}):
        equation = graph.equations[place]
        for inner in body.inner.get(place, ()):
            within, out = _branches(inner)
            found |= within
            if equation.primitive.name in jaxprs.REMAT:
                for i, numbers in out.items():
                    reached.setdefault(equation.outvars[i], set()).update(numbers)
        if place in body.watched:
            watched = body.watched[place]
            reached.setdefault(watched.y, set()).add(watched.operation.number)
    for place, equation in enumerate(graph.equations):
        name, summed = equation.primitive.name, False
        numbers = {n for atom in equation.invars for n in _of(reached, atom)}
        if not numbers or place in body.watched:
            continue
        if name in _RESIDUAL:
            one, other = equation.invars
            for branch, stream in ((one, other), (other, one)):
                if not _of(reached, branch) or _times(addends, stream) != 1:
                    continue  # a constant, or an input that is added in every block
                bases = {stream, *streams.get(stream, ())}
                between = next(filter(None, (_between(graph, branch, b) for b in bases)), None)
                if between is not None:
                    summed = True
                    streams[equation.outvars[0]] = bases
                    inside = {n for equation in between for n in made.get(equation, ())}
                    found |= dict.fromkeys(inside - found.keys(), False)
                    found |= dict.fromkeys(reached[branch], True)
        if name in _KEPT or (name in _SUMS and not summed):
            for variable in equation.outvars:
                reached.setdefault(variable, set()).update(numbers)
    results = enumerate(body.jaxpr.outvars)
    return found, {i: reached[atom] for i, atom in results if _of(reached, atom)}


def _made(body: Body) -> dict[int, set[int]]:
    """Return the operations that are computed by each equation."""
    made = {
        place: {operation.number for inner in bodies for operation in inner.operations()}
        for place, bodies in body.inner.items()
    }
    for watched in body.watched.values():
        made.setdefault(watched.chain[0], set()).add(watched.operation.number)
    return made


def _times(addends: Counter[Any], atom: Any) -> int:
    return addends[atom] if isinstance(atom, Var) else 0


def _of(reached: dict[Any, set[int]], atom: Any) -> set[int]:
    return set() if isinstance(atom, Literal) else reached.get(atom, set())


def _between(graph: Graph, atom: Any, source: Any) -> set[int] | None:
    """Return the equations between two variables; None if one is not computed from the other."""
    if not isinstance(atom, Var) or not isinstance(source, Var):
        return None
    behind: set[int] = set()
    waiting = [atom]
    while waiting:
        place = graph.maker.get(waiting.pop())
        if place is not None and place not in behind:
            behind.add(place)
            operands = graph.equations[place].invars
            waiting += [operand for operand in operands if isinstance(operand, Var)]
    after, between = {source}, set()
    for place in sorted(behind):
        equation = graph.equations[place]
        if any(isinstance(operand, Var) and operand in after for operand in equation.invars):
            between.add(place)
            after.update(equation.outvars)
    return between if atom in after and between else None
