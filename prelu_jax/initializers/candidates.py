"""The variances that a parameter may have been drawn with: by right rules, and by wrong ones."""

import dataclasses
import math
from collections.abc import Iterator

from prelu_jax.initializers.fans import PLAIN
from prelu_jax.initializers.fit import NORMAL, TRUNCATED, UNIFORM, Candidate
from prelu_jax.initializers.parameters import Parameter

_GAINS = {"He, 2 / {}": 2.0, "1 / {}": 1.0}
_GAIN_OF_PRELU = 2 / (1 + 0.25**2)  # He et al. 2015, Eq. 15
_ONE = ("fan_in", "fan_out")
_FIXED = (0.01, 0.02, 1.0)  # standard deviations that are in use
_ROUND = (0.001, 0.05, 0.1, 0.2)  # others, so that they are not mistaken for a wrong rule
_SAME = 1e-6
# The logarithms of how likely rules are beforehand: wrong ones, those of a fan that nobody uses
# with the distribution, those divided by a number of layers, round numbers.
_WRONG, _UNUSUAL, _BY_DEPTH, _LAST = -6.0, -7.0, -8.0, -9.5

_LIMIT = "wrong limit"
TRANSPOSED = "the kernel is stored [out, in], and the rule takes its axes for [in, out]"
_RARE = ("1 / fan_out", "He, 2 / fan_avg", "He, 2 / fan_out")
_PLAIN_NAMES = {"1 / fan_in": "LeCun, 1 / fan_in", "1 / fan_avg": "Xavier, 1 / fan_avg"}


def of(parameter: Parameter, depth: int = 1, has_slopes: bool = False) -> list[Candidate]:
    """Return the variances that a parameter of this role and these fans may have.

    Args:
        parameter: its description.
        depth: how many kernels of the model write to a residual stream.
        has_slopes: whether the model has rectifiers with slopes, which begin at 0.25.
    """
    found = [Candidate(f"std {std:g}", std**2) for std in _FIXED]
    found += [Candidate(f"std {std:g}", std**2, log_prior=_LAST) for std in _ROUND]
    if parameter.role == "look-up":
        features = parameter.shape[-1]
        found.append(Candidate("1 / features", 1 / features))
    if parameter.fan_in is None or parameter.fan_out is None:
        return found
    right = dict(_right(parameter))
    if has_slopes:
        by_fan = {fan: _GAIN_OF_PRELU / value for fan, value in fans(parameter).items()}
        right |= {f"He for PReLU, {_GAIN_OF_PRELU:.4g} / {fan}": by_fan[fan] for fan in _ONE}
    swapped = _is_stored_reversed(parameter) and len(parameter.shape) == 2
    for name, variance in right.items():
        fault = TRANSPOSED if swapped and "fan_out" in name else ""
        found += _by_distribution(name, variance, fault)
        if name not in _RARE and "PReLU" not in name:
            found += _by_wrong_limit(name, variance)
        found += [
            Candidate(f"{name} / {kernels}", variance / kernels, "", None, _BY_DEPTH, by_depth=True)
            for kernels in (depth // 2, depth, 2 * depth)
            if kernels > 2 and parameter.branch
        ]
    for axis in parameter.out_axes if len(parameter.out_axes) > 1 else ():
        # It may count kernels, of experts that share an input, and not features.
        one = dataclasses.replace(parameter, fan_out=parameter.fan_out / parameter.shape[axis])
        each = f"of each along axis {axis}"
        found += [
            Candidate(f"{name} {each}", variance)
            for name, variance in _right(one)
            if "fan_in" not in name
        ]
    for fan, value, fault in wrong_fans(parameter):
        for name, gain in _BY_MISTAKE[fan].items():
            found.append(Candidate(f"{name} of {value:g}", gain / value, fault, None, _WRONG))
    return found


# By a fan that was counted wrongly: the rules in use.
_BY_MISTAKE = {
    "fan_in": {"He, 2 / fan_in": 2.0, "LeCun, 1 / fan_in": 1.0},
    "fan_out": {},
    "fan_avg": {"Xavier, 1 / fan_avg": 1.0},
}


def fans(parameter: Parameter) -> dict[str, float]:
    """Return the fans of a kernel by their names."""
    fan_in, fan_out = parameter.fan_in, parameter.fan_out
    if fan_in is None or fan_out is None:
        return {}
    return {
        "fan_in": fan_in,
        "fan_out": fan_out,
        "fan_avg": (fan_in + fan_out) / 2,
        "fan_geo_avg": math.sqrt(fan_in * fan_out),
    }


def wrong_fans(parameter: Parameter) -> Iterator[tuple[str, float, str]]:
    """Yield the fans that one gets by a mistake: the name, the value, the mistake."""
    right = fans(parameter)
    taken = {name: [value] for name, value in right.items()}  # right, or of a mistake before
    shape, stacked, groups = parameter.shape, parameter.stacked, parameter.groups
    every: list[tuple[float, float, str]] = []
    if stacked > 1:
        fault = f"the rule counts the {stacked} kernels that are stacked in it as one"
        every.append((right["fan_in"] * stacked, right["fan_out"] * stacked, fault))
    if groups > 1:
        fault = f"the rule ignores the {groups} groups"
        every.append((right["fan_in"], right["fan_out"] * groups, fault))
        every.append((right["fan_in"] * groups, right["fan_out"] * groups, fault))
    if len(shape) > 1:
        if _is_stored_reversed(parameter):
            fault = TRANSPOSED
        elif len(parameter.in_axes) + len(parameter.out_axes) > 2:
            fault = (
                f"the rule takes all axes of {list(shape)} but the last two for a window; inputs "
                f"are axes {list(parameter.in_axes)}, outputs axes {list(parameter.out_axes)}"
            )
        else:
            fault = f"the rule takes {list(shape)} for [*window, in, out]"
        every.append((*PLAIN.fans(shape), fault))
    for fan_in, fan_out, fault in every:
        values = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
        for name, value in values.items():
            if not any(math.isclose(value, each, rel_tol=_SAME) for each in taken[name]):
                taken[name].append(value)
                yield name, value, fault


def _right(parameter: Parameter) -> Iterator[tuple[str, float]]:
    """Yield the rules of He, LeCun and Xavier, those that are one for these fans once."""
    named = fans(parameter)
    if named["fan_in"] == named["fan_out"]:
        yield "He, 2 / fan", 2 / named["fan_in"]
        yield "LeCun and Xavier, 1 / fan", 1 / named["fan_in"]
        return
    for name, gain in _GAINS.items():
        for fan in ("fan_in", "fan_out", "fan_avg"):
            yield _named(name.format(fan)), gain / named[fan]


def _by_distribution(name: str, variance: float, fault: str) -> list[Candidate]:
    """Return a rule; that of He et al. 2015 for Xavier, 1 / fan_out, is in use for Gaussians."""
    if name != "1 / fan_out":
        return [Candidate(name, variance, fault)]
    return [
        Candidate(name, variance, fault, NORMAL),
        *(Candidate(name, variance, fault, only, _UNUSUAL) for only in (TRUNCATED, UNIFORM)),
    ]


def _named(name: str) -> str:
    return _PLAIN_NAMES.get(name, name)


def _by_wrong_limit(name: str, variance: float) -> Iterator[Candidate]:
    """Yield the variances of a uniform with the std for its limit, and of a normal the reverse."""
    fault = "the limits are one standard deviation from 0 instead of √3"
    if name.startswith("LeCun"):
        fault += "; PyTorch and Equinox draw so by default"
    yield Candidate(f"a third of {name}", variance / 3, fault, UNIFORM, _WRONG, kind=_LIMIT)
    fault = "the standard deviation is the limit that a uniform distribution would have, √3 more"
    yield Candidate(f"three times {name}", 3 * variance, fault, NORMAL, _WRONG, kind=_LIMIT)


def _is_stored_reversed(parameter: Parameter) -> bool:
    """Whether the axes of outputs come before those of inputs."""
    if not parameter.in_axes or not parameter.out_axes:
        return False
    return max(parameter.out_axes) < min(parameter.in_axes)
