"""Products of parameters with data, as a jaxpr is read."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Literal

from prelu_jax.tracing import counts, jaxprs, operations, outputs, values
from prelu_jax.tracing.effects import Effects
from prelu_jax.tracing.operations import Axes, Layout, Operation, Watched
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


Use = tuple[Bits, tuple[tuple[int, ...], ...]]  # a product: its weights, its operands' shapes


class Facts:
    """The facts about a function that are collected while its jaxprs are read.

    Attributes:
        names: of the inputs that may be weights.
        as_data: products in which a constant counts as data.
        of_data: the products of weights with data.
        of_constants: the products of weights with a constant.
        used: the parameters that the outputs depend on.
        products: those that are multiplied with constants or with one another.
        missed: those that data is multiplied with where it cannot be seen, and the calls around.
        effects: of parameters outside of products, by their number (`Effects`).
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


class Products:
    """The products of one jaxpr.

    Attributes:
        facts: of the function.
        jaxpr: the computation.
        place: of the jaxpr.
        effects: of parameters outside of products.
    """

    def __init__(self, facts: Facts, jaxpr: Jaxpr, place: Place) -> None:
        self.facts = facts
        self.jaxpr = jaxpr
        self.place = place
        self.effects = Effects(facts.effects)
        self._found: list[tuple[int, Layout]] = []

    def _miss(self, weights: Bits, *inside: str) -> None:
        self.facts.miss(weights, (*self.place.inside, *inside))

    def with_data(self, equation: JaxprEqn, operands: list[Value]) -> list[Value]:
        """Return the origins of a product's operands, with some constants as data (`as_data`).

        A recurrent net starts from a state of zeros. In a scan that counts as data, since the later
        states are data. Where the steps are written out it has to count as data too.
        """
        first, second, *rest = operands
        shapes = tuple(shape_of(atom) for atom in equation.invars[:2])

        def seen(weights: Value, data: Value) -> Value:
            if not weights.weights or weights.signal:
                return data
            use = (weights.made_of, shapes)
            if data.signal:
                self.facts.of_data.add(use)
            elif data.flat or not data.made_of:
                self.facts.of_constants.add(use)
                if use in self.facts.as_data:
                    return Value(data.made_of, signal=True)
            return data

        return [seen(second, first), seen(first, second), *rest]

    def reduced(self, value: Value) -> Value:
        """Return the origin of a sum: of an outer product with the signal, a product by hand."""
        if not (value.signal and value.weights):
            return value
        self._miss(value.weights)
        return Value(value.made_of, signal=True)

    def product(self, i: int, equation: JaxprEqn, operands: list[Value]) -> Value:
        """Return the origin of a matrix product or a convolution, and record the operation."""
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
        is_complex = jaxprs.is_complex(equation)
        for operand, (weights, data) in enumerate(((a, b), (b, a))):
            if weights.signal:
                self._miss(weights.weights)  # the outer product was made elsewhere
            elif weights.weights and data.signal:
                layout = operations.layout(equation, operand)
                if layout is None or self.place.is_opaque or is_complex:
                    self._miss(weights.weights, *(["complex"] if is_complex else []))
                else:
                    self._found.append((i, layout))
        if not signal:
            self.facts.products |= a.weights | b.weights
        return Value(made_of, 0 if signal else a.weights | b.weights, signal)

    def solved(self, operands: list[Value]) -> Value:
        joined = values.merged(operands)
        if joined.signal:
            self._miss(values.union(v.weights for v in operands if not v.signal))
            return Value(joined.made_of, signal=True)
        return joined

    def look_up(self, i: int, equation: JaxprEqn, table: Value, rows: Value) -> Value:
        """Return the origin of rows of a table, and record the operation if data chooses them."""
        made_of = table.made_of | rows.made_of
        if table.weights and rows.signal and not table.signal:
            layout = operations.layout(equation, 0)
            if layout is None or self.place.is_opaque:
                self._miss(table.weights)
            else:
                self._found.append((i, layout))
            return Value(made_of, signal=True)
        if table.made_of.bit_count() == 1 and not table.signal:
            self.effects.add(table.made_of, "look up")
        is_view = table.is_view and not rows.made_of
        signal = table.signal or rows.signal
        found = Value(made_of, table.weights, signal, is_view=is_view, scans=table.scans)
        return self.sliced_by_step(equation, found)

    def sliced_by_step(self, equation: JaxprEqn, value: Value) -> Value:
        """Return a slice of weights, as one of a step's own where the step computes its index."""
        indices = equation.invars[1:]
        if not self.place.steps or all(isinstance(atom, Literal) for atom in indices):
            return value
        return value._replace(scans=value.scans | 1 << (len(self.place.steps) - 1))

    def opaque(self, equation: JaxprEqn, operands: list[Value]) -> Value:
        """Return the origin of the result of a callback or a kernel in another language."""
        joined = values.merged(operands)
        weights = values.union(value.weights for value in operands)
        if any(value.signal for value in operands):
            self._miss(weights, jaxprs.word(equation))
            return Value(joined.made_of, signal=True)
        return Value(joined.made_of, weights)

    def watched(self, look: Callable[[Any], Value]) -> dict[int, Watched]:
        """Return the operations by the place of the equation that computes y.

        Args:
            look: from a variable to its origin.
        """
        if not self._found:
            return {}
        graph = outputs.Graph(self.jaxpr)
        every = [self._watched(i, layout, graph, look) for i, layout in self._found]
        return {each.chain[-1]: each for each in every}

    def _watched(
        self, i: int, layout: Layout, graph: outputs.Graph, look: Callable[[Any], Value]
    ) -> Watched:
        equation = self.jaxpr.eqns[i]
        weight = equation.invars[layout.operand]
        value = look(weight)
        output = outputs.to_output(
            graph, i, layout.channel_axes, lambda *added: _is_bias(look, *added)
        )
        y, bias = self.jaxpr.eqns[output.chain[-1]].outvars[0], output.bias
        order = tuple(output.numbers.ravel().tolist())
        padded = equation.invars[1 - layout.operand]
        x = outputs.before_padding(graph, padded, lambda atom: look(atom) == Value())
        names = self.facts.names
        added = look(bias).made_of if bias is not None else 0
        rank = len(shape_of(y))
        feature_axes = [axis - len(shape_of(padded)) for axis in layout.feature_axes]
        if len(shape_of(x)) != len(shape_of(padded)):  # patches of x, with features last
            feature_axes = [-1]
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
            input_channel_axes=tuple(feature_axes),
            shape=shape_of(y),
            dtype=values.aval(y).dtype.name,
            steps=self.place.steps,
            own=tuple(bool(value.scans >> i & 1) for i in range(len(self.place.steps))),
            counts=counts.of(equation, layout.operand),
            reads_parameters=look(x).made_of > 0,
        )
        return Watched(operation, output.chain, x, weight, bias, y)


def _is_bias(look: Callable[[Any], Value], atom: Any, channels: Axes) -> bool:
    """Return whether a summand is one parameter, and constant along all other axes."""
    value = look(atom)
    if value.signal or value.made_of.bit_count() != 1:
        return False
    others = {axis for axis, size in enumerate(shape_of(atom)) if size > 1 and axis not in channels}
    return others <= value.flat
