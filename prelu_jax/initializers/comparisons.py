"""Mistakes that show between parameters: the same draw twice, kernels scaled against the others."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prelu_jax.initializers import candidates, statistics
from prelu_jax.initializers.findings import KERNELS, SIGMAS, Audited, Finding
from prelu_jax.initializers.parameters import Parameter

_LIKE = 0.1  # of the logarithm of a variance: kernels of one rule
_DEEP = 3  # kernels that write to a residual stream, for a scale with depth
_SIZED = 256  # weights of a kernel whose scale is compared with others'


@dataclasses.dataclass
class Draws:
    """The orders of the draws before, by which the same draw is found again."""

    seen: dict[statistics.Order, tuple[str, NDArray[Any]]] = dataclasses.field(default_factory=dict)

    def add(self, parameter: Parameter, array: NDArray[Any]) -> Iterator[Finding]:
        """Yield the parts of a parameter that are the same draw as one before."""
        if parameter.role not in KERNELS:
            return
        repeated = False
        for axis in range(array.ndim if array.ndim > 1 else 0):
            found = list(_repeated(parameter.name, array, axis))
            repeated = repeated or bool(found)
            yield from found
            if found:
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


def _same_draw(name: str, what: str, array: NDArray[Any], other: NDArray[Any]) -> Finding:
    count = min(array.size, other.size)
    figures = f"its first {count} numbers are {what}" if array.size > count else f"it is {what}"
    return Finding(name, "same draw", figures, "Split the key, or ignore a copy that is meant")


def _repeated(name: str, array: NDArray[Any], axis: int) -> Iterator[Finding]:
    """Yield the slices along an axis that are the same draw as one before."""
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
        yield Finding(name, "same draw", what, "Split the key, or ignore copies that are meant")


def of_depth(every: Sequence[Audited]) -> Iterator[Finding]:
    """Yield kernels scaled with depth against the rule of the others.

    Those that write to a residual stream are scaled by the square root of their number, all or none
    (Radford et al. 2019); others are not.
    """
    kernels = [
        each
        for each in every
        if each.parameter.role == "kernel"
        and each.parameter.fan_in
        and not each.found.is_constant
        and not each.found.nonfinite
        and each.found.size >= _SIZED
    ]
    writers = [each for each in kernels if each.parameter.branch == "last"]
    others = [each for each in kernels if each.parameter.branch == "inside"]
    depth = sum(each.parameter.stacked for each in writers)
    if depth < _DEEP or not others:
        return
    expected = _rule_of_most(kernels)
    divisors = {each.parameter.name: _divisor(each, expected(each), depth) for each in kernels}
    scaled = {name: n for name, n in divisors.items() if n and n > 1}
    if len({scaled[w.parameter.name] for w in writers if w.parameter.name in scaled}) > 1:
        return  # each by its own depth
    left = [each.parameter.name for each in writers if divisors[each.parameter.name] == 1]
    found = [each.parameter.name for each in writers if each.parameter.name in scaled]
    advice = "Scale all kernels that write to the stream, or none, and no others"
    for each in others:
        name = each.parameter.name
        if name in scaled:
            what = (
                f"its std is 1/√{scaled[name]} of that by the rule of the other kernels, as if "
                "scaled with depth, and no residual sum adds its output"
            )
            what += f"; {', '.join(left[:3])} write to the stream, not scaled" if left else ""
            yield Finding(name, "depth scaling", what, advice)
    for name in left if found else ():
        what = (
            f"it writes to the residual stream, not scaled by 1/√{scaled[found[0]]} as "
            f"{', '.join(found[:3])}"
        )
        yield Finding(name, "depth scaling", what, advice)


def _rule_of_most(kernels: Sequence[Audited]) -> Callable[[Audited], float]:
    """Return the variance of a kernel by the rule that most kernels keep: by a fan, or fixed."""

    def by(fan: str) -> Callable[[Audited], float]:
        return lambda each: 1 / candidates.fans(each.parameter)[fan]

    scalings: list[Callable[[Audited], float]] = [lambda each: 1.0]
    scalings += [by(fan) for fan in ("fan_in", "fan_out", "fan_avg")]

    ranked = []
    for scaling in scalings:
        logs = np.array([math.log(each.found.second_moment / scaling(each)) for each in kernels])
        agreeing = (np.abs(logs[:, None] - logs) < _LIKE).sum(axis=1)
        most = agreeing.max()
        # Of two scales for as many kernels the larger: depth makes kernels smaller.
        ranked.append((most, logs[agreeing == most].max(), scaling))
    _, scale, best = max(ranked, key=lambda each: each[0])
    return lambda each: math.exp(scale) * best(each)


def _divisor(each: Audited, expected: float, depth: int) -> int | None:
    """Return the divisor of the variance: 1, or a number of kernels; None for another."""
    slack = SIGMAS * math.sqrt(max(each.found.kurtosis - 1, 0.1) / each.found.size)
    slack = min(max(slack, 0.05), math.log(_DEEP) / 4)
    divided = math.log(expected / each.found.second_moment)
    if abs(divided) < slack:
        return 1
    if each.fit.decided and each.fit.known:
        return None
    counts = (depth, 2 * depth, depth // 2)
    return next((n for n in counts if abs(divided - math.log(n)) < slack), None)
