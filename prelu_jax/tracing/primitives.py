"""The kinds of primitives that a reader of jaxprs tells apart."""

from typing import Any

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from prelu_jax.tracing import jaxprs
from prelu_jax.tracing.values import aval

ARRANGEMENTS = {  # entries of the operands, in another order or fewer of them
    *("reshape", "transpose", "squeeze", "expand_dims", "rev", "slice", "split", "concatenate"),
    *("convert_element_type", "copy", "copy_p", "stop_gradient", "name", "device_put"),
    *("sharding_constraint", "optimization_barrier", "unstack", "stack"),
}
_OPAQUE = {"pallas_call", "ffi_call", "numpy_call", "custom_linear_solve"}
REDUCTIONS = ("scatter", "reduce", "select_and", "arg", "cum")  # hold the jaxpr of one addition
_WORDS = {
    **dict.fromkeys(jaxprs.REMAT, "remat"),
    "while": "while_loop",
    "custom_vjp_call": "custom_vjp",
    "custom_jvp_call": "custom_jvp",
}


def is_complex(equation: JaxprEqn) -> bool:
    """Return whether its result is of complex numbers."""
    return bool(jnp.issubdtype(aval(equation.outvars[0]).dtype, jnp.complexfloating))


def is_body(value: Any, equation: JaxprEqn) -> bool:
    """Return whether a parameter of an equation is a jaxpr of the same operands and results."""
    if not isinstance(value, Jaxpr | ClosedJaxpr):
        return False
    jaxpr, _ = jaxprs.opened(value)
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
