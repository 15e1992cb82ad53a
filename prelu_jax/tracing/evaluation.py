"""Running a function with an observer at each of its affine operations."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prelu_jax.tracing import jaxprs
from prelu_jax.tracing.bodies import Body, Watched
from prelu_jax.tracing.operations import Operation


class Visit(NamedTuple):
    """An affine operation while it runs.

    Attributes:
        operation: its description.
        x: its input, before any padding.
        weight: W.
        bias: the summand b, in the shape of y; None without a bias.
        y: its output.
        again: from other weights to the output.
        given: the entry for it in the argument of `run`.
    """

    operation: Operation
    x: jax.Array
    weight: jax.Array
    bias: jax.Array | None
    y: jax.Array
    again: Callable[[jax.Array], jax.Array]
    given: Any


Observe = Callable[[Visit], tuple[jax.Array, Any]]  # -> the output that the function uses, a record
ByNumber = dict[int, Any]  # operation's number -> a pytree


def run(
    body: Body, arguments: Sequence[Any], observe: Observe, given: Mapping[int, Any]
) -> tuple[list[Any], ByNumber]:
    """Run a function, with the observer's output in place of every operation's.

    Args:
        body: of `reading.read`.
        arguments: one for each input of its jaxpr.
        observe: called where an operation is, once for all steps of a scan.
        given: by operation's number, a pytree of arrays for its `Visit`. Inside scans the arrays
            have an axis for each of them before their own, outermost first.

    Returns:
        The outputs, and the records of the observer by operation's number: a pytree of arrays each,
        with such axes too. The record of an operation in a branch that did not run is zeros.
    """
    return _run(body, list(arguments), observe, dict(given))


def _run(
    body: Body, arguments: list[Any], observe: Observe, given: ByNumber
) -> tuple[list[Any], ByNumber]:
    values = jaxprs.Values(body.jaxpr, body.consts, arguments)
    records: ByNumber = {}
    for i, equation in enumerate(body.jaxpr.eqns):
        operands = values.of(equation.invars)
        if i in body.inner:
            results, inside = _call(body.inner[i], equation, operands, observe, given)
            records |= inside
        else:
            results = jaxprs.bind(equation, operands)
        values.update(equation.outvars, results)
        if i in body.watched:
            watched = body.watched[i]
            number = watched.operation.number
            values[watched.y], records[number] = observe(
                _visit(body, watched, values, given.get(number))
            )
    return values.of(body.jaxpr.outvars), records


def _visit(body: Body, watched: Watched, values: jaxprs.Values, given: Any) -> Visit:
    def again(weight: jax.Array) -> jax.Array:
        replaced = {watched.weight: weight}
        for place in watched.chain:
            equation = body.jaxpr.eqns[place]
            operands = [
                replaced[atom] if not hasattr(atom, "val") and atom in replaced else values[atom]
                for atom in equation.invars
            ]
            replaced |= zip(equation.outvars, jaxprs.bind(equation, operands), strict=True)
        return replaced[watched.y]

    bias = None if watched.bias is None else values[watched.bias]
    return Visit(
        watched.operation,
        values[watched.x],
        values[watched.weight],
        bias,
        values[watched.y],
        again,
        given,
    )


def _call(
    bodies: Sequence[Body], equation: Any, operands: list[Any], observe: Observe, given: ByNumber
) -> tuple[list[Any], ByNumber]:
    numbers = {operation.number for body in bodies for operation in body.operations()}
    extra = {number: value for number, value in given.items() if number in numbers}

    def step(body: Body) -> jaxprs.Step:
        return lambda operands, extra: _run(body, operands, observe, extra)

    name = equation.primitive.name
    if name == "cond":
        return _branches(operands, [step(body) for body in bodies], extra)
    emit = jaxprs.scan if name == "scan" else jaxprs.remat
    return emit(equation, operands, step(bodies[0]), extra)


def _branches(
    operands: list[Any], steps: Sequence[jaxprs.Step], extra: ByNumber
) -> tuple[list[Any], ByNumber]:
    """Run the branch that is chosen; the records of the others are zeros."""
    shapes = [jax.eval_shape(step, operands[1:], extra)[1] for step in steps]
    nothing = {
        number: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), record)
        for records in shapes
        for number, record in records.items()
    }

    def branch(step: jaxprs.Step) -> Callable[[list[Any]], Any]:
        def run(operands: list[Any]) -> tuple[list[Any], ByNumber]:
            results, records = step(operands, extra)
            return results, {**nothing, **records}

        return run

    return jaxprs.cond(operands, [branch(step) for step in steps])
