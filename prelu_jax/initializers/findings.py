"""Mistakes in a model's parameters, and the remedies.

A finding by chance is as rare as a Gaussian beyond `SIGMAS` standard deviations, 2e-9.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prelu_jax.initializers import candidates, fit, rules
from prelu_jax.initializers.declared import Declared
from prelu_jax.initializers.fit import Fit
from prelu_jax.initializers.parameters import Parameter
from prelu_jax.initializers.statistics import Statistics

SIGMAS = 6.0
_NEAR = 3.0  # standard deviations within which a variance may be another
_SAME = 0.01  # fans that differ by less are not told apart
_NARROW = 0.5  # standard deviations at which a cut leaves next to nothing
_FAR = 6.0  # standard deviations at which a Gaussian is cut to no effect
_HEAVY = 10.0  # kurtosis: no rule draws such numbers
_NO_MEAN = 1e-3  # of the standard deviation: a smaller mean has no visible effect
_FEW = 300  # values among 16,384 of half precision; rounded from float32 there are over 1,000
_TOLD_APART = 4  # weights: fewer may be alike by chance
_SUBNORMAL = {"bfloat16": 1e-37, "float16": 1e-3}  # a type has fewer values below
_COUNTED = 4096  # numbers, of which the values are counted
KERNELS = ("kernel", "look-up")


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something wrong with a parameter.

    Attributes:
        parameter: its path.
        kind: a name for programs: 'std', 'wrong fan', 'wrong limit', 'truncation', 'mean',
            'same draw', 'alike units', 'depth scaling', 'decay', 'few values', 'not finite' or
            'type'.
        what: the mistake, with the figure.
        advice: the remedy.
    """

    parameter: str
    kind: str
    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.parameter}: {self.what}. {self.advice}."


@dataclasses.dataclass(frozen=True)
class Audited:
    """A parameter with all that is known of it.

    Attributes:
        parameter: its description.
        declared: the rule that it is declared to be drawn by; None without one.
        found: the statistics of its numbers.
        fit: the rule that these fit.
    """

    parameter: Parameter
    declared: Declared | None
    found: Statistics
    fit: Fit


def of_type(parameter: Parameter, dtype: str) -> Iterator[Finding]:
    """Yield a kernel that holds no floats, and is not made floats of before it is used."""
    if parameter.role == "kernel" and parameter.in_axes:
        what = f"its numbers are of type {dtype}, which no initialiser draws"
        yield Finding(parameter.name, "type", what, "Draw it anew, in floats")


def of_one(audited: Audited, array: NDArray[Any]) -> Iterator[Finding]:
    """Yield the findings about one parameter by itself."""
    name, found = audited.parameter.name, audited.found
    if found.nonfinite:
        yield Finding(
            name,
            "not finite",
            f"{found.nonfinite} of {found.size} numbers are not finite",
            "Draw it anew",
        )
        return
    fans = list(_fan_of_rule(audited))
    cut, spread = list(_truncation(audited)), list(_spread(audited))
    # One finding for one mistake: a rule with another fan, or without its cut, has another std.
    yield from fans or (cut if _is_uncut(audited) or not spread else spread)
    yield from _mean(audited)
    yield from _few_values(audited)
    yield from _alike(audited.parameter, found, array)


def _fan_of_rule(audited: Audited) -> Iterator[Finding]:
    """A declared rule whose fan is not that of the product."""
    parameter, declared = audited.parameter, audited.declared
    rule = declared and declared.rule
    if not isinstance(rule, rules.VarianceScaling) or not parameter.fan_in or not declared:
        return
    try:
        taken = rule.layout.fan(rule.mode, declared.shape)
    except ValueError:
        return
    right = candidates.fans(parameter)[rule.mode]
    if math.isclose(taken, right, rel_tol=_SAME):
        return
    faults = candidates.wrong_fans(parameter)
    fault = next((f for _, value, f in faults if math.isclose(value, taken, rel_tol=_SAME)), "")
    yield _wrong_fan(parameter.name, f"{rule.mode} is {right:g}, its rule takes {taken:g}", fault)


def _wrong_fan(name: str, figures: str, fault: str) -> Finding:
    return Finding(
        name,
        "wrong fan",
        figures + (f": {fault}" if fault else ""),
        "Give the initialiser the layout of the kernel, as initializers.Layout does",
    )


def _spread(audited: Audited) -> Iterator[Finding]:
    """A standard deviation other than the rule's."""
    parameter, declared = audited.parameter, audited.declared
    found, fitted = audited.found, audited.fit
    if declared is None or declared.std is None:
        yield from _fault_of_fit(parameter, fitted)
        return
    expected, rule = declared.std, declared.rule
    if not expected:
        yield from _constant(parameter.name, getattr(rule, "value", None), found)
        return
    if isinstance(rule, rules.Orthogonal):
        same = math.isclose(found.second_moment, expected**2, rel_tol=_SAME)
        sigmas = 0.0 if same else math.inf
    else:
        kurtosis = _kurtosis(rule) or found.kurtosis
        sigmas = fit.deviation(found, expected**2, kurtosis)
    if abs(sigmas) < SIGMAS:
        return
    ratio = found.std / expected
    figures = f"std {found.std:.3g}, by its rule {expected:.3g}"
    if math.isfinite(sigmas):
        figures += f", {abs(sigmas):.0f} σ off"
    if math.isclose(ratio**2, 1 / 3, rel_tol=0.05) and fitted.distribution is fit.UNIFORM:
        yield _wrong_limit(parameter.name, figures, "√3 too small")
    elif math.isclose(ratio**2, 3, rel_tol=0.05) and fitted.distribution is not fit.UNIFORM:
        yield _wrong_limit(parameter.name, figures, "√3 too large")
    elif isinstance(rule, rules.VarianceScaling) and (fault := _wrong_fan_of(audited, rule)):
        yield _wrong_fan(parameter.name, figures, fault)
    else:
        fits = f"; its numbers fit {fitted}" if fitted.decided else ""
        advice = "Draw it by its rule, or declare the rule that is meant"
        yield Finding(parameter.name, "std", figures + fits, advice)


def _constant(name: str, value: float | None, found: Statistics) -> Iterator[Finding]:
    """Numbers that are not the declared constant."""
    if not found.is_constant:
        what = f"its numbers differ, std {found.std:.3g}, where the rule is a constant"
    elif value is not None and not math.isclose(found.least, value, rel_tol=_SAME, abs_tol=1e-6):
        what = f"all its numbers are {found.least:.4g}, by its rule {value:.4g}"
    else:
        return
    yield Finding(name, "std", what, "See whether it was trained or overwritten")


def _wrong_fan_of(audited: Audited, rule: rules.VarianceScaling) -> str:
    """Return the mistake in a fan that would give a kernel its variance; '' for none."""
    if not audited.parameter.fan_in:
        return ""
    for name, value, fault in candidates.wrong_fans(audited.parameter):
        variance, kurtosis = rule.gain / value, audited.found.kurtosis
        if name == rule.mode and abs(fit.deviation(audited.found, variance, kurtosis)) < _NEAR:
            return fault
    return ""


def _fault_of_fit(parameter: Parameter, fitted: Fit) -> Iterator[Finding]:
    """A mistake in the rule that numbers fit, where none is declared."""
    if not fitted.fault or not fitted.decided or not parameter.in_axes:
        return
    report = _wrong_limit if fitted.kind == "wrong limit" else _wrong_fan
    yield report(parameter.name, f"its numbers fit {fitted}", fitted.fault)


def _wrong_limit(name: str, figures: str, fault: str) -> Finding:
    advice = "A uniform distribution of standard deviation s has the limits ±√3 s"
    return Finding(name, "wrong limit", f"{figures}: {fault}", advice)


def _kurtosis(rule: Any) -> float | None:
    if isinstance(rule, rules.VarianceScaling):
        known = {"normal": fit.NORMAL, "truncated_normal": fit.TRUNCATED, "uniform": fit.UNIFORM}
        return known[rule.distribution].kurtosis
    return fit.NORMAL.kurtosis if isinstance(rule, rules.Gaussian) else None


def _truncation(audited: Audited) -> Iterator[Finding]:
    """A declared cut beyond which there is nothing, or which the numbers do not keep."""
    declared, found = audited.declared, audited.found
    cut = declared and _cut(declared.rule)
    if not cut or declared is None or not declared.std or found.is_constant:
        return
    if cut > _FAR:
        what = f"its rule cuts a Gaussian at {cut:.3g} σ, which cuts nothing"
    elif cut < _NARROW:
        what = f"its rule cuts a Gaussian at {cut:.3g} σ: a std of {declared.std:.2g} is left"
    elif not _is_uncut(audited):
        return
    else:
        reached = found.largest / (declared.std / fit.std_after_cut(cut))
        what = f"its rule cuts a Gaussian at {cut:.3g} σ, its numbers reach {reached:.3g} σ"
    advice = "JAX's truncated_normal takes its limits in standard deviations, PyTorch's in weights"
    yield Finding(audited.parameter.name, "truncation", what, advice)


def _is_uncut(audited: Audited) -> bool:
    """Whether numbers are those of the declared rule without its cut."""
    declared, found = audited.declared, audited.found
    cut = declared and _cut(declared.rule)
    if not cut or not declared or not declared.std or found.is_constant:
        return False
    before = declared.std / fit.std_after_cut(cut)
    near = abs(fit.deviation(found, before**2, fit.NORMAL.kurtosis)) < SIGMAS
    return near and found.largest > cut * before * (1 + _SAME)


def _cut(rule: Any) -> float | None:
    """Return where a rule cuts a Gaussian, in standard deviations before; None if it does not."""
    if isinstance(rule, rules.VarianceScaling) and rule.distribution == "truncated_normal":
        return fit.CUT
    return getattr(rule, "cut", None)


def _mean(audited: Audited) -> Iterator[Finding]:
    parameter, found = audited.parameter, audited.found
    if parameter.role != "kernel" or found.is_constant or found.zeros > 0.5:
        return
    if found.kurtosis > _HEAVY:  # a matrix such as the identity with noise
        return
    share = found.mean / found.std
    sigmas = share * math.sqrt(found.size)
    if abs(sigmas) < SIGMAS or abs(share) < _NO_MEAN:
        return
    what = f"its mean is {found.mean:.3g}, {abs(share):.2g} of its std, {abs(sigmas):.0f} σ off 0"
    advice = "Draw it around 0: a mean adds up over the fan-in"
    yield Finding(parameter.name, "mean", what, advice)


def _few_values(audited: Audited) -> Iterator[Finding]:
    parameter, found = audited.parameter, audited.found
    half = found.dtype in ("bfloat16", "float16")
    if not half or parameter.role not in KERNELS or found.zeros > 0.5 or found.is_constant:
        return
    if found.std < _SUBNORMAL[found.dtype]:
        return
    if found.size < _COUNTED or found.distinct > _FEW:
        return
    what = f"{found.distinct} values among {len(found.sample)} numbers of {found.dtype}"
    advice = (
        "Draw in float32 and round: JAX draws half precision from few random bits, "
        "prelu_jax.initializers do not"
    )
    yield Finding(parameter.name, "few values", what, advice)


def _alike(parameter: Parameter, found: Statistics, array: NDArray[Any]) -> Iterator[Finding]:
    """Units, or inputs, whose weights are all one number: nothing tells them apart."""
    if parameter.role != "kernel" or array.ndim < 2:
        return
    if found.is_constant:
        if found.least and found.size > _TOLD_APART:
            what = f"all its weights are {found.least:.4g}"
            yield Finding(parameter.name, "alike units", what, _BREAK)
        return
    last = array.ndim - 1
    sides = (
        ("outputs", parameter.out_axes or (last,)),
        ("inputs", parameter.in_axes or (last - 1,)),
    )
    for side, axes in sides:
        kept = {*axes, *parameter.stack_axes}
        others = tuple(axis for axis in range(array.ndim) if axis not in kept)
        if math.prod(array.shape[axis] for axis in others) < _TOLD_APART:
            continue
        least, greatest = array.min(axis=others), array.max(axis=others)
        alike = (least == greatest) & ~_padding(least, greatest)
        if count := int(alike.sum()):
            zeros = int((alike & (least == 0)).sum())
            kind = "0" if zeros == count else "one number" if not zeros else "0 or one number"
            first = [int(i) for i in np.argwhere(alike)[0]]
            what = f"all weights of {count} of its {alike.size} {side} are {kind}, first at {first}"
            yield Finding(parameter.name, "alike units", what, _BREAK)


_BREAK = "Draw it at random: what begins alike stays alike, and zeros pass nothing on"


def _padding(least: NDArray[Any], greatest: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which units are zeros up to the last: of a width that was rounded up."""
    zeros = ((least == 0) & (greatest == 0)).reshape(-1)
    trailing = np.cumprod(zeros[::-1])[::-1].astype(bool)
    return (trailing & ~trailing.all()).reshape(least.shape)


def of_decay(parameters: Mapping[str, Parameter], decays: Mapping[str, bool]) -> Iterator[Finding]:
    """Yield parameters that weight decay is for, and should not be."""
    advice = {
        "slope": "He et al. 2015 do not decay slopes: it pulls them to ReLU",
        "scale": "Leave the scales of norms out of the mask",
        "bias": "Leave biases out of the mask",
    }
    for name, parameter in parameters.items():
        role = parameter.role
        if decays.get(name) and role in advice:
            yield Finding(name, "decay", f"the {role} decays with the weights", advice[role])
