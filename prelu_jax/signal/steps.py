"""The steps of a drift from layer to layer, each split into kernel and operations between."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

from prelu_jax.signal import split
from prelu_jax.signal.measurement import LayerStatistics
from prelu_jax.tracing import kinds

_PLAIN = {*kinds.ACTIVATIONS, "learned scale", "dropout"}  # as a PReLU has slopes


@dataclasses.dataclass(frozen=True)
class Step:
    """The logs of the factors of a second moment from one layer to the next, or back.

    Attributes:
        layer: the one of the two layers whose kernel the step passes.
        start: the name of the layer that comes first in the order of execution.
        end: the name of the next one.
        total: log of the measured factor.
        kernel: log of fan · mean(w²).
        border: log of the factor of padded borders, for independent weights.
        between: log of the factor of the operations between the two layers.
        kinds: the names of these operations.
        plain: whether all of them are activations that keep the shape.
    """

    layer: LayerStatistics
    start: str
    end: str
    total: float
    kernel: float
    border: float
    between: float
    kinds: tuple[str, ...]
    plain: bool

    @property
    def where(self) -> str:
        """The two layers, with the operations between them."""
        names = f" ({', '.join(self.kinds)})" if self.kinds else ""
        return f"between {self.start} and {self.end}{names}"


Steps = Sequence[Step]
NOTHING = math.log(1e-300)  # in place of the log of 0


def steps(layers: Sequence[LayerStatistics], forward: bool) -> list[Step]:
    """Return the steps of a drift along the signal's way to the last layer (`split.path`).

    As in `verdict`, neither the data nor the last layer count.
    """
    way = split.path(layers)
    pairs = itertools.pairwise(way[1:] if forward else way[:-1])
    return [step for before, row in pairs if (step := _step(before, row, forward))]


def blocks(every: Steps) -> list[list[Step]]:
    """Return the steps in blocks that end at residual sums; without such sums one by one.

    Within a block the logs do not add up to the drift: the shortcut keeps what a branch loses.
    """
    ends = [i for i, step in enumerate(every) if kinds.RESIDUAL in step.kinds]
    starts = [0, *(i + 1 for i in ends)]
    within = [list(every[i : j + 1]) for i, j in zip(starts, ends, strict=False)]
    return [*within, *([step] for step in every[starts[-1] :])]


def _step(before: LayerStatistics, row: LayerStatistics, forward: bool) -> Step | None:
    """Return the step between two layers; None at a look-up and without a kernel."""
    layer = before if forward else row
    if before.input_second_moment is None or row.input_second_moment is None:
        return None
    if layer.kernel_rms is None or layer.kernel_shape is None:
        return None
    weights = math.prod(layer.kernel_shape)
    fan, expected = weights / layer.channels, layer.expected_kernel_factor
    between = row.between_factor
    total = _log(row.input_second_moment) - _log(before.input_second_moment)
    if not forward:
        fan = weights / layer.input_channels if layer.window else layer.channels
        expected, between = layer.expected_gradient_kernel_factor, row.gradient_between_factor
        total = _log(before.gradient_second_moment) - _log(row.gradient_second_moment)
    kernel = _log(fan * layer.kernel_rms**2)
    border = 0.0 if expected is None else _log(expected) - kernel
    if not forward and layer.window:  # strides, which spread the gradient
        border += math.log(math.prod(layer.input_shape) / layer.input_channels)
        border -= math.log(math.prod(layer.shape) / layer.channels)
    return Step(
        *(layer, before.name, row.name, total, kernel),
        border=border if layer.window else 0.0,
        between=total - kernel if between is None else _log(between),
        kinds=row.between,
        plain=before.shape == row.input_shape and _PLAIN.issuperset(row.between),
    )


def _log(value: float) -> float:
    return math.log(value) if value > 1e-300 else NOTHING
