"""A function traced once, read, and ready to be run with an observer."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr

from prelu_jax.tracing import between, evaluation, jaxprs, reading
from prelu_jax.tracing.between import Feed
from prelu_jax.tracing.evaluation import ByNumber, Observe, Visit
from prelu_jax.tracing.operations import Body, Operation
from prelu_jax.tracing.reading import Reading

Axes = Sequence[tuple[str, int]]  # of devices: name, size


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A function of parameters, other arrays and a batch, traced and read.

    Attributes:
        names: its parameters, in the order of its inputs.
        reading: its operations, and the parameters that it sees and does not.
        shapes: the shapes and types of the outputs, as the pytree that the function returns.
        first_of_batch: the index of the batch's first array among its inputs.
        axes: the axes of devices that it was traced with, where the caller has bound none.
    """

    names: tuple[str, ...]
    reading: Reading
    shapes: Any
    first_of_batch: int
    axes: Axes = ()

    @property
    def operations(self) -> tuple[Operation, ...]:
        """The affine operations in the order of execution, those of a scan once."""
        return self.reading.operations

    @property
    def has_effects(self) -> bool:
        """Return whether the program has side effects, such as a callback that prints."""
        return bool(self.reading.body.jaxpr.effects)

    @property
    def tables(self) -> set[str]:
        """The parameters whose rows are looked up by data."""
        look_ups = (each for each in self.operations if each.kind == "look-up")
        return {name for operation in look_ups for name in operation.parameters}

    def run(
        self,
        parameters: Mapping[str, Any],
        others: Any,
        batch: Any,
        observe: Observe,
        given: Mapping[int, Any] | None = None,
    ) -> tuple[Any, ByNumber]:
        """Run the function, with the observer's output in place of every operation's.

        Args:
            parameters, others, batch: in the shapes that it was traced with.
            observe, given: see `evaluation.run`.

        Returns:
            The outputs, and the observer's records by operation's number (`evaluation.run`).
        """
        leaves = [parameters[name] for name in self.names]
        arguments = [*leaves, *jax.tree.leaves((others, batch))]
        outputs, records = evaluation.run(self.reading.body, arguments, observe, given or {})
        return jax.tree.unflatten(jax.tree.structure(self.shapes), outputs), records

    def rows(self) -> list[tuple[Operation, tuple[int, ...]]]:
        """Return every operation at every step of the scans around it, as they are executed."""
        return list(_rows(self.reading.body, ()))

    def feeds(self) -> list[Feed]:
        """Return for each of the `rows` which others feed its input, through which operations."""
        return between.feeds(self.reading.body, len(self.names), self.first_of_batch)

    def weights(self, parameters: Mapping[str, Any], others: Any, batch: Any) -> dict[int, Any]:
        """Return every operation's W, with the axes of scans first; nothing else is computed.

        Arrays may be tracers, and shapes alone where W does not depend on them.
        """
        return self.records(_weight, parameters, others, batch).values()

    def depends_on(
        self, observe: Observe, parameters: Mapping[str, Any], others: Any, batch: Any
    ) -> set[str]:
        """Return the parameters that the outputs depend on with an observer; compute nothing."""

        def outputs(leaves: Sequence[Any], held: Sequence[Any]) -> list[Any]:
            return evaluation.run(self.reading.body, [*leaves, *held], observe, {})[0]

        leaves = [parameters[name] for name in self.names]
        held = jax.tree.leaves((others, batch))
        closed = jax.make_jaxpr(outputs, axis_env=list(self.axes))(leaves, held)
        _, taken = jaxprs.without_unused(closed, [True] * len(closed.jaxpr.outvars))
        return {self.names[i] for i in taken if i < len(self.names)}

    def records(
        self, observe: Observe, parameters: Mapping[str, Any], others: Any, batch: Any
    ) -> "Records":
        """Return an observer's records, of all branches, as a function; compute nothing."""
        held = jax.tree.leaves((others, batch))

        def of(leaves: Sequence[Any], held: Sequence[Any]) -> ByNumber:
            inputs = [*leaves, *held]
            return evaluation.run(self.reading.body, inputs, observe, {}, every_branch=True)[1]

        leaves = [parameters[name] for name in self.names]
        made = jax.make_jaxpr(of, axis_env=list(self.axes), return_shape=True)
        closed, shapes = made(leaves, held)
        every = [True] * len(jax.tree.leaves(shapes))
        reduced, taken = jaxprs.without_unused(closed, every)
        arguments = [*leaves, *held]
        names = [*self.names, *[None] * len(held)]
        return Records(
            reduced, shapes, tuple(names[i] for i in taken), tuple(arguments[i] for i in taken)
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """The records of an observer, without the rest of the function.

    Attributes:
        closed: the jaxpr of all of them.
        shapes: by operation's number, the pytree of their shapes and types.
        names: of each of its inputs the parameter's; None for one that is no parameter.
        arguments: its inputs.
    """

    closed: ClosedJaxpr
    shapes: ByNumber
    names: tuple[str | None, ...]
    arguments: tuple[Any, ...]

    def values(self) -> ByNumber:
        """Return the records."""
        found = jax.core.eval_jaxpr(self.closed.jaxpr, self.closed.consts, *self.arguments)
        return dict(jax.tree.unflatten(jax.tree.structure(self.shapes), found))

    def function(self, place: int) -> tuple[ClosedJaxpr, list[str | None]]:
        """Return one array of the records as a function of the inputs that it takes.

        Args:
            place: of the array among the leaves of ``shapes``.

        Returns:
            The function, and the names of its arguments.
        """
        used = [i == place for i in range(len(self.closed.jaxpr.outvars))]
        reduced, taken = jaxprs.without_unused(self.closed, used)
        return reduced, [self.names[i] for i in taken]


def _weight(visit: Visit) -> tuple[jax.Array, Any]:
    return visit.y, visit.weight


def trace(
    function: Callable[..., Any],
    parameters: Mapping[str, Any],
    others: Any,
    batch: Any,
    names: Sequence[str | None] = (),
    axes: Axes = (),
    without_rules: bool = False,
) -> Program:
    """Return ``function(parameters, others, batch)`` as a program; nothing is computed.

    Args:
        function: returns a pytree of arrays.
        parameters: by name.
        others: a pytree of arrays.
        batch: the pytree of arrays that the signal comes from.
        names: for every array of the others a name if it may be a weight, else None.
        axes: the axes of devices that collectives ask for, where the caller has bound none.
        without_rules: see into functions with a derivative of their own. The program computes the
            same, and is not to be differentiated.
    """

    def of_leaves(leaves: Sequence[Any], others: Any, batch: Any) -> Any:
        return function(dict(zip(parameters, leaves, strict=True)), others, batch)

    leaves = list(parameters.values())
    with jax.disable_jit(False):  # else loops are unrolled
        made = jax.make_jaxpr(of_leaves, axis_env=list(axes), return_shape=True)
        closed, shapes = made(leaves, others, batch)
        closed = jaxprs.inlined(closed, axes, without_rules)
    held = len(jax.tree.leaves(others))
    first = len(leaves) + held
    every = [*parameters, *(names or [None] * held)]
    signal = range(first, first + len(jax.tree.leaves(batch)))
    return Program(
        tuple(parameters), reading.read(closed, every, signal), shapes, first, tuple(axes)
    )


def _rows(body: Body, index: tuple[int, ...]) -> Iterator[tuple[Operation, tuple[int, ...]]]:
    for place in sorted({*body.watched, *body.inner}):
        equation = body.jaxpr.eqns[place]
        for inner in body.inner.get(place, ()):
            if equation.primitive.name == "scan":
                steps = range(equation.params["length"])
                for step in reversed(steps) if equation.params["reverse"] else steps:
                    yield from _rows(inner, (*index, step))
            else:
                yield from _rows(inner, index)
        if place in body.watched:
            yield body.watched[place].operation, index


def at(records: Any, index: tuple[int, ...]) -> Any:
    """Return the record of one step."""
    return jax.tree.map(lambda leaf: leaf[index], records)
