"""Mistakes in single parameters of a model, and their remedies.

A finding has a probability of at most 2e-9 by chance, that of a Gaussian beyond `SIGMAS` standard
deviations.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prelu_jax.initializers import candidates, distributions, fit, rules
from prelu_jax.initializers.audited import KERNELS, Audited, Finding
from prelu_jax.initializers.fit import Fit
from prelu_jax.initializers.parameters import Parameter
from prelu_jax.initializers.statistics import Statistics

SIGMAS = 6.0
_NEAR = 3.0  # standard deviations within which a variance agrees with another
_SAME = 0.01  # fans that differ by less count as equal
_NARROW = 0.5  # standard deviations: a cut below leaves almost nothing
_FAR = 6.0  # standard deviations: a cut beyond has no effect
_HEAVY = 10.0  # kurtosis above which no rule draws
_NO_MEAN = 1e-3  # share of the standard deviation below which a mean has no visible effect
_FEW = 300  # distinct values in 16,384 of half precision; rounded from float32 there are over 1,000
_TOLD_APART = 4  # fewer weights may be equal by chance
_SUBNORMAL = {"bfloat16": 1e-37, "float16": 1e-3}  # below, a type has fewer values
_COUNTED = 4096  # fewest numbers whose distinct values are counted


def wrong_type(parameter: Parameter, dtype: str) -> Iterator[Finding]:
    """Yield a finding about a kernel of integers that are not converted to floats before use."""
    if parameter.role == "kernel" and parameter.in_axes:
        what = f"its numbers are of type {dtype}, which no initialiser draws"
        yield Finding(parameter.name, "type", what, "Draw it again, in floats")


def about_one(audited: Audited, array: NDArray[Any]) -> Iterator[Finding]:
    """Yield the findings about one parameter by itself."""
    name, measured = audited.parameter.name, audited.measured
    if measured.nonfinite:
        yield Finding(
            name,
            "not finite",
            f"{measured.nonfinite} of {measured.size} numbers are not finite",
            "Draw it again",
        )
        return
    fans = list(_fan_of_rule(audited))
    cut, spread = list(_truncation(audited)), list(_spread(audited))
    # One finding per mistake: a rule with another fan, or without its cut, also has another std.
    yield from fans or (cut if _is_uncut(audited) or not spread else spread)
    yield from _mean(audited)
    yield from _few_values(audited)
    yield from _alike(audited.parameter, measured, array)


def _fan_of_rule(audited: Audited) -> Iterator[Finding]:
    """Yield a finding if the declared rule's fan is not that of the matrix product."""
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
        "Pass the layout of the kernel to the initialiser (initializers.Layout)",
    )


def _spread(audited: Audited) -> Iterator[Finding]:
    """Yield a finding if the standard deviation is not that of the rule."""
    parameter, declared = audited.parameter, audited.declared
    measured, fitted = audited.measured, audited.fit
    if declared is None or declared.std is None:
        yield from _fault_of_fit(parameter, fitted)
        return
    expected, rule = declared.std, declared.rule
    if not expected:
        yield from _constant(parameter.name, getattr(rule, "value", None), measured)
        return
    if isinstance(rule, rules.Orthogonal):
        same = math.isclose(measured.second_moment, expected**2, rel_tol=_SAME)
        sigmas = 0.0 if same else math.inf
    else:
        kurtosis = _kurtosis(rule) or measured.kurtosis
        sigmas = fit.deviation(measured, expected**2, kurtosis)
    if abs(sigmas) < SIGMAS:
        return
    ratio = measured.std / expected
    figures = f"std {measured.std:.3g}, by its rule {expected:.3g}"
    if math.isfinite(sigmas):
        figures += f", {abs(sigmas):.0f} σ off"
    if math.isclose(ratio**2, 1 / 3, rel_tol=0.05) and fitted.distribution is distributions.UNIFORM:
        yield _wrong_limit(parameter.name, figures, "√3 too small")
    elif (
        math.isclose(ratio**2, 3, rel_tol=0.05) and fitted.distribution is not distributions.UNIFORM
    ):
        yield _wrong_limit(parameter.name, figures, "√3 too large")
    elif isinstance(rule, rules.VarianceScaling) and (fault := _wrong_fan_of(audited, rule)):
        yield _wrong_fan(parameter.name, figures, fault)
    else:
        fits = f"; its numbers fit {fitted}" if fitted.decided else ""
        advice = "Draw it by its rule, or declare the intended rule"
        yield Finding(parameter.name, "std", figures + fits, advice)


def _constant(name: str, value: float | None, measured: Statistics) -> Iterator[Finding]:
    """Yield a finding if the numbers are not the declared constant."""
    if not measured.is_constant:
        what = f"its numbers differ, std {measured.std:.3g}, but the rule is a constant"
    elif value is not None and not math.isclose(measured.least, value, rel_tol=_SAME, abs_tol=1e-6):
        what = f"all its numbers are {measured.least:.4g}, by its rule {value:.4g}"
    else:
        return
    yield Finding(name, "std", what, "Check whether it was trained or overwritten")


def _wrong_fan_of(audited: Audited, rule: rules.VarianceScaling) -> str:
    """Return the mistake in a fan that would give a kernel its variance; '' for none."""
    if not audited.parameter.fan_in:
        return ""
    for name, value, fault in candidates.wrong_fans(audited.parameter):
        variance, kurtosis = rule.gain / value, audited.measured.kurtosis
        if name == rule.mode and abs(fit.deviation(audited.measured, variance, kurtosis)) < _NEAR:
            return fault
    return ""


def _fault_of_fit(parameter: Parameter, fitted: Fit) -> Iterator[Finding]:
    """Yield the mistake in the rule that the numbers fit, if no rule is declared."""
    if not fitted.fault or not fitted.decided or not parameter.in_axes:
        return
    report = _wrong_limit if fitted.kind == "wrong limit" else _wrong_fan
    yield report(parameter.name, f"its numbers fit {fitted}", fitted.fault)


def _wrong_limit(name: str, figures: str, fault: str) -> Finding:
    advice = "A uniform distribution of standard deviation s has the limits ±√3 s"
    return Finding(name, "wrong limit", f"{figures}: {fault}", advice)


def _kurtosis(rule: Any) -> float | None:
    if isinstance(rule, rules.VarianceScaling):
        known = {
            "normal": distributions.NORMAL,
            "truncated_normal": distributions.TRUNCATED,
            "uniform": distributions.UNIFORM,
        }
        return known[rule.distribution].kurtosis
    return distributions.NORMAL.kurtosis if isinstance(rule, rules.Gaussian) else None


def _truncation(audited: Audited) -> Iterator[Finding]:
    """Yield a finding if the declared cut has no effect, leaves nothing or is not kept."""
    declared, measured = audited.declared, audited.measured
    cut = declared and _cut(declared.rule)
    if not cut or declared is None or not declared.std or measured.is_constant:
        return
    if cut > _FAR:
        what = f"its rule cuts a Gaussian at {cut:.3g} σ, which has no effect"
    elif cut < _NARROW:
        what = f"its rule cuts a Gaussian at {cut:.3g} σ, which leaves a std of {declared.std:.2g}"
    elif not _is_uncut(audited):
        return
    else:
        reached = measured.largest / (declared.std / distributions.std_after_cut(cut))
        what = f"its rule cuts a Gaussian at {cut:.3g} σ, but its numbers reach {reached:.3g} σ"
    advice = "JAX's truncated_normal takes its limits in standard deviations, PyTorch's in weights"
    yield Finding(audited.parameter.name, "truncation", what, advice)


def _is_uncut(audited: Audited) -> bool:
    """Return whether the numbers fit the declared rule without its cut."""
    declared, measured = audited.declared, audited.measured
    cut = declared and _cut(declared.rule)
    if not cut or not declared or not declared.std or measured.is_constant:
        return False
    before = declared.std / distributions.std_after_cut(cut)
    near = abs(fit.deviation(measured, before**2, distributions.NORMAL.kurtosis)) < SIGMAS
    return near and measured.largest > cut * before * (1 + _SAME)


def _cut(rule: Any) -> float | None:
    """Return the cut of a rule's Gaussian, in standard deviations before the cut, or None."""
    if isinstance(rule, rules.VarianceScaling) and rule.distribution == "truncated_normal":
        return distributions.CUT
    return getattr(rule, "cut", None)


def _mean(audited: Audited) -> Iterator[Finding]:
    parameter, measured = audited.parameter, audited.measured
    if parameter.role != "kernel" or measured.is_constant or measured.zeros > 0.5:
        return
    if measured.kurtosis > _HEAVY:  # not drawn, e.g. the identity with noise
        return
    share = measured.mean / measured.std
    sigmas = share * math.sqrt(measured.size)
    if abs(sigmas) < SIGMAS or abs(share) < _NO_MEAN:
        return
    what = (
        f"its mean is {measured.mean:.3g}, {abs(share):.2g} of its std, {abs(sigmas):.0f} σ off 0"
    )
    advice = "Draw it around 0: a mean adds up over the fan-in"
    yield Finding(parameter.name, "mean", what, advice)


def _few_values(audited: Audited) -> Iterator[Finding]:
    parameter, measured = audited.parameter, audited.measured
    half = measured.dtype in ("bfloat16", "float16")
    if not half or parameter.role not in KERNELS or measured.zeros > 0.5 or measured.is_constant:
        return
    if measured.std < _SUBNORMAL[measured.dtype]:
        return
    if measured.size < _COUNTED or measured.distinct > _FEW:
        return
    what = f"{measured.distinct} values among {len(measured.sample)} numbers of {measured.dtype}"
    advice = (
        "Draw in float32 and round, as prelu_jax.initializers do: JAX draws half precision from "
        "few random bits"
    )
    yield Finding(parameter.name, "few values", what, advice)


def _alike(parameter: Parameter, measured: Statistics, array: NDArray[Any]) -> Iterator[Finding]:
    """Yield units or inputs whose weights are all one number, so that they stay equal."""
    if parameter.role != "kernel" or array.ndim < 2:
        return
    if measured.is_constant:
        if measured.least and measured.size > _TOLD_APART:
            what = f"all its weights are {measured.least:.4g}"
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
        equal = (least == greatest) & ~_padding(least, greatest)
        if count := int(equal.sum()):
            zeros = int((equal & (least == 0)).sum())
            kind = "0" if zeros == count else "one number" if not zeros else "0 or one number"
            first = [int(i) for i in np.argwhere(equal)[0]]
            what = f"all weights of {count} of its {equal.size} {side} are {kind}, first at {first}"
            yield Finding(parameter.name, "alike units", what, _BREAK)


_BREAK = "Draw it at random: equal units stay equal in training, and zeros pass no signal"


def _padding(least: NDArray[Any], greatest: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which units are trailing zeros, as in a layer whose width was rounded up."""
    zeros = ((least == 0) & (greatest == 0)).reshape(-1)
    trailing = np.cumprod(zeros[::-1])[::-1].astype(bool)
    return (trailing & ~trailing.all()).reshape(least.shape)


def wrong_decay(
    parameters: Mapping[str, Parameter], decays: Mapping[str, bool]
) -> Iterator[Finding]:
    """Yield parameters that weight decay includes and should not."""
    advice = {
        "slope": "He et al. 2015 do not decay slopes: it pulls them to ReLU",
        "scale": "Leave the scales of norms out of the mask",
        "bias": "Leave biases out of the mask",
    }
    for name, parameter in parameters.items():
        role = parameter.role
        if decays.get(name) and role in advice:
            yield Finding(name, "decay", f"the {role} decays with the weights", advice[role])
