"""Mistakes that show in a comparison of parameters: repeated draws, unequal depth scaling."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prelu_jax.initializers import candidates, statistics
from prelu_jax.initializers.audited import KERNELS, Audited, Finding
from prelu_jax.initializers.findings import SIGMAS
from prelu_jax.initializers.parameters import Parameter

_LIKE = 0.1  # difference of log variances up to which kernels follow one rule
_DEEP = 3  # fewest kernels that write to a residual stream, for a scale with depth
_SIZED = 256  # fewest weights of a kernel whose scale is compared


@dataclasses.dataclass
class Draws:
    """The draws seen so far, by the order of their numbers, to find a draw that repeats."""

    seen: dict[statistics.Order, tuple[str, NDArray[Any]]] = dataclasses.field(default_factory=dict)

    def add(self, parameter: Parameter, array: NDArray[Any]) -> Iterator[Finding]:
        """Yield findings about parts of a parameter that repeat an earlier draw."""
        if parameter.role not in KERNELS:
            return
        repeated = False
        for axis in range(array.ndim if array.ndim > 1 else 0):
            repeats = list(_repeated(parameter.name, array, axis))
            repeated = repeated or bool(repeats)
            yield from repeats
            if repeats:
                break
        order = statistics.order(array)
        if order is None:
            return
        if order in self.seen and not repeated:
            name, other = self.seen[order]
            related = statistics.relation(array, other)
            if related:
                yield _same_draw(parameter.name, f"{related} to {name}", array, other)
        head = array.reshape(-1)[: statistics.COMPARED].copy()
        self.seen.setdefault(order, (parameter.name, head))


def _same_draw(name: str, related: str, array: NDArray[Any], other: NDArray[Any]) -> Finding:
    count = min(array.size, other.size)
    subject = f"its first {count} numbers are" if array.size > count else "it is"
    advice = "Split the key, or ignore a copy that is intended"
    return Finding(name, "same draw", f"{subject} {related}", advice)


def _repeated(name: str, array: NDArray[Any], axis: int) -> Iterator[Finding]:
    """Yield a finding if slices along an axis repeat the draw of an earlier slice."""
    front = np.moveaxis(array, axis, 0)
    size = math.prod(front.shape[1:])
    if size < statistics.RANKED or len(front) < 2:
        return
    places: tuple[Any, ...] = np.unravel_index(np.arange(statistics.RANKED), front.shape[1:])
    heads = front[(slice(None), *places)]
    seen: dict[statistics.Order, int] = {}
    same: list[tuple[int, int, str]] = []
    for i, head in enumerate(heads):
        order = statistics.order(head)
        if order is None:
            continue
        if order in seen:
            related = statistics.relation(front[i], front[seen[order]])
            if related:
                same.append((i, seen[order], related))
        seen.setdefault(order, i)
    if same:
        i, j, related = same[0]
        more = f", and {len(same) - 1} more such slices" if len(same) > 1 else ""
        what = f"along axis {axis} slice {i} is {related} to slice {j}{more}"
        yield Finding(name, "same draw", what, "Split the key, or ignore copies that are intended")


def depth_scaling(parameters: Sequence[Audited]) -> Iterator[Finding]:
    """Yield kernels that break the rule for scaling with depth that the others keep.

    Either all or none of the kernels that write to a residual stream are divided by the square root
    of their number (Radford et al. 2019); other kernels are not.
    """
    kernels = [audited for audited in parameters if _is_compared(audited)]
    writers = [kernel for kernel in kernels if kernel.parameter.branch == "last"]
    others = [kernel.parameter.name for kernel in kernels if kernel.parameter.branch == "inside"]
    depth = sum(kernel.parameter.stacked for kernel in writers)
    if depth < _DEEP or not others:
        return
    expected = _rule_of_most(kernels)
    divisors = {k.parameter.name: _divisor(k, expected(k), depth) for k in kernels}
    scaled = {name: n for name, n in divisors.items() if n and n > 1}
    scaled_writers = [k.parameter.name for k in writers if k.parameter.name in scaled]
    if len({scaled[name] for name in scaled_writers}) > 1:
        return  # each by its own depth
    unscaled_writers = [k.parameter.name for k in writers if divisors[k.parameter.name] == 1]
    advice = "Scale all kernels that write to the stream, or none, and no others"
    for name in others:
        if name in scaled:
            what = (
                f"its std is 1/√{scaled[name]} of that by the rule of the other kernels, as if "
                "scaled with depth, but no residual sum adds its output"
            )
            if unscaled_writers:
                what += f"; {', '.join(unscaled_writers[:3])} write to the stream, not scaled"
            yield Finding(name, "depth scaling", what, advice)
    for name in unscaled_writers if scaled_writers else ():
        what = (
            "it writes to the residual stream and is not scaled by "
            f"1/√{scaled[scaled_writers[0]]}, unlike {', '.join(scaled_writers[:3])}"
        )
        yield Finding(name, "depth scaling", what, advice)


def _is_compared(audited: Audited) -> bool:
    """Return whether a parameter is a kernel of random numbers, large enough to compare."""
    parameter, measured = audited.parameter, audited.measured
    drawn = not measured.is_constant and not measured.nonfinite and measured.size >= _SIZED
    return parameter.role == "kernel" and bool(parameter.fan_in) and drawn


def _rule_of_most(kernels: Sequence[Audited]) -> Callable[[Audited], float]:
    """Return the rule, from kernel to variance, that most kernels keep: by a fan, or fixed."""

    def by(fan: str) -> Callable[[Audited], float]:
        return lambda kernel: 1 / candidates.fans(kernel.parameter)[fan]

    scalings: list[Callable[[Audited], float]] = [lambda kernel: 1.0]
    scalings += [by(fan) for fan in ("fan_in", "fan_out", "fan_avg")]

    ranked = []
    for scaling in scalings:
        logs = np.array([math.log(k.measured.second_moment / scaling(k)) for k in kernels])
        agreeing = (np.abs(logs[:, None] - logs) < _LIKE).sum(axis=1)
        most = agreeing.max()
        # If two scales fit equally many kernels, take the larger: depth makes kernels smaller.
        ranked.append((most, logs[agreeing == most].max(), scaling))
    _, scale, best = max(ranked, key=lambda entry: entry[0])
    return lambda kernel: math.exp(scale) * best(kernel)


def _divisor(kernel: Audited, expected: float, depth: int) -> int | None:
    """Return the divisor of a kernel's variance: 1, or a number of kernels; None for another."""
    slack = SIGMAS * math.sqrt(max(kernel.measured.kurtosis - 1, 0.1) / kernel.measured.size)
    slack = min(max(slack, 0.05), math.log(_DEEP) / 4)
    divided = math.log(expected / kernel.measured.second_moment)
    if abs(divided) < slack:
        return 1
    if kernel.fit.decided and kernel.fit.known:
        return None
    counts = (depth, 2 * depth, depth // 2)
    return next((n for n in counts if abs(divided - math.log(n)) < slack), None)
