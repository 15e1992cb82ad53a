"""Jaxprs: the bodies of the calls in them, and running a call again with another body.

JAX 0.10 and 0.11 differ in how they write a jaxpr down; the differences are in this file alone.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.interpreters import partial_eval

Step = Callable[[list[Any], Any], tuple[list[Any], Any]]  # operands, extra -> results, records

# Calls that compute what their body does, and no more: they are run in place.
INLINED = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}
# Calls that have a rule of their own for the derivative.
CUSTOM = {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}
REMAT = ("remat2", "remat", "checkpoint")


def opened(held: ClosedJaxpr | Jaxpr) -> tuple[Jaxpr, list[Any]]:
    """Return a jaxpr, and the arrays that it closes over."""
    return (held.jaxpr, list(held.consts)) if isinstance(held, ClosedJaxpr) else (held, [])


def bodies(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """Yield every jaxpr that an equation holds."""
    for value in equation.params.values():
        for held in value if isinstance(value, tuple | list) else (value,):
            if isinstance(held, ClosedJaxpr | Jaxpr):
                yield opened(held)[0]


def primitives(jaxpr: Jaxpr) -> Iterator[str]:
    """Yield the names of all primitives in a jaxpr, inside its calls too."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for body in bodies(equation):
            yield from primitives(body)


def carried(params: Mapping[str, Any]) -> tuple[int, int]:
    """Return which of a scan's operands are carried: from the first to before the last."""
    if "num_consts" in params:  # JAX before 0.11
        return params["num_consts"], params["num_consts"] + params["num_carry"]
    consts, carry, _ = (len(list(part)) for part in params["ft_in"].unpack())
    return consts, consts + carry


class Values:
    """The values of a jaxpr's variables while it runs."""

    def __init__(self, jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> None:
        self._known: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        self._known |= zip(jaxpr.invars, arguments, strict=True)

    def __getitem__(self, atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else self._known[atom]

    def __setitem__(self, variable: Any, value: Any) -> None:
        self._known[variable] = value

    def of(self, atoms: Sequence[Any]) -> list[Any]:
        """Return the values of several variables or literals."""
        return [self[atom] for atom in atoms]

    def update(self, variables: Sequence[Any], values: Sequence[Any]) -> None:
        """Set the values of several variables."""
        self._known |= zip(variables, values, strict=True)


def bind(equation: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """Return the results of an equation for these operands."""
    with equation.ctx.manager:
        results = equation.primitive.bind(
            *operands, **equation.primitive.get_bind_params(equation.params)
        )
    return list(results) if equation.primitive.multiple_results else [results]


def scan(
    equation: JaxprEqn, operands: Sequence[Any], step: Step, extra: Any
) -> tuple[list[Any], Any]:
    """Run a scan with another body.

    Args:
        equation: the scan.
        operands: of the scan.
        step: takes the operands of the scan's body, and one entry of ``extra``.
        extra: a pytree of arrays with one entry for each step along the first axis.

    Returns:
        The scan's results, and the records of all steps along a new first axis.
    """
    params = equation.params
    first, last = carried(params)
    consts, carry, stacked = operands[:first], operands[first:last], operands[last:]

    def body(carry: Any, of_step: Any) -> tuple[Any, Any]:
        entries, extra = of_step
        results, records = step([*consts, *carry, *entries], extra)
        return results[: last - first], (results[last - first :], records)

    carry, (rest, records) = jax.lax.scan(
        body,
        list(carry),
        (list(stacked), extra),
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *rest], records


def remat(
    equation: JaxprEqn, operands: Sequence[Any], step: Step, extra: Any
) -> tuple[list[Any], Any]:
    """Run a `jax.checkpoint` with another body, its policy kept; as `scan`."""
    params = equation.params
    again = jax.checkpoint(step, policy=params["policy"], prevent_cse=params["prevent_cse"])
    return again(list(operands), extra)


def cond(
    operands: Sequence[Any], branches: Sequence[Callable[[list[Any]], Any]]
) -> tuple[list[Any], Any]:
    """Run a `cond` or `switch` with other branches, which return pytrees of one structure."""
    return jax.lax.switch(operands[0], branches, list(operands[1:]))


def inlined(
    closed: ClosedJaxpr, axes: Sequence[tuple[str, int]] = (), without_rules: bool = False
) -> ClosedJaxpr:
    """Return a jaxpr without calls that only group equations: those of `jax.jit`.

    Args:
        closed: the jaxpr.
        axes: names and sizes of the axes of devices that collectives in it ask for.
        without_rules: leave out custom derivatives too: it is not to be differentiated.
    """
    calls = _Calls(INLINED | CUSTOM if without_rules else INLINED)
    jaxpr, consts = opened(closed)

    def run(*arguments: Any) -> list[Any]:
        return calls.run(jaxpr, consts, arguments)

    avals: list[Any] = [variable.aval for variable in jaxpr.invars]
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
    return jax.make_jaxpr(run, axis_env=list(axes))(*shapes)


@dataclasses.dataclass(frozen=True)
class _Calls:
    """Calls that are run in place: the names of their primitives, and of the body's parameter."""

    bodies: Mapping[str, str]

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        values = Values(jaxpr, consts, arguments)
        for equation in jaxpr.eqns:
            values.update(equation.outvars, self._results(equation, values.of(equation.invars)))
        return values.of(jaxpr.outvars)

    def _results(self, equation: JaxprEqn, operands: list[Any]) -> list[Any]:
        name, params = equation.primitive.name, equation.params
        if name in self.bodies:
            return self.run(*opened(params[self.bodies[name]]), operands)
        if not any(self.bodies.keys() & set(primitives(body)) for body in bodies(equation)):
            return bind(equation, operands)
        if name == "cond":
            return cond(operands, [self._step(branch) for branch in params["branches"]])[0]
        if name == "scan":
            return scan(equation, operands, self._step(params["jaxpr"]), None)[0]
        if name in REMAT:
            return remat(equation, operands, self._step(params["jaxpr"]), None)[0]
        return bind(equation, operands)

    def _step(self, held: ClosedJaxpr | Jaxpr) -> Callable[..., Any]:
        jaxpr, consts = opened(held)
        return lambda operands, _=None: (self.run(jaxpr, consts, operands), None)


def without_unused(closed: ClosedJaxpr, used: Sequence[bool]) -> tuple[ClosedJaxpr, list[int]]:
    """Return a jaxpr that computes some of the outputs alone, and which inputs it takes.

    Args:
        closed: the jaxpr.
        used: for every output, whether it is one of them.
    """
    jaxpr, consts = opened(closed)
    pairs = zip(jaxpr.outvars, used, strict=True)
    needed = {atom for atom, use in pairs if use and not isinstance(atom, Literal)}
    kept = []
    for equation in reversed(jaxpr.eqns):  # JAX's own way takes longer
        if any(variable in needed for variable in equation.outvars):
            kept.append(equation)
            needed |= {atom for atom in equation.invars if not isinstance(atom, Literal)}
    reduced, flags = partial_eval.dce_jaxpr(jaxpr.replace(eqns=kept[::-1]), list(used))
    return ClosedJaxpr(reduced, consts), [i for i, flag in enumerate(flags) if flag]
