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
        parameters: the paths of all.
        bias: the path of its bias; None without one.
        operations: its calls in the model; several if it is shared.
        own: the lengths of the scans whose steps have weights of their own: () for one layer.
        order: the place of every layer of the stack among all layers, in the order of execution.
        channels: the shape of its channels.
        layout: the meaning of the axes of W.
        obstacle: why its output does not follow its parameters, if it does not.
    """

    name: str
    parameter: str
    parameters: tuple[str, ...]
    bias: str | None
    operations: tuple[Operation, ...]
    own: tuple[int, ...]
    order: tuple[int, ...]
    channels: tuple[int, ...]
    layout: Layout
    obstacle: str | None

    @property
    def follows(self) -> bool:
        """Whether its output follows its parameters."""
        return self.obstacle is None

    @property
    def number(self) -> int:
        """The number of its first call: no two layers have the same."""
        return self.operations[0].number

    @property
    def dtype(self) -> str:
        """The type of its output."""
        return self.operations[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its channels, after the axes of the stack."""
        return (*self.own, *self.channels)

    @property
    def calls(self) -> int:
        """The number of times that each layer of the stack is called."""
        return sum(math.prod(_shared_steps(operation)) for operation in self.operations)

    def names(self) -> list[str]:
        """Return the name of every layer of the stack."""
        steps = (f"[{']['.join(map(str, index))}]" for index in np.ndindex(*self.own))
        return [self.name + step for step in steps] if self.own else [self.name]


def _shared_steps(operation: Operation) -> list[int]:
    pairs = zip(operation.steps, operation.own, strict=True)
    return [length for length, own in pairs if not own]
