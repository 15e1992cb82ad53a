"""Following the values of a jaxpr from parameters and the batch to products of the two."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from prelu_jax.tracing import jaxprs, operations, outputs, primitives, values
from prelu_jax.tracing.bodies import Body, Watched
from prelu_jax.tracing.operations import Axes, Layout, Operation
from prelu_jax.tracing.values import Bits, Value, shape_of


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of a jaxpr in the function.

    Attributes:
        inside: the calls around it, outermost first.
        steps: as those of an `Operation`.
        is_opaque: whether it is in a call that cannot be run with other bodies.
    """

    inside: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    is_opaque: bool = False

    def within(self, name: str, is_opaque: bool = False) -> "Place":
        return dataclasses.replace(
            self, inside=(*self.inside, name), is_opaque=self.is_opaque or is_opaque
        )


_SUMS = ("add", "add_any", "sub")
_FACTORS = ("mul", "div")
Use = tuple[Bits, tuple[tuple[int, ...], ...]]  # a product: its weights, its operands' shapes


class Reader:
    """The reading of a function: its jaxpr, and those of the calls in it.

    Attributes:
        names: of the inputs that may be weights.
        as_data: products in which a constant counts as data.
        of_data: the products of weights with data.
        of_constants: the products of weights with a constant.
        used: the parameters that the outputs depend on.
        products: those that are multiplied with constants or with one another.
        missed: those that data is multiplied with where it cannot be seen, and the calls around.
        effects: what one parameter does outside of products. With data: 'add', 'add a map' where it
            varies along several axes, 'multiply', or 'rectify' where the data chooses the entries
            that are multiplied. By itself: 'look up' where rows of it are taken.
    """

    def __init__(self, names: tuple[str, ...], as_data: Collection[Use] = ()) -> None:
        self.names = names
        self.as_data = as_data
        self.of_data: set[Use] = set()
        self.of_constants: set[Use] = set()
        self.used: Bits = 0
        self.products: Bits = 0
        self.missed: dict[int, tuple[str, ...]] = {}
        self.effects: dict[int, set[str]] = {}

    def miss(self, weights: Bits, inside: tuple[str, ...]) -> None:
        """Record parameters that data is multiplied with where it cannot be seen."""
        for i in values.members(weights):
            self.missed.setdefault(i, inside)

    def body(
        self, jaxpr: Jaxpr, consts: Sequence[Any], inputs: Sequence[Value], place: Place
    ) -> tuple[Body, list[Value]]:
        """Return the operations of a jaxpr, and the origins of its outputs."""
        one = _OneBody(self, jaxpr, inputs, place)
        results = one.read()
        return Body(jaxpr, tuple(consts), one.watched, one.inner), results


def _effect(name: str, atom: Any, value: Value) -> str:
    if name in _FACTORS:
        return "multiply"
    varies = [i for i, size in enumerate(shape_of(atom)) if size > 1 and i not in value.flat]
    return "add" if len(varies) <= 1 else "add a map"


class _OneBody:
    """The reading of one jaxpr."""

    def __init__(self, reader: Reader, jaxpr: Jaxpr, inputs: Sequence[Value], place: Place) -> None:
        self.reader = reader
        self.jaxpr = jaxpr
        self.place = place
        self.known: dict[Any, Value] = dict(zip(jaxpr.invars, inputs, strict=True))
        self.watched: dict[int, Watched] = {}
        self.inner: dict[int, tuple[Body, ...]] = {}
        self.products: list[tuple[int, Layout]] = []
        self.scaled: dict[Any, tuple[Bits, Any]] = {}  # data times a parameter -> it, the data
        self.negated: set[Any] = set()  # data with the sign changed
        self.negative: set[Any] = set()  # data cut off above at a number, at 0 as a rule

    def read(self) -> list[Value]:
        for i, equation in enumerate(self.jaxpr.eqns):
            operands = [self._look(atom) for atom in equation.invars]
            results = self._equation(i, equation, operands)
            self.known |= zip(equation.outvars, results, strict=True)
        if self.products:
            graph = outputs.Graph(self.jaxpr)
            for i, layout in self.products:
                found = self._watched(i, layout, graph)
                self.watched[found.chain[-1]] = found
        return [self._look(atom) for atom in self.jaxpr.outvars]

    def _look(self, atom: Any) -> Value:
        return Value() if isinstance(atom, Literal) else self.known.get(atom, Value())

    def _miss(self, weights: Bits, *inside: str) -> None:
        self.reader.miss(weights, (*self.place.inside, *inside))

    def _equation(self, i: int, equation: JaxprEqn, operands: list[Value]) -> list[Value]:
        name, outputs = equation.primitive.name, len(equation.outvars)
        if name in (*operations.PRODUCTS, operations.LOOK_UP):
            operands = self._with_data(equation, operands)
        if name in operations.PRODUCTS:
            return [self._product(i, equation, operands)]
        if name == operations.LOOK_UP:
            return [self._look_up(i, equation, *operands)]
        if name == "triangular_solve":
            return [self._solved(operands)] * outputs
        if name == "dynamic_slice":  # which part it is does not make a kernel a signal
            return [self._sliced_by_step(equation, operands[0]._replace(flat=frozenset()))]
        self._note_effect(equation, operands)
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
        if name in jaxprs.REMAT or primitives.is_transparent(equation):
            return self._call(i, equation, operands)
        if primitives.is_opaque(equation):
            return [self._opaque(equation, operands)] * outputs
        joined = values.joined(equation, operands)
        if primitives.is_reduction(equation):
            joined = self._reduced(joined)
        if name in primitives.ARRANGEMENTS and all(v.is_view for v in operands if v.made_of):
            joined = joined._replace(is_view=not joined.signal and joined.made_of > 0)
        return [joined] * outputs

    def _with_data(self, equation: JaxprEqn, operands: list[Value]) -> list[Value]:
        """Return the origins of a product's operands, with some constants as data (`as_data`).

        A recurrent net starts from a state of zeros. A scan reads that as data, like the states
        after it; so it has to be where the steps are written out.
        """
        first, second, *rest = operands
        shapes = tuple(shape_of(atom) for atom in equation.invars[:2])

        def seen(weights: Value, data: Value) -> Value:
            if not weights.weights or weights.signal:
                return data
            use = (weights.made_of, shapes)
            if data.signal:
                self.reader.of_data.add(use)
            elif data.flat or not data.made_of:
                self.reader.of_constants.add(use)
                if use in self.reader.as_data:
                    return Value(data.made_of, signal=True)
            return data

        return [seen(second, first), seen(first, second), *rest]

    def _note_effect(self, equation: JaxprEqn, operands: list[Value]) -> None:
        """Record what an elementwise operation of one parameter and data does (`Reader`)."""
        name, (y, *_) = equation.primitive.name, equation.outvars
        atoms = [atom for atom in equation.invars if isinstance(atom, Var)]
        signal = [value.signal for value in operands]
        own = [v.made_of if v.made_of.bit_count() == 1 and not v.signal else 0 for v in operands]
        if name in ("select_n", "max", "min"):
            factors = own[1:] if name == "select_n" and signal[0] and not any(signal[1:]) else []
            for bits in factors:
                self._add_effect(bits, "rectify")
            for bits, unscaled in (self.scaled[atom] for atom in atoms if atom in self.scaled):
                if unscaled in atoms:
                    self._add_effect(bits, "rectify")
            is_negative = name == "min" or (name == "max" and not self.negated.isdisjoint(atoms))
            if is_negative and any(signal) and len(atoms) < len(operands):
                self.negative.add(y)
        elif name == "neg" and any(signal):
            self.negated.add(y)
        elif name in (*_SUMS, *_FACTORS) and any(signal):
            for bits, atom, value in zip(own, equation.invars, operands, strict=True):
                self._add_effect(bits, _effect(name, atom, value))
                if bits and name == "mul":
                    (data,) = (other for other in equation.invars if other is not atom)
                    self.scaled[y] = bits, data
                    if not self.negative.isdisjoint(atoms):
                        self._add_effect(bits, "rectify")

    def _add_effect(self, parameter: Bits, effect: str) -> None:
        for i in values.members(parameter):
            self.reader.effects.setdefault(i, set()).add(effect)

    def _reduced(self, value: Value) -> Value:
        """A sum of an outer product with the signal is a matrix product by hand."""
        if not (value.signal and value.weights):
            return value
        self._miss(value.weights)
        return Value(value.made_of, signal=True)

    def _product(self, i: int, equation: JaxprEqn, operands: list[Value]) -> Value:
        """A matrix product or a convolution."""
        a, b = operands[:2]
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
        is_complex = primitives.is_complex(equation)
        for operand, (weights, data) in enumerate(((a, b), (b, a))):
            if weights.signal:
                self._miss(weights.weights)  # the outer product was made elsewhere
            elif weights.weights and data.signal:
                layout = operations.layout(equation, operand)
                if layout is None or self.place.is_opaque or is_complex:
                    self._miss(weights.weights, *(["complex"] if is_complex else []))
                else:
                    self.products.append((i, layout))
        if not signal:
            self.reader.products |= a.weights | b.weights
        return Value(made_of, 0 if signal else a.weights | b.weights, signal)

    def _solved(self, operands: list[Value]) -> Value:
        joined = values.merged(operands)
        if joined.signal:
            self._miss(values.union(v.weights for v in operands if not v.signal))
            return Value(joined.made_of, signal=True)
        return joined

    def _look_up(self, i: int, equation: JaxprEqn, table: Value, rows: Value) -> Value:
        """Rows of a table: a product with one-hot vectors, if the batch chooses them."""
        made_of = table.made_of | rows.made_of
        if table.weights and rows.signal and not table.signal:
            layout = operations.layout(equation, 0)
            if layout is None or self.place.is_opaque:
                self._miss(table.weights)
            else:
                self.products.append((i, layout))
            return Value(made_of, signal=True)
        if table.made_of.bit_count() == 1 and not table.signal:
            self._add_effect(table.made_of, "look up")
        is_view = table.is_view and not rows.made_of
        signal = table.signal or rows.signal
        found = Value(made_of, table.weights, signal, is_view=is_view, scans=table.scans)
        return self._sliced_by_step(equation, found)

    def _sliced_by_step(self, equation: JaxprEqn, value: Value) -> Value:
        """Return a slice of weights, as one of a step's own where the step computes its index."""
        indices = equation.invars[1:]
        if not self.place.steps or all(isinstance(atom, Literal) for atom in indices):
            return value
        return value._replace(scans=value.scans | 1 << (len(self.place.steps) - 1))

    def _opaque(self, equation: JaxprEqn, operands: list[Value]) -> Value:
        """A kernel in another language, or a callback: its use of weights is not known."""
        joined = values.merged(operands)
        weights = values.union(value.weights for value in operands)
        if any(value.signal for value in operands):
            self._miss(weights, primitives.word(equation))
            return Value(joined.made_of, signal=True)
        return Value(joined.made_of, weights)

    def _call(self, i: int, equation: JaxprEqn, operands: list[Value]) -> list[Value]:
        """`checkpoint`, which is run again with another body, and calls that are not."""
        is_opaque = equation.primitive.name not in jaxprs.REMAT
        held = next(
            value for value in equation.params.values() if primitives.is_body(value, equation)
        )
        place = self.place.within(primitives.word(equation), is_opaque)
        body, results = self.reader.body(*jaxprs.opened(held), operands, place)
        if not body.is_empty:
            self.inner[i] = (body,)
        return results

    def _cond(self, i: int, equation: JaxprEqn, operands: list[Value]) -> list[Value]:
        place = self.place.within("cond")
        read = [
            self.reader.body(*jaxprs.opened(branch), operands[1:], place)
            for branch in equation.params["branches"]
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
        held = jaxprs.opened(equation.params["jaxpr"])
        # A step sees one entry of the last operands, so their broadcast axes move.
        bit = 1 << len(self.place.steps)
        stacked = [
            value._replace(flat=frozenset(), scans=value.scans | (bit if value.made_of else 0))
            for value in operands[last:]
        ]

        def step(carry: list[Value]) -> tuple[Body, list[Value]]:
            return self.reader.body(*held, [*operands[:first], *carry, *stacked], place)

        body, results = self._settled(step, operands[first:last])
        if not body.is_empty:
            self.inner[i] = (body,)
        return results

    def _while(self, equation: JaxprEqn, operands: list[Value]) -> list[Value]:
        n_cond, n_body = equation.params["cond_nconsts"], equation.params["body_nconsts"]
        consts = operands[n_cond : n_cond + n_body]
        held = jaxprs.opened(equation.params["body_jaxpr"])
        place = self.place.within(primitives.word(equation), is_opaque=True)

        def step(carry: list[Value]) -> tuple[Body, list[Value]]:
            return self.reader.body(*held, [*consts, *carry], place)

        return self._settled(step, operands[n_cond + n_body :])[1]

    def _settled(self, step: Any, carry: list[Value]) -> tuple[Body, list[Value]]:
        """Repeat a loop's step until the carry stays the same; keep the reading of the last."""
        before = dict(self.reader.missed)
        while True:
            self.reader.missed = dict(before)
            body, results = step(carry)
            merged = [values.merged(pair) for pair in zip(carry, results, strict=False)]
            merged = [
                now._replace(is_view=was.is_view and now == was._replace(is_view=now.is_view))
                for now, was in zip(merged, carry, strict=True)
            ]
            if merged == carry:
                return body, [*carry, *results[len(carry) :]]
            carry = merged

    # ---- from a product to its output

    def _watched(self, i: int, layout: Layout, graph: outputs.Graph) -> Watched:
        equation = self.jaxpr.eqns[i]
        weight = equation.invars[layout.operand]
        value = self._look(weight)
        output = outputs.to_output(graph, i, layout.channel_axes, self._is_bias)
        y, bias = self.jaxpr.eqns[output.chain[-1]].outvars[0], output.bias
        order = tuple(output.numbers.ravel().tolist())
        padded = equation.invars[1 - layout.operand]
        x = outputs.before_padding(graph, padded, lambda atom: self._look(atom) == Value())
        names = self.reader.names
        added = self._look(bias).made_of if bias is not None else 0
        rank = len(shape_of(y))
        operation = Operation(
            number=0,
            kind=layout.kind,
            parameters=tuple(names[n] for n in values.members(value.made_of)),
            is_view=value.is_view,
            bias=names[added.bit_length() - 1] if added else None,
            layout=layout,
            channel_axes=tuple(axis - rank for axis in output.channels),
            channel_order=None if order == tuple(range(len(order))) else order,
            weight_shape=shape_of(weight),
            input_shape=shape_of(x),
            shape=shape_of(y),
            dtype=values.aval(y).dtype.name,
            steps=self.place.steps,
            own=tuple(bool(value.scans >> i & 1) for i in range(len(self.place.steps))),
            inside=self.place.inside,
        )
        return Watched(operation, output.chain, x, weight, bias, y)

    def _is_bias(self, atom: Any, channels: Axes) -> bool:
        """Return whether a summand is one parameter, and constant along all other axes."""
        value = self._look(atom)
        if value.signal or value.made_of.bit_count() != 1:
            return False
        others = {
            axis for axis, size in enumerate(shape_of(atom)) if size > 1 and axis not in channels
        }
        return others <= value.flat
