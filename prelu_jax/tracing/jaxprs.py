"""Jaxprs: the kinds of their equations, and running a call again with another body.

JAX 0.10 and 0.11 differ in how they write a jaxpr down; the differences are in this file alone.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jax.interpreters import partial_eval

Step = Callable[[list[Any], Any], tuple[list[Any], Any]]  # operands, extra -> results, records

# Calls that compute what their body does, and no more: they are run in place.
INLINED = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}
# Calls that have a rule of their own for the derivative.
CUSTOM = {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}
REMAT = ("remat2", "remat", "checkpoint")
ARRANGEMENTS = {  # entries of the operands, in another order or fewer of them
    *("reshape", "transpose", "squeeze", "expand_dims", "rev", "slice", "split", "concatenate"),
    *("convert_element_type", "copy", "copy_p", "stop_gradient", "name", "device_put"),
    *("sharding_constraint", "optimization_barrier", "unstack", "stack"),
}
_OPAQUE = {"pallas_call", "ffi_call", "numpy_call", "custom_linear_solve"}
REDUCTIONS = ("scatter", "reduce", "select_and", "arg", "cum")  # hold the jaxpr of one addition
_WORDS = {
    **dict.fromkeys(REMAT, "remat"),
    "while": "while_loop",
    "custom_vjp_call": "custom_vjp",
    "custom_jvp_call": "custom_jvp",
}


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
    """Return the range of a scan's operands that are carried: its first index and its end."""
    if "num_consts" in params:  # JAX before 0.11
        return params["num_consts"], params["num_consts"] + params["num_carry"]
    consts, carry, _ = (len(list(part)) for part in params["ft_in"].unpack())
    return consts, consts + carry


class Values:
    """The values of a jaxpr's variables while it runs, or other facts about them."""

    def __init__(
        self,
        jaxpr: Jaxpr,
        consts: Sequence[Any],
        arguments: Sequence[Any],
        of_literal: Callable[[Any], Any] = lambda value: value,
    ) -> None:
        self._known: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        self._known |= zip(jaxpr.invars, arguments, strict=True)
        self._of_literal = of_literal

    def __getitem__(self, atom: Any) -> Any:
        return self._of_literal(atom.val) if isinstance(atom, Literal) else self._known[atom]

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
    options = {"policy": params["policy"], "prevent_cse": params["prevent_cse"]}
    again: Step = jax.checkpoint(step, **options)
    return again(list(operands), extra)


def cond(
    operands: Sequence[Any], branches: Sequence[Callable[[list[Any]], Any]]
) -> tuple[list[Any], Any]:
    """Run a `cond` or `switch` with other branches, which return pytrees of one structure."""
    results, records = jax.lax.switch(operands[0], branches, list(operands[1:]))
    return results, records


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


def needed(jaxpr: Jaxpr, results: Sequence[Any], with_effects: bool = False) -> list[JaxprEqn]:
    """Return the equations that some results depend on, in their order.

    Args:
        jaxpr: the computation.
        results: some of its results.
        with_effects: keep the equations that have effects too.
    """
    wanted = {atom for atom in results if isinstance(atom, Var)}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if not wanted.isdisjoint(equation.outvars) or (with_effects and equation.effects):
            kept.append(equation)
            wanted.update(atom for atom in equation.invars if isinstance(atom, Var))
    return kept[::-1]


def without_unused(closed: ClosedJaxpr, used: Sequence[bool]) -> tuple[ClosedJaxpr, list[int]]:
    """Return a jaxpr that computes some of the outputs alone, and which inputs it takes.

    Args:
        closed: the jaxpr.
        used: for every output, whether it is one of them.
    """
    jaxpr, consts = opened(closed)
    results = [atom for atom, use in zip(jaxpr.outvars, used, strict=True) if use]
    kept = needed(jaxpr, results)  # JAX's own way takes longer
    reduced, flags = partial_eval.dce_jaxpr(jaxpr.replace(eqns=kept), list(used))
    return ClosedJaxpr(reduced, consts), [i for i, flag in enumerate(flags) if flag]


def is_complex(equation: JaxprEqn) -> bool:
    """Return whether its result is of complex numbers."""
    result: Any = equation.outvars[0]
    return bool(jnp.issubdtype(result.aval.dtype, jnp.complexfloating))


def is_body(value: Any, equation: JaxprEqn) -> bool:
    """Return whether a parameter of an equation is a jaxpr of the same operands and results."""
    if not isinstance(value, Jaxpr | ClosedJaxpr):
        return False
    jaxpr, _ = opened(value)
    return len(jaxpr.invars) == len(equation.invars) and len(jaxpr.outvars) == len(equation.outvars)


def is_transparent(equation: JaxprEqn) -> bool:
    """Return whether it is a call whose body computes the same: custom derivatives, `shard_map`."""
    name = equation.primitive.name
    if name.startswith(REDUCTIONS) or name == "pallas_call":
        return False
    return any(is_body(value, equation) for value in equation.params.values())


def is_opaque(equation: JaxprEqn) -> bool:
    """Return whether it computes something that no jaxpr describes, or in a way not known here."""
    name = equation.primitive.name
    if name in _OPAQUE or "callback" in name:
        return True
    held = (isinstance(value, Jaxpr | ClosedJaxpr) for value in equation.params.values())
    return any(held) and not name.startswith(REDUCTIONS)


def is_reduction(equation: JaxprEqn) -> bool:
    """Return whether it is a sum over axes, or one of its kind."""
    name = equation.primitive.name
    return name.startswith(REDUCTIONS) and name != "reduce_precision"


def word(equation: JaxprEqn) -> str:
    """Return the name of a call as its user writes it."""
    name = equation.primitive.name
    return _WORDS.get(name, name)
