"""The affine operations of a function, read off its jaxpr.

Every array is followed from where it comes: parameters, the batch, or both (`values`). A product of
an array made of parameters alone with one that depends on the batch is an *affine operation*: a
matrix product, a convolution or a look-up (a product with one-hot rows). It is found inside `scan`,
`checkpoint`, `jit` and `cond` as well as outside. The bias is the parameter that the next sum adds.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from prelu_jax.tracing import jaxprs, operations, values
from prelu_jax.tracing.operations import Body, Operation
from prelu_jax.tracing.products import Facts, Place, Products
from prelu_jax.tracing.values import Value


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """The affine operations of a function, and the parameters that it has no operation for.

    Attributes:
        body: the function.
        seen: the parameters that an operation multiplies with data.
        used: the parameters that the outputs depend on.
        not_measured: the other parameters that data is multiplied with, each with the calls around
            the product, outermost first.
        effects: of parameters that meet data elementwise (`Effects`).
    """

    body: Body
    seen: tuple[str, ...]
    used: tuple[str, ...]
    not_measured: Mapping[str, tuple[str, ...]]
    effects: Mapping[str, frozenset[str]]

    @property
    def operations(self) -> tuple[Operation, ...]:
        """The operations in the order of execution, those of a scan once."""
        return tuple(self.body.operations())


def read(closed: ClosedJaxpr, names: Sequence[str | None], batch: range) -> Reading:
    """Return the affine operations of a function.

    Args:
        closed: its jaxpr, `jaxprs.inlined`.
        names: the names of its first inputs: of the parameters, and of other arrays that may be
            weights. None for an input that is none.
        batch: which inputs are the batch.
    """
    named = dict(enumerate(names))
    inputs = [
        Value(1 << i, 1 << i, is_view=True) if named.get(i) else Value(signal=i in batch)
        for i in range(len(closed.jaxpr.invars))
    ]
    facts = Facts(tuple(name or "" for name in names))
    body, results = _read(facts, closed, inputs, Place())
    if as_data := facts.of_data & facts.of_constants:
        facts = Facts(facts.names, as_data)
        body, results = _read(facts, closed, inputs, Place())
    for value in results:
        facts.used |= value.made_of
        if value.signal:
            facts.miss(value.weights, ())
    body = _numbered(body, iter(range(len([*body.operations()]))))
    seen = values.union(
        1 << facts.names.index(name)
        for operation in body.operations()
        for name in operation.parameters
    )
    facts.miss(facts.products & ~seen, ())
    used = facts.used | seen | values.union(1 << i for i in facts.missed)
    return Reading(
        body,
        tuple(facts.names[i] for i in values.members(seen)),
        tuple(facts.names[i] for i in values.members(used)),
        {facts.names[i]: inside for i, inside in sorted(facts.missed.items())},
        {facts.names[i]: frozenset(effects) for i, effects in sorted(facts.effects.items())},
    )


def _numbered(body: Body, numbers: Iterator[int]) -> Body:
    """Return the body with its operations numbered in the order of execution."""
    watched, inner = {}, {}
    for place in sorted({*body.watched, *body.inner}):
        if place in body.inner:
            inner[place] = tuple(_numbered(each, numbers) for each in body.inner[place])
        if place in body.watched:
            found = body.watched[place]
            operation = dataclasses.replace(found.operation, number=next(numbers))
            watched[place] = dataclasses.replace(found, operation=operation)
    return dataclasses.replace(body, watched=watched, inner=inner)


def _read(
    facts: Facts, held: ClosedJaxpr | Jaxpr, inputs: Sequence[Value], place: Place
) -> tuple[Body, list[Value]]:
    """Return the operations of a jaxpr, and the origins of its outputs from those of its inputs."""
    jaxpr, consts = jaxprs.opened(held)
    return _Reader(facts, jaxpr, inputs, place).read(consts)


class _Reader:
    """The reading of one jaxpr."""

    def __init__(self, facts: Facts, jaxpr: Jaxpr, inputs: Sequence[Value], place: Place) -> None:
        self.facts = facts
        self.jaxpr = jaxpr
        self.place = place
        self.known: dict[Any, Value] = dict(zip(jaxpr.invars, inputs, strict=True))
        self.products = Products(facts, jaxpr, place)
        self.inner: dict[int, tuple[Body, ...]] = {}

    def read(self, consts: Sequence[Any]) -> tuple[Body, list[Value]]:
        """Return the operations, and the origins of the outputs."""
        for i, equation in enumerate(self.jaxpr.eqns):
            operands = [self._look(atom) for atom in equation.invars]
            results = self._equation(i, equation, operands)
            self.known |= zip(equation.outvars, results, strict=True)
        watched = self.products.watched(self._look)
        results = [self._look(atom) for atom in self.jaxpr.outvars]
        return Body(self.jaxpr, tuple(consts), watched, self.inner), results

    def _look(self, atom: Any) -> Value:
        return Value() if isinstance(atom, Literal) else self.known.get(atom, Value())

    def _equation(self, i: int, equation: JaxprEqn, operands: list[Value]) -> list[Value]:
        name, outputs = equation.primitive.name, len(equation.outvars)
        products = self.products
        if name in (*operations.PRODUCTS, operations.LOOK_UP):
            operands = products.with_data(equation, operands)
        if name in operations.PRODUCTS:
            return [products.product(i, equation, operands)]
        if name == operations.LOOK_UP:
            return [products.look_up(i, equation, *operands)]
        if name == "triangular_solve":
            return [products.solved(operands)] * outputs
        if name == "dynamic_slice":  # which part it is does not make a kernel a signal
            return [products.sliced_by_step(equation, operands[0]._replace(flat=frozenset()))]
        products.effects.note(equation, operands)
        if name == "select_n":  # nor does the choice between two kernels
            return [values.joined(equation, operands[1:])]
        if name == "broadcast_in_dim":
            return [values.broadcast(equation, operands[0])]
        if name == "scan":
            return self._scan(i, equation, operands)
        if name == "while":
            return self._while(equation, operands)
        if name == "cond":
            return self._cond(i, equation, operands)
        if name in jaxprs.REMAT or jaxprs.is_transparent(equation):
            return self._call(i, equation, operands)
        if jaxprs.is_opaque(equation):
            return [products.opaque(equation, operands)] * outputs
        joined = values.joined(equation, operands)
        if jaxprs.is_reduction(equation):
            joined = products.reduced(joined)
        if name in jaxprs.ARRANGEMENTS and all(v.is_view for v in operands if v.made_of):
            joined = joined._replace(is_view=not joined.signal and joined.made_of > 0)
        return [joined] * outputs

    def _call(self, i: int, equation: JaxprEqn, operands: list[Value]) -> list[Value]:
        """Read `checkpoint`, which can run with another body, or a call that cannot."""
        is_opaque = equation.primitive.name not in jaxprs.REMAT
        held = next(value for value in equation.params.values() if jaxprs.is_body(value, equation))
        place = self.place.within(jaxprs.word(equation), is_opaque)
        body, results = _read(self.facts, held, operands, place)
        if not body.is_empty:
            self.inner[i] = (body,)
        return results

    def _cond(self, i: int, equation: JaxprEqn, operands: list[Value]) -> list[Value]:
        place = self.place.within("cond")
        read = [
            _read(self.facts, branch, operands[1:], place) for branch in equation.params["branches"]
        ]
        if not all(body.is_empty for body, _ in read):
            self.inner[i] = tuple(body for body, _ in read)
        return [values.merged(cases) for cases in zip(*(found for _, found in read), strict=True)]

    def _scan(self, i: int, equation: JaxprEqn, operands: list[Value]) -> list[Value]:
        first, last = jaxprs.carried(equation.params)
        place = dataclasses.replace(
            self.place.within("scan"),
            steps=(*self.place.steps, equation.params["length"]),
        )
        held = equation.params["jaxpr"]
        # A step sees one entry of the last operands, so their broadcast axes move.
        bit = 1 << len(self.place.steps)
        stacked = [
            value._replace(flat=frozenset(), scans=value.scans | (bit if value.made_of else 0))
            for value in operands[last:]
        ]

        def step(carry: list[Value]) -> tuple[Body, list[Value]]:
            return _read(self.facts, held, [*operands[:first], *carry, *stacked], place)

        body, results = self._settled(step, operands[first:last])
        if not body.is_empty:
            self.inner[i] = (body,)
        return results

    def _while(self, equation: JaxprEqn, operands: list[Value]) -> list[Value]:
        n_cond, n_body = equation.params["cond_nconsts"], equation.params["body_nconsts"]
        consts = operands[n_cond : n_cond + n_body]
        held = equation.params["body_jaxpr"]
        place = self.place.within(jaxprs.word(equation), is_opaque=True)

        def step(carry: list[Value]) -> tuple[Body, list[Value]]:
            return _read(self.facts, held, [*consts, *carry], place)

        return self._settled(step, operands[n_cond + n_body :])[1]

    def _settled(self, step: Any, carry: list[Value]) -> tuple[Body, list[Value]]:
        """Repeat a loop's step until the carry stays the same; keep the reading of the last."""
        before = dict(self.facts.missed)
        while True:
            self.facts.missed = dict(before)
            body, results = step(carry)
            merged = [values.merged(pair) for pair in zip(carry, results, strict=False)]
            merged = [
                now._replace(is_view=was.is_view and now == was._replace(is_view=now.is_view))
                for now, was in zip(merged, carry, strict=True)
            ]
            if merged == carry:
                return body, [*carry, *results[len(carry) :]]
            carry = merged
