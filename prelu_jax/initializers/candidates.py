"""Variances that a parameter may have been drawn with, by right rules and by wrong ones."""

import dataclasses
import math
from collections.abc import Iterator

from prelu_jax.initializers.distributions import NORMAL, TRUNCATED, UNIFORM
from prelu_jax.initializers.fans import PLAIN, by_mode
from prelu_jax.initializers.fit import Candidate
from prelu_jax.initializers.parameters import Parameter

_GAINS = {"He, 2 / {}": 2.0, "1 / {}": 1.0}
_GAIN_OF_PRELU = 2 / (1 + 0.25**2)  # He et al. 2015, Eq. 15
_ONE = ("fan_in", "fan_out")
_FIXED = (0.01, 0.02, 1.0)  # common standard deviations
_ROUND = (0.001, 0.05, 0.1, 0.2)  # rarer ones, so that they do not count as a wrong rule
_SAME = 1e-6
# Logarithms of prior probabilities, relative to that of a right rule: a wrong rule, a right one
# with an unusual distribution, one divided by a number of layers, a rarer standard deviation.
_WRONG, _UNUSUAL, _BY_DEPTH, _LAST = -6.0, -7.0, -8.0, -9.5

_LIMIT = "wrong limit"
TRANSPOSED = "the kernel is stored [out, in], and the rule takes its axes for [in, out]"
_RARE = ("1 / fan_out", "He, 2 / fan_avg", "He, 2 / fan_out")
_PLAIN_NAMES = {"1 / fan_in": "LeCun, 1 / fan_in", "1 / fan_avg": "Xavier, 1 / fan_avg"}


def possible(parameter: Parameter, depth: int = 1, has_slopes: bool = False) -> list[Candidate]:
    """Return the variances that a parameter of this role and these fans may have.

    Args:
        parameter: the description of the parameter.
        depth: number of kernels of the model that write to a residual stream.
        has_slopes: whether the model has rectifiers with slopes, which are 0.25 at first.
    """
    choices = [Candidate(f"std {std:g}", std**2) for std in _FIXED]
    choices += [Candidate(f"std {std:g}", std**2, log_prior=_LAST) for std in _ROUND]
    if parameter.role == "look-up":
        features = parameter.shape[-1]
        choices.append(Candidate("1 / features", 1 / features))
    if parameter.fan_in is None or parameter.fan_out is None:
        return choices
    right = dict(_right(parameter))
    if has_slopes:
        by_fan = {fan: _GAIN_OF_PRELU / value for fan, value in fans(parameter).items()}
        right |= {f"He for PReLU, {_GAIN_OF_PRELU:.4g} / {fan}": by_fan[fan] for fan in _ONE}
    swapped = _is_stored_reversed(parameter) and len(parameter.shape) == 2
    for name, variance in right.items():
        fault = TRANSPOSED if swapped and "fan_out" in name else ""
        choices += _by_distribution(name, variance, fault)
        if name not in _RARE and "PReLU" not in name:
            choices += _by_wrong_limit(name, variance)
        choices += [
            Candidate(f"{name} / {kernels}", variance / kernels, "", None, _BY_DEPTH, by_depth=True)
            for kernels in (depth // 2, depth, 2 * depth)
            if kernels > 2 and parameter.branch
        ]
    for axis in parameter.out_axes if len(parameter.out_axes) > 1 else ():
        # The axis may count separate kernels, of experts that share an input, and not features.
        one = dataclasses.replace(parameter, fan_out=parameter.fan_out / parameter.shape[axis])
        choices += [
            Candidate(f"{name} of each along axis {axis}", variance)
            for name, variance in _right(one)
            if "fan_in" not in name
        ]
    for fan, value, fault in wrong_fans(parameter):
        for name, gain in _BY_MISTAKE[fan].items():
            choices.append(Candidate(f"{name} of {value:g}", gain / value, fault, None, _WRONG))
    return choices


# Rules that may have used a wrong fan.
_BY_MISTAKE = {
    "fan_in": {"He, 2 / fan_in": 2.0, "LeCun, 1 / fan_in": 1.0},
    "fan_out": {},
    "fan_avg": {"Xavier, 1 / fan_avg": 1.0},
    "fan_geo_avg": {},
}


def fans(parameter: Parameter) -> dict[str, float]:
    """Return the fans of a kernel by their names."""
    fan_in, fan_out = parameter.fan_in, parameter.fan_out
    if fan_in is None or fan_out is None:
        return {}
    return by_mode(fan_in, fan_out)


def wrong_fans(parameter: Parameter) -> Iterator[tuple[str, float, str]]:
    """Yield the fans that result from a mistake: the name, the value, the mistake."""
    right = fans(parameter)
    listed = {name: [value] for name, value in right.items()}  # right ones, and earlier mistakes
    shape, stacked, groups = parameter.shape, parameter.stacked, parameter.groups
    mistakes: list[tuple[float, float, str]] = []
    if stacked > 1:
        fault = f"the rule counts the {stacked} kernels that are stacked in it as one"
        mistakes.append((right["fan_in"] * stacked, right["fan_out"] * stacked, fault))
    if groups > 1:
        fault = f"the rule ignores the {groups} groups"
        mistakes.append((right["fan_in"], right["fan_out"] * groups, fault))
        mistakes.append((right["fan_in"] * groups, right["fan_out"] * groups, fault))
    if len(shape) > 1:
        if _is_stored_reversed(parameter):
            fault = TRANSPOSED
        elif len(parameter.in_axes) + len(parameter.out_axes) > 2:
            fault = (
                f"the rule takes all axes of {list(shape)} except the last two for a window; "
                f"inputs are axes {list(parameter.in_axes)}, outputs axes "
                f"{list(parameter.out_axes)}"
            )
        else:
            fault = f"the rule takes {list(shape)} for [*window, in, out]"
        mistakes.append((*PLAIN.fans(shape), fault))
    for fan_in, fan_out, fault in mistakes:
        for name, value in by_mode(fan_in, fan_out).items():
            if not any(math.isclose(value, other, rel_tol=_SAME) for other in listed[name]):
                listed[name].append(value)
                yield name, value, fault


def _right(parameter: Parameter) -> Iterator[tuple[str, float]]:
    """Yield the rules of He, LeCun and Xavier; rules that coincide for these fans only once."""
    named = fans(parameter)
    if named["fan_in"] == named["fan_out"]:
        yield "He, 2 / fan", 2 / named["fan_in"]
        yield "LeCun and Xavier, 1 / fan", 1 / named["fan_in"]
        return
    for name, gain in _GAINS.items():
        for fan in ("fan_in", "fan_out", "fan_avg"):
            yield _named(name.format(fan)), gain / named[fan]


def _by_distribution(name: str, variance: float, fault: str) -> list[Candidate]:
    """Return the candidates of a rule; Gaussian is the usual distribution for 1 / fan_out."""
    if name != "1 / fan_out":
        return [Candidate(name, variance, fault)]
    return [
        Candidate(name, variance, fault, NORMAL),
        *(Candidate(name, variance, fault, only, _UNUSUAL) for only in (TRUNCATED, UNIFORM)),
    ]


def _named(name: str) -> str:
    return _PLAIN_NAMES.get(name, name)


def _by_wrong_limit(name: str, variance: float) -> Iterator[Candidate]:
    """Yield the variances that result from a mix-up of a uniform's limit and its std."""
    fault = "the limits are one standard deviation from 0 instead of √3"
    if name.startswith("LeCun"):
        fault += ", as by default in PyTorch and Equinox"
    yield Candidate(f"a third of {name}", variance / 3, fault, UNIFORM, _WRONG, kind=_LIMIT)
    fault = "the standard deviation is the limit of a uniform distribution, √3 times too large"
    yield Candidate(f"three times {name}", 3 * variance, fault, NORMAL, _WRONG, kind=_LIMIT)


def _is_stored_reversed(parameter: Parameter) -> bool:
    """Return whether the axes of outputs precede those of inputs."""
    if not parameter.in_axes or not parameter.out_axes:
        return False
    return max(parameter.out_axes) < min(parameter.in_axes)
