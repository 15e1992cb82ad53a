"""The layers of a model that a calibration corrects."""

import dataclasses
import math

import numpy as np

from prelu_jax.initializers import Layout
from prelu_jax.tracing import Operation


@dataclasses.dataclass(frozen=True)
class Layer:
    """An affine layer that is to be corrected, or a stack of them: one for each step of a scan.

    Attributes:
        name: its path in the model.
        parameter: the path of its kernel: of the largest of them, where W is made of several.
        operations: its calls in the model; several if it is shared.
        order: the place of every layer of the stack among all layers, in the order of execution.
        layout: the meaning of the axes of W.
        obstacle: why its output does not follow its parameters, if it does not.
    """

    name: str
    parameter: str
    operations: tuple[Operation, ...]
    order: tuple[int, ...]
    layout: Layout
    obstacle: str | None

    @property
    def first(self) -> Operation:
        """Its first call."""
        return self.operations[0]

    @property
    def number(self) -> int:
        """The number of its first call: no two layers have the same."""
        return self.first.number

    @property
    def follows(self) -> bool:
        """Return whether the output scales with the parameters."""
        return self.obstacle is None

    @property
    def has_bias(self) -> bool:
        """Return whether a parameter is added to the output."""
        return self.first.bias is not None

    @property
    def own(self) -> tuple[int, ...]:
        """The lengths of the scans whose steps have weights of their own: () for one layer."""
        return self.first.of_own_scans(self.first.steps)

    @property
    def channels(self) -> tuple[int, ...]:
        """The shape of its channels."""
        return self.first.channels

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its channels, after the axes of the stack."""
        return (*self.own, *self.channels)

    @property
    def calls(self) -> int:
        """The number of times that each layer of the stack is called."""
        steps = sum(math.prod(operation.steps) for operation in self.operations)
        return steps // math.prod(self.own)

    def names(self) -> list[str]:
        """Return the name of every layer of the stack."""
        steps = (f"[{']['.join(map(str, index))}]" for index in np.ndindex(*self.own))
        return [self.name + step for step in steps] if self.own else [self.name]


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A weight that a calibration leaves as it is.

    Attributes:
        parameter: its path.
        why: the reason.
    """

    parameter: str
    why: str
