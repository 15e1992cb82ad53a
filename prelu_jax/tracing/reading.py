"""The affine operations of a function, read off its jaxpr.

Every array is followed from where it comes: parameters, the batch, or both (`values`). A product of
an array made of parameters alone with one that depends on the batch is an *affine operation*: a
matrix product, a convolution or a look-up (a product with one-hot rows). It is found inside `scan`,
`checkpoint`, `jit` and `cond` as well as outside. The bias is the parameter that the next sum adds.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from jax.extend.core import ClosedJaxpr

from prelu_jax.tracing import jaxprs, values
from prelu_jax.tracing.bodies import Body
from prelu_jax.tracing.operations import Operation
from prelu_jax.tracing.reader import Place, Reader
from prelu_jax.tracing.values import Value


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """The affine operations of a function, and the parameters that it has no operation for.

    Attributes:
        body: the function.
        seen: the parameters that an operation multiplies with data.
        used: the parameters that the outputs depend on.
        unseen: the other parameters that data is multiplied with, and where: the calls around the
            product, outermost first.
        effects: of parameters that meet data elementwise, what they do (`Reader`).
    """

    body: Body
    seen: tuple[str, ...]
    used: tuple[str, ...]
    unseen: Mapping[str, tuple[str, ...]]
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
    listed = tuple(name or "" for name in names)
    reader = Reader(listed)
    body, results = reader.body(*jaxprs.opened(closed), inputs, Place())
    if as_data := reader.of_data & reader.of_constants:
        reader = Reader(listed, as_data)
        body, results = reader.body(*jaxprs.opened(closed), inputs, Place())
    for value in results:
        reader.used |= value.made_of
        if value.signal:
            reader.miss(value.weights, ())
    body = _numbered(body, iter(range(len([*body.operations()]))))
    seen = values.union(
        1 << reader.names.index(name)
        for operation in body.operations()
        for name in operation.parameters
    )
    reader.miss(reader.products & ~seen, ())
    used = reader.used | seen | values.union(1 << i for i in reader.missed)
    return Reading(
        body,
        tuple(reader.names[i] for i in values.members(seen)),
        tuple(reader.names[i] for i in values.members(used)),
        {reader.names[i]: inside for i, inside in sorted(reader.missed.items())},
        {reader.names[i]: frozenset(effects) for i, effects in sorted(reader.effects.items())},
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
