"""Fans of kernels: the weights that enter one output, and those that leave one input.

For a convolution kernel ``[k, k, c, d]``, ``fan_in`` is ``n = k²c`` and ``fan_out`` is
``n̂ = k²d`` (He et al. 2015, Eq. 7 and 12). A `Layout` gives the role of every axis, so that both
fans are also right for grouped, transposed, multi-axis and stacked kernels.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, get_args

Mode = Literal["fan_in", "fan_out", "fan_avg", "fan_geo_avg"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Roles of a kernel's axes; the default is ``[*window, in_features, out_features]``.

    All other axes are the window of a convolution.

    Attributes:
        in_axis: axis, or axes, of the input features.
        out_axis: axis, or axes, of the output features.
        batch_axis: axes that stack kernels of separate layers (`flax.linen.scan`, ``vmap``).
        feature_group_count: groups of a convolution; ``in_axis`` holds the inputs of one group,
            as in JAX and Flax, ``out_axis`` the outputs of all.
        strides: product of a convolution's strides. The papers count fans as if it were 1, the
            default. With the real one, an input is read by only 1/strides of the window.
        transposed: the convolution is transposed, so that an output reads only 1/strides of the
            window.
    """

    in_axis: int | tuple[int, ...] = -2
    out_axis: int | tuple[int, ...] = -1
    batch_axis: int | tuple[int, ...] = ()
    feature_group_count: int = 1
    strides: int = 1
    transposed: bool = False

    def __post_init__(self) -> None:
        for field in ("feature_group_count", "strides"):
            if getattr(self, field) < 1:
                raise ValueError(f"Layout: {field} is {getattr(self, field)}, expected at least 1.")

    def fans(self, shape: Sequence[int]) -> tuple[float, float]:
        """Return ``(fan_in, fan_out)`` of a kernel of this shape.

        Raises:
            ValueError: the shape lacks one of the axes, an axis has two roles or no entries, or
                the groups do not divide the output features.
        """
        batch, inputs, outputs, window = self.axes(shape)
        del batch
        size = math.prod(shape[i] for i in window)
        fan_in: float = size * math.prod(shape[i] for i in inputs)
        fan_out = size * math.prod(shape[i] for i in outputs) / self.feature_group_count
        if self.transposed:
            fan_in /= self.strides
        else:
            fan_out /= self.strides
        return fan_in, fan_out

    def fan(self, mode: Mode, shape: Sequence[int]) -> float:
        """Return the fan of a mode: one of the two fans, or their arithmetic or geometric mean."""
        return by_mode(*self.fans(shape))[mode]

    def axes(self, shape: Sequence[int]) -> tuple[list[int], list[int], list[int], list[int]]:
        """Return the axes, counted from 0, of the batch, the inputs, the outputs and the window."""
        rank = len(shape)
        roles = [_as_tuple(axis) for axis in (self.batch_axis, self.in_axis, self.out_axis)]
        named = [axis for role in roles for axis in role]
        if any(not -rank <= axis < rank for axis in named):
            raise ValueError(
                f"A kernel of shape {tuple(shape)} has no fans in {self}: expected at least "
                "[in_features, out_features]. For a bias or a slope use a constant."
            )
        batch, inputs, outputs = ([axis % rank for axis in role] for role in roles)
        taken = batch + inputs + outputs
        if len(set(taken)) < len(taken) or not inputs or not outputs:
            raise ValueError(
                f"{self} gives an axis of a kernel of shape {tuple(shape)} two roles, or gives the "
                "kernel no inputs or no outputs; expected one role per axis."
            )
        if 0 in shape:
            raise ValueError(f"A kernel of shape {tuple(shape)} has no weights to draw.")
        if math.prod(shape[i] for i in outputs) % self.feature_group_count:
            raise ValueError(
                f"{self}: the groups do not divide the output features of {tuple(shape)}."
            )
        return batch, inputs, outputs, [i for i in range(rank) if i not in taken]


PLAIN = Layout()  # [*window, in_features, out_features], no groups, stride 1


def fans(shape: Sequence[int], layout: Layout = PLAIN) -> tuple[float, float]:
    """Return ``(fan_in, fan_out)`` of a kernel, by default ``[*window, in, out]``."""
    return layout.fans(shape)


def _as_tuple(axis: int | tuple[int, ...]) -> tuple[int, ...]:
    return (axis,) if isinstance(axis, int) else tuple(axis)


def by_mode(fan_in: float, fan_out: float) -> dict[str, float]:
    """Return the two fans, and their arithmetic and geometric means."""
    return {
        "fan_in": fan_in,
        "fan_out": fan_out,
        "fan_avg": (fan_in + fan_out) / 2,
        "fan_geo_avg": math.sqrt(fan_in * fan_out),
    }
