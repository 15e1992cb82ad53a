"""Running a function with an observer at each of its affine operations."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prelu_jax.tracing import jaxprs
from prelu_jax.tracing.operations import Body, Operation, Watched


class Visit(NamedTuple):
    """An affine operation while it runs.

    Attributes:
        operation: its description.
        x: its input, before any padding.
        weight: W.
        bias: the summand b, in the shape of y; None without a bias.
        y: its output.
        operand: the input as the product takes it, after any padding.
        product: from an operand and weights to their product alone. Weights may have another number
            of channels.
        after: from another product, and whether the bias is left out, to the output.
        given: the entry for it in the argument of `run`.
    """

    operation: Operation
    x: jax.Array
    weight: jax.Array
    bias: jax.Array | None
    y: jax.Array
    operand: jax.Array
    product: Callable[[jax.Array, jax.Array], jax.Array]
    after: Callable[..., jax.Array]
    given: Any


Observe = Callable[[Visit], tuple[jax.Array, Any]]  # -> the output that the function uses, a record
ByNumber = dict[int, Any]  # operation's number -> a pytree


def run(
    body: Body,
    arguments: Sequence[Any],
    observe: Observe,
    given: Mapping[int, Any],
    every_branch: bool = False,
) -> tuple[list[Any], ByNumber]:
    """Run a function, with the observer's output in place of every operation's.

    Args:
        body: of `reading.read`.
        arguments: one for each input of its jaxpr.
        observe: called where an operation is, once for all steps of a scan.
        given: by operation's number, a pytree of arrays for its `Visit`. Inside scans the arrays
            have an axis for each of them before their own, outermost first.
        every_branch: compute all branches of a `cond`, for the records of them all.

    Returns:
        The outputs, and the records of the observer by operation's number: a pytree of arrays each,
        with such axes too. The record of an operation in a branch that did not run is zeros.
    """
    return _Run(observe, every_branch).body(body, list(arguments), dict(given))


class _Run(NamedTuple):
    """One run of a function and of the calls in it."""

    observe: Observe
    every_branch: bool

    def body(self, body: Body, arguments: list[Any], given: ByNumber) -> tuple[list[Any], ByNumber]:
        values = jaxprs.Values(body.jaxpr, body.consts, arguments)
        records: ByNumber = {}
        for i, equation in enumerate(body.jaxpr.eqns):
            operands = values.of(equation.invars)
            if i in body.inner:
                results, inside = self._call(body.inner[i], equation, operands, given)
                records |= inside
            else:
                results = jaxprs.bind(equation, operands)
            values.update(equation.outvars, results)
            if i in body.watched:
                watched = body.watched[i]
                number = watched.operation.number
                values[watched.y], records[number] = self.observe(
                    _visit(body, watched, values, given.get(number))
                )
        return values.of(body.jaxpr.outvars), records

    def _call(
        self, bodies: Sequence[Body], equation: Any, operands: list[Any], given: ByNumber
    ) -> tuple[list[Any], ByNumber]:
        numbers = {operation.number for body in bodies for operation in body.operations()}
        extra = {number: value for number, value in given.items() if number in numbers}

        def step(body: Body) -> jaxprs.Step:
            return lambda operands, extra: self.body(body, operands, extra)

        name = equation.primitive.name
        if name == "cond":
            branches = _every_branch if self.every_branch else _one_branch
            return branches(operands, [step(body) for body in bodies], extra)
        emit = jaxprs.scan if name == "scan" else jaxprs.remat
        return emit(equation, operands, step(bodies[0]), extra)


def _visit(body: Body, watched: Watched, values: jaxprs.Values, given: Any) -> Visit:
    first = body.jaxpr.eqns[watched.chain[0]]
    layout = watched.operation.layout
    data = first.invars[1 - layout.operand]

    def after(product: jax.Array, without_bias: bool = False) -> Any:
        replaced: dict[Any, Any] = {first.outvars[0]: product}
        if without_bias and watched.bias is not None:
            replaced[watched.bias] = jnp.zeros_like(values[watched.bias])
        for place in watched.chain[1:]:
            equation = body.jaxpr.eqns[place]
            operands = [
                replaced[atom] if not hasattr(atom, "val") and atom in replaced else values[atom]
                for atom in equation.invars
            ]
            replaced |= zip(equation.outvars, jaxprs.bind(equation, operands), strict=True)
        return replaced[watched.y]

    def product(operand: jax.Array, weight: jax.Array) -> Any:
        operands = values.of(first.invars)
        operands[layout.operand], operands[1 - layout.operand] = weight, operand
        return jaxprs.bind(first, operands)[0]

    bias = None if watched.bias is None else values[watched.bias]
    return Visit(
        watched.operation,
        values[watched.x],
        values[watched.weight],
        bias,
        values[watched.y],
        values[data],
        product,
        after,
        given,
    )


def _every_branch(
    operands: list[Any], steps: Sequence[jaxprs.Step], extra: ByNumber
) -> tuple[list[Any], ByNumber]:
    """Run all branches and choose among their results."""
    cases = [step(operands[1:], extra) for step in steps]
    pairs = zip(*(results for results, _ in cases), strict=True)
    results = [jax.lax.select_n(operands[0], *pair) for pair in pairs]
    return results, {number: record for _, records in cases for number, record in records.items()}


def _one_branch(
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
