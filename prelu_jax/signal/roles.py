"""How a model uses each of its parameters, read off its jaxpr.

A parameter is a *weight* if a matrix product, a convolution or a look-up combines it with the
signal: every output then depends on many inputs, or a new axis of features appears. Parameters
that only add or multiply elementwise (scales of norms, biases, slopes, tables of positions) are
none. Products inside the named scope `SCOPE`, which encloses the call of each measured layer, are
measured; all others are not, whether they are inside a transformation or written by hand.
"""

import dataclasses
from collections.abc import Container, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from prelu_jax.tracing import jaxprs, values
from prelu_jax.tracing.values import Bits, Value

SCOPE = "prelu_jax_measured_layer"


@dataclasses.dataclass
class Roles:
    """Sets of parameters by their use; `read` fills them.

    Attributes:
        measured: multiplied with the signal inside a measured layer.
        unmeasured: multiplied with the signal elsewhere.
        products: multiplied with constants or with one another, elsewhere.
        complex: of products of complex numbers.
        used: whatever the outputs depend on, or a product takes.
        inside: by parameter, the transformations around an unmeasured product, outermost first.
    """

    measured: Bits = 0
    unmeasured: Bits = 0
    products: Bits = 0
    complex: Bits = 0
    used: Bits = 0
    inside: dict[int, tuple[str, ...]] = dataclasses.field(default_factory=dict)


def read(
    jaxpr: ClosedJaxpr, parameters: Container[int], batch: range, known: Bits, bound: int
) -> Roles:
    """Return the roles of the parameters of a function.

    Args:
        jaxpr: the function's.
        parameters: which of its inputs are the parameters; input i has bit i.
        batch: which inputs are the batch.
        known: the parameters that are kernels of measured layers.
        bound: how many `vmap` around the function only bind axis names.
    """
    inputs = [
        Value(1 << i, 1 << i) if i in parameters else Value(signal=i in batch)
        for i in range(len(jaxpr.jaxpr.invars))
    ]
    reader = _Reader(Roles(), known)
    for value in reader.outputs(jaxpr, inputs, _Place(bound=bound)):
        reader.roles.used |= value.made_of
        if value.signal:
            reader.unmeasured(value.weights, _Place())
    roles = reader.roles
    roles.used |= roles.measured | roles.unmeasured | roles.products
    return roles


class _Place(NamedTuple):
    """Where an equation is: in a measured layer or not, and inside which transformations.

    Attributes:
        measured: whether it is in a measured layer.
        inside: the transformations, outermost first.
        bound: how many transformations only bind axis names.
    """

    measured: bool = False
    inside: tuple[str, ...] = ()
    bound: int = 0


class _Reader:
    def __init__(self, roles: Roles, known: Bits) -> None:
        self.roles = roles
        self.known = known

    def outputs(
        self, closed: ClosedJaxpr | Jaxpr, values: Sequence[Value], place: _Place
    ) -> list[Value]:
        """Return the origins of a jaxpr's outputs, and record the products in it."""
        jaxpr = closed.jaxpr if isinstance(closed, ClosedJaxpr) else closed
        known: dict[Any, Value] = dict(zip(jaxpr.invars, values, strict=True))

        def look(atom: Any) -> Value:
            return Value() if isinstance(atom, Literal) else known.get(atom, Value())

        for equation in jaxpr.eqns:
            operands = [look(atom) for atom in equation.invars]
            results = self._equation(equation, operands, _placed(equation, place))
            known |= zip(equation.outvars, results, strict=True)
        return [look(atom) for atom in jaxpr.outvars]

    def unmeasured(self, weights: Bits, place: _Place) -> None:
        """Record parameters that are multiplied where nothing is measured."""
        self.roles.unmeasured |= weights
        for i in values.members(weights):
            if not self.roles.inside.get(i):
                self.roles.inside[i] = place.inside

    def _equation(self, equation: JaxprEqn, operands: list[Value], place: _Place) -> list[Value]:
        name, outputs = equation.primitive.name, len(equation.outvars)
        if name in _PRODUCTS:
            return [self._product(equation, operands[0], operands[1], place)] * outputs
        if name == "gather":
            return [self._look_up(operands[0], operands[1], place)]
        if name == "dynamic_slice":  # which part it is does not make a kernel a signal
            return [operands[0]._replace(flat=frozenset())]
        if name == "select_n":  # nor does the choice between two kernels
            return [values.joined(equation, operands[1:])]
        if name == "broadcast_in_dim":
            return [values.broadcast(equation, operands[0])]
        if name == "scan":
            return self._scan(equation, operands, place)
        if name == "while":
            return self._while(equation, operands, place)
        if name == "cond":
            place = _entered(equation, place)
            cases = [self.outputs(b, operands[1:], place) for b in equation.params["branches"]]
            return [values.merged(results) for results in zip(*cases, strict=True)]
        body = _body(equation)
        if body is not None:
            return self.outputs(body, operands, _entered(equation, place))
        if _is_opaque(equation):
            return [self._opaque(equation, operands, place)] * outputs
        joined = values.joined(equation, operands)
        if name.startswith(_REDUCTIONS) and name != "reduce_precision":
            joined = self._reduced(joined, place)
        return [joined] * outputs

    def _reduced(self, value: Value, place: _Place) -> Value:
        """A sum of an outer product with the signal is a matrix product by hand."""
        if not (value.signal and value.weights):
            return value
        self.unmeasured(value.weights, place)
        return Value(value.made_of, signal=True)

    def _product(self, equation: JaxprEqn, a: Value, b: Value, place: _Place) -> Value:
        """A matrix product or a convolution."""
        if equation.primitive.name == "dot_general":
            (contracted, _), batched = equation.params["dimension_numbers"]
            if not contracted:  # outer and elementwise products
                outer = frozenset(
                    -1
                    for x, y, axes in ((a, b, batched[1]), (b, a, batched[0]))
                    if x.signal and not y.signal and values.adds_axis(equation, x is a, axes)
                )
                a, b = (v._replace(flat=outer) if v.signal else v for v in (a, b))
                return values.multiplied([a, b])._replace(flat=frozenset())
        made_of, signal = a.made_of | b.made_of, a.signal or b.signal
        weights = 0
        is_complex = jnp.issubdtype(values.aval(equation.outvars[0]).dtype, jnp.complexfloating)
        place = place._replace(measured=place.measured and not is_complex)
        for kernel, other in ((a, b), (b, a)):
            if kernel.signal:
                self.unmeasured(kernel.weights, place)  # the outer product was made elsewhere
            elif place.measured and (other.signal or kernel.weights & self.known):
                self.roles.measured |= kernel.weights
                signal = True
            elif other.signal:
                self.unmeasured(kernel.weights, place)
            elif kernel.weights and not (place.measured and other.weights & self.known):
                self.roles.products |= kernel.weights
                for i in values.members(kernel.weights):
                    self.roles.inside.setdefault(i, place.inside)
            weights |= kernel.weights
        self.roles.complex |= weights if is_complex else 0
        return Value(made_of, 0 if signal else weights, signal)

    def _look_up(self, table: Value, rows: Value, place: _Place) -> Value:
        """Rows of a table: a product with one-hot vectors, if the batch chooses them."""
        made_of = table.made_of | rows.made_of
        if place.measured and (rows.signal or table.weights & self.known) and not table.signal:
            self.roles.measured |= table.weights
            return Value(made_of, signal=True)
        if table.weights and rows.signal:
            self.unmeasured(table.weights, place)
            return Value(made_of, signal=True)
        return Value(made_of, table.weights, table.signal)

    def _opaque(self, equation: JaxprEqn, operands: list[Value], place: _Place) -> Value:
        """A kernel in another language, or a callback: its use of weights is not known."""
        joined = values.merged(operands)
        weights = values.union(value.weights for value in operands)
        if any(value.signal for value in operands):
            self.unmeasured(weights, _entered(equation, place))
            return Value(joined.made_of, signal=True)
        return Value(joined.made_of, weights)

    def _scan(self, equation: JaxprEqn, operands: list[Value], place: _Place) -> list[Value]:
        first, last = jaxprs.carried(equation.params)
        body, place = equation.params["jaxpr"], _entered(equation, place)
        # A step sees one entry of the last operands, so their broadcast axes move.
        stacked = [value._replace(flat=frozenset()) for value in operands[last:]]

        def step(carry: list[Value]) -> list[Value]:
            return self.outputs(body, [*operands[:first], *carry, *stacked], place)

        return self._settled(step, operands[first:last])

    def _while(self, equation: JaxprEqn, operands: list[Value], place: _Place) -> list[Value]:
        place = _entered(equation, place)
        n_cond, n_body = equation.params["cond_nconsts"], equation.params["body_nconsts"]
        consts = operands[n_cond : n_cond + n_body]

        def step(carry: list[Value]) -> list[Value]:
            return self.outputs(equation.params["body_jaxpr"], [*consts, *carry], place)

        return self._settled(step, operands[n_cond + n_body :])

    def _settled(self, step: Any, carry: list[Value]) -> list[Value]:
        """Repeat a loop's step until the carry stays the same; record the products of the last."""
        before = dataclasses.replace(self.roles, inside=dict(self.roles.inside))
        while True:
            results = step(carry)
            merged = [values.merged(pair) for pair in zip(carry, results, strict=False)]
            if merged == carry:
                return [*carry, *results[len(carry) :]]
            carry = merged
            self.roles = dataclasses.replace(before, inside=dict(before.inside))


def _body(equation: JaxprEqn) -> ClosedJaxpr | Jaxpr | None:
    """The jaxpr of a call: `jit`, `checkpoint`, custom derivatives, `shard_map`."""
    name = equation.primitive.name
    if name.startswith(_REDUCTIONS) or name == "pallas_call":
        return None
    for value in equation.params.values():
        jaxpr = value.jaxpr if isinstance(value, ClosedJaxpr) else value
        if (
            isinstance(jaxpr, Jaxpr)
            and len(jaxpr.invars) == len(equation.invars)
            and len(jaxpr.outvars) == len(equation.outvars)
        ):
            return value
    return None


def _is_opaque(equation: JaxprEqn) -> bool:
    name = equation.primitive.name
    if name in _OPAQUE or "callback" in name:
        return True
    held = (isinstance(value, Jaxpr | ClosedJaxpr) for value in equation.params.values())
    return any(held) and not name.startswith(_REDUCTIONS)


def _placed(equation: JaxprEqn, place: _Place) -> _Place:
    """The place of an equation: `vmap` and `grad` are no calls, but leave their names."""
    stack = equation.source_info.name_stack.stack
    measured = place.measured or any(entry.name == SCOPE for entry in stack)
    names = [entry.name for entry in stack if type(entry).__name__ == "Transform"]
    words = dict.fromkeys(_WORDS.get(name, name) for name in names[place.bound :])
    return _Place(measured, (*place.inside, *words))


def _entered(equation: JaxprEqn, place: _Place) -> _Place:
    """The place inside an equation; the jitted functions of JAX itself are no transformation."""
    name = equation.primitive.name
    if name in ("jit", "pjit"):
        jaxpr = equation.params["jaxpr"]
        if "/jax/_src/" in str(jaxpr.jaxpr.debug_info.func_src_info).replace("\\", "/"):
            return place
    word = _WORDS.get(name, name)
    return place._replace(inside=(*place.inside, word))


_PRODUCTS = {
    *("dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general"),
    "triangular_solve",
}
_OPAQUE = {"pallas_call", "ffi_call", "numpy_call", "custom_linear_solve"}
_REDUCTIONS = ("scatter", "reduce", "select_and", "arg", "cum")  # hold the jaxpr of one addition
_WORDS = {
    **dict.fromkeys(("remat2", "remat", "checkpoint"), "remat"),
    **dict.fromkeys(("jvp", "transpose"), "grad"),
    "pjit": "jit",
    "while": "while_loop",
    "xla_pmap": "pmap",
    "custom_vjp_call": "custom_vjp",
    "custom_jvp_call": "custom_jvp",
}
