"""A jaxpr with its affine operations, and those inside its calls."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from jax.extend.core import Jaxpr, Var

from prelu_jax.tracing.operations import Operation


@dataclasses.dataclass(frozen=True, eq=False)
class Watched:
    """The place of an operation in a jaxpr.

    Attributes:
        operation: its description.
        chain: the equations from the product to y, by their place in the jaxpr.
        x: the input, before any padding.
        weight: the weights.
        bias: the summand, in the shape of y; None without a bias.
        y: the output, bias included.
    """

    operation: Operation
    chain: tuple[int, ...]
    x: Any
    weight: Any
    bias: Any
    y: Var


@dataclasses.dataclass(frozen=True, eq=False)
class Body:
    """A jaxpr and the operations in it.

    Attributes:
        jaxpr: the computation.
        consts: the arrays that it closes over.
        watched: by the place of the equation that computes y, the operations.
        inner: by the place of the equation, the bodies of a call that holds operations.
    """

    jaxpr: Jaxpr
    consts: tuple[Any, ...]
    watched: Mapping[int, Watched]
    inner: Mapping[int, tuple["Body", ...]]

    @property
    def is_empty(self) -> bool:
        """Whether it holds no operation."""
        return not self.watched and not self.inner

    def operations(self) -> Iterator[Operation]:
        """Yield the operations in the order of execution, those of a scan once."""
        for place in sorted({*self.watched, *self.inner}):
            for body in self.inner.get(place, ()):
                yield from body.operations()
            if place in self.watched:
                yield self.watched[place].operation
