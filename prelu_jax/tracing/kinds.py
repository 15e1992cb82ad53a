"""Names for the kinds of operations that a signal passes, from the equations of a jaxpr."""

import math
from typing import Any, NamedTuple

from jax.extend.core import JaxprEqn, Literal

BATCH = -1  # the batch as a source; other sources are indices of affine operations

RESIDUAL = "residual sum"
NORM = "normalisation"
RECTIFIER = "rectifier"
SOFTMAX = "softmax"
_EXP, _POWER, _SCALE = "exponential", "power", "learned scale"
_SUM, _MEAN, _POOL, _MAX = "sum over an axis", "mean", "average pool", "maximum"
_GATE = "product of activations"
_RANDOM = "random"  # random numbers, which make dropout or noise of a signal
_FACTOR = ("multiplied by ", "divided by ")
_UNARY = {
    "reduce_window_max": "max pool",
    **dict.fromkeys(("reduce_window_sum", "reduce_window"), _POOL),
    **dict.fromkeys(("reduce_max", "reduce_min"), _MAX),
    **dict.fromkeys(("reduce_sum", "cumsum"), _SUM),
    **dict.fromkeys(("exp", "exp2", "expm1"), _EXP),
    **dict.fromkeys(("square", "integer_pow", "pow"), _POWER),
    **dict.fromkeys(("erf", "erfc"), "erf"),
    **dict.fromkeys(("log", "log1p"), "logarithm"),
    **dict.fromkeys(("sin", "cos"), "sine"),
    "tanh": "tanh",
    "logistic": "sigmoid",
    "abs": "absolute value",
}
ACTIVATIONS = {RECTIFIER, "tanh", "sigmoid", "erf", _EXP, _POWER, "logarithm", "sine"}
MEANS = {_MEAN, _POOL}
SUMS = ("add", "add_any", "sub")
_INDEXED = ("gather", "dynamic_slice")
_PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general")


class Trail(NamedTuple):
    """The way to an array from the affine operations that it was computed from.

    Attributes:
        sources: the indices of these operations in the order of execution, and `BATCH`; none for a
            constant.
        kinds: the names of the operations since then.
        is_parameter: whether it is made of parameters alone.
    """

    sources: frozenset[int] = frozenset()
    kinds: tuple[str, ...] = ()
    is_parameter: bool = False

    def then(self, *kinds: str) -> "Trail":
        """Return the trail after more operations."""
        return self._replace(kinds=tuple(dict.fromkeys((*self.kinds, *kinds))))

    def without(self, *kinds: str) -> "Trail":
        """Return the trail with some names left out."""
        return self._replace(kinds=tuple(kind for kind in self.kinds if kind not in kinds))


def is_factor(kind: str) -> bool:
    """Return whether a name is that of a factor, a number or parameters."""
    return kind == _SCALE or kind.startswith(_FACTOR)


def merged(trails: list[Trail]) -> Trail:
    """Return the trail of an array that is computed from several arrays, or is one of them."""
    sources = frozenset().union(*(trail.sources for trail in trails))
    used = [trail for trail in trails if trail.sources] or trails
    kinds = dict.fromkeys(kind for trail in used for kind in trail.kinds)
    is_parameter = not sources and any(trail.is_parameter for trail in trails)
    return Trail(sources, tuple(kinds), is_parameter)


def after(equation: JaxprEqn, operands: list[Trail]) -> Trail:
    """Return the trail of an equation's results, unless it is a call or a sum of two signals."""
    name = equation.primitive.name
    if name in ("rsqrt", "sqrt") and not isinstance(equation.invars[0], Literal):
        return merged(operands)._replace(kinds=(NORM,))  # a statistic
    if name.startswith(("random_", "threefry", "rng_")):
        return Trail(kinds=(_RANDOM,))
    if name in _INDEXED and operands[0].sources:
        return operands[0]
    if name == "select_n":
        return _selected(operands)
    if name == "reduce_precision":
        return operands[0]
    if any(trail.sources for trail in operands):
        return _of_signal(name, equation, operands)
    return merged(operands)


def _of_signal(name: str, equation: JaxprEqn, operands: list[Trail]) -> Trail:
    signals = [trail for trail in operands if trail.sources]
    result = _combined(operands)
    if name in ("mul", "div"):
        return _scaled(name, equation, operands, result)
    if name in SUMS and len(signals) == 1:
        is_noisy = any(_RANDOM in trail.kinds for trail in operands)
        return result.then("noise") if is_noisy else result
    if name in _PRODUCTS:
        return result.then(_GATE) if len(signals) > 1 else result
    if name in ("max", "min"):
        return _cut(equation, operands, result)
    kind = _UNARY.get(name)
    if kind == "erf":  # gelu scales its input
        result = result._replace(kinds=tuple(k for k in result.kinds if not _is_partial(k)))
    return result.then(kind) if kind else result


def _combined(operands: list[Trail]) -> Trail:
    """Return the trail of signals that meet.

    Where signals from the same sources meet, an operation that only some of them passed belongs to
    a statistic, such as a subtracted mean, or to an activation: its sums and factors are left out.
    """
    signals = [trail for trail in operands if trail.sources]
    result = merged(signals)
    if len(signals) > 1 and len({trail.sources for trail in signals}) == 1:
        shared = set.intersection(*(set(trail.kinds) for trail in signals))
        kept = (kind for kind in result.kinds if kind in shared or not _is_partial(kind))
        result = result._replace(kinds=tuple(kept))
    return result


def _is_partial(kind: str) -> bool:
    return kind in (_SUM, _MEAN, _MAX, _POWER) or is_factor(kind)


def _scaled(name: str, equation: JaxprEqn, operands: list[Trail], result: Trail) -> Trail:
    """Return the trail of a product or a quotient."""
    first, second = operands[:2]
    if first.sources and second.sources:
        if name == "div":
            if _EXP in second.kinds:
                return result.without(_EXP, _SUM, _MEAN, _MAX).then(SOFTMAX)
            return result.then(NORM)
        return result if first.sources == second.sources else result.then(_GATE)
    constant = second if first.sources else first
    if NORM in constant.kinds:
        return result.then(NORM)
    if _RANDOM in constant.kinds:
        return result.then("dropout")
    if constant.is_parameter:
        return result.then(_SCALE)
    number = _number(equation.invars[1 if first.sources else 0])
    if number is not None and abs(number) == 1:
        return result
    if result.kinds[-1:] == (_SUM,):
        return result.without(_SUM).then(_MEAN)
    if result.kinds[-1:] in ((_MEAN,), (_POOL,)):
        return result  # a division by the number of entries
    how = _FACTOR[name == "div" and bool(first.sources)]
    return result.then(how + ("a constant" if number is None else f"{number:.3g}"))


def _number(atom: Any) -> float | None:
    """Return the value of a literal; None for other operands."""
    return float(atom.val) if isinstance(atom, Literal) else None


def _cut(equation: JaxprEqn, operands: list[Trail], result: Trail) -> Trail:
    """Return the trail of a maximum or a minimum."""
    numbers = [number for atom in equation.invars if (number := _number(atom)) is not None]
    if numbers and not math.isfinite(numbers[0]):
        return result
    return result.then("clipping" if numbers and numbers[0] else RECTIFIER)


def _selected(operands: list[Trail]) -> Trail:
    """Return the trail of a choice between arrays."""
    chosen, *cases = operands
    if not any(case.sources for case in cases):  # a choice between slopes
        return chosen.then(RECTIFIER) if chosen.sources else merged(operands)
    result = _combined(cases)
    if chosen.sources:
        return result.then(RECTIFIER)
    return result.then("dropout") if _RANDOM in chosen.kinds else result
