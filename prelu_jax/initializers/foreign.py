"""Rules of the initialisers of JAX and Flax, also inside the wrappers around them.

`jax.nn.initializers` returns closures. The name of the closure's function gives the kind of rule,
its free variables give the options.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from prelu_jax.initializers.fans import MODES, Layout
from prelu_jax.initializers.rules import (
    DISTRIBUTIONS,
    Constant,
    Gaussian,
    Orthogonal,
    VarianceScaling,
)

# Modules of JAX's initialisers, and of the wrappers that return a box around the same values.
_JAX = jax.nn.initializers.normal.__globals__
_WRAPPERS = tuple(
    wrapper.__globals__
    for wrapper in (nn.with_partitioning, nn.with_logical_partitioning, nnx.with_metadata)
)
_FAR = 6.0  # standard deviations: a cut beyond has no effect
_VALUES_KEPT = {"dtype", "out_sharding"}  # arguments that do not change values


class Rule(Protocol):
    """The distribution of an initialiser's weights."""

    def variance(self, shape: Sequence[int]) -> float:
        """Return the variance of the weights of a kernel of this shape."""

    def describe(self) -> str:
        """Return the rule in words."""


@dataclasses.dataclass(frozen=True)
class _Foreign:
    """A rule that no factory of this package returns.

    Attributes:
        text: the rule in words.
        of_shape: function from a kernel's shape to the variance.
        cut: the point at which a Gaussian is cut on both sides, in standard deviations before the
            cut; None without a cut or if the two sides differ.
    """

    text: str
    of_shape: Callable[[Sequence[int]], float]
    cut: float | None = None

    def variance(self, shape: Sequence[int]) -> float:
        return self.of_shape(shape)

    def describe(self) -> str:
        return self.text


def describe(initializer: Any) -> str:
    """Return an initialiser's rule in words, with its variance as a function of the fans.

    Args:
        initializer: an initialiser of this package, of `jax.nn.initializers` or of
            `flax.linen.initializers`, or a number. It may be wrapped in Flax's partitioning,
            `jax.jit` or a `functools.partial` that sets the type. The text for any other callable
            is 'unknown' with its name.
    """
    rule = known(initializer)
    if rule is not None:
        return rule.describe()
    inner = _unwrapped(initializer)
    name = getattr(inner, "__qualname__", type(inner).__qualname__)
    wrapped = "a wrapper of " if hasattr(inner, "__wrapped__") else ""  # that may change values
    return f"unknown ({wrapped}{getattr(inner, '__module__', '?')}.{name})"


def known(initializer: Any) -> Rule | None:
    """Return the rule of an initialiser, or None if it is unknown."""
    inner = _unwrapped(initializer)
    if hasattr(inner, "describe") and hasattr(inner, "variance"):
        rule: Rule = inner
        return rule
    value = _number(inner)
    if value is not None:
        return Constant(value)
    if isinstance(inner, np.ndarray | jax.Array):
        return _of_array(inner)
    if not inspect.isfunction(inner) or inner.__globals__ is not _JAX:
        return None
    kind = inner.__qualname__.partition(".")[0]
    return _of_jax(kind, inspect.getclosurevars(inner).nonlocals)


def _unwrapped(initializer: Any) -> Any:
    """Return the initialiser inside wrappers that keep its values."""
    while True:
        if isinstance(initializer, functools.partial):
            if initializer.args or not initializer.keywords.keys() <= _VALUES_KEPT:
                return initializer
            initializer = initializer.func
        elif _keeps_values(initializer):
            initializer = initializer.__wrapped__
        else:
            return initializer


def _keeps_values(wrapper: Any) -> bool:
    if not hasattr(wrapper, "__wrapped__"):
        return False
    if isinstance(wrapper, jax.stages.Wrapped):  # jax.jit
        return True
    return any(getattr(wrapper, "__globals__", None) is module for module in _WRAPPERS)


def _of_jax(kind: str, free: Mapping[str, Any]) -> Rule | None:
    """Return the rule of a closure of `jax.nn.initializers` with these free variables."""
    if kind in ("zeros", "ones"):
        return Constant(float(kind == "ones"))
    scale = _number(free.get("stddev", free.get("scale", free.get("value"))))
    if kind == "constant":
        return _of_array(free.get("value")) if scale is None else Constant(scale)
    if scale is None or not math.isfinite(scale):
        return None
    if scale == 0:
        return Constant(0.0)
    match kind, free:
        case "normal", _:
            return Gaussian(abs(scale))
        case "uniform", _:
            return _uniform(scale)
        case "truncated_normal", {"lower": lower, "upper": upper}:
            return _truncated(scale, _number(lower), _number(upper))
        case "variance_scaling", {"mode": mode, "distribution": distribution}:
            if scale < 0 or mode not in MODES or distribution not in DISTRIBUTIONS:
                return None
            in_axis, out_axis, batch_axis = (
                _hashable(free[name]) for name in ("in_axis", "out_axis", "batch_axis")
            )
            layout = Layout(in_axis, out_axis, batch_axis)
            return VarianceScaling(scale, mode, distribution, layout)
        case "orthogonal", {"column_axis": int() as axis} if axis != -1:
            text = f"orthogonal along axis {axis}, variance {scale**2:.6g} / max(rows, columns)"
            return _Foreign(text, functools.partial(_orthogonal_variance, scale, axis))
        case "orthogonal", _:
            return Orthogonal(scale**2)
        case "delta_orthogonal", _:
            return Orthogonal(scale**2, only_centre=True)
    return None


def _number(value: Any) -> float | None:
    """Return a real scalar of Python, NumPy or JAX as a float; None for anything else."""
    if not isinstance(value, int | float | np.generic | np.ndarray | jax.Array):
        return None
    if isinstance(value, jax.core.Tracer) or np.ndim(value):
        return None
    real = isinstance(value, int | float) or any(
        jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer)
    )
    return float(value) if real else None


def _of_array(value: Any) -> Rule | None:
    if isinstance(value, jax.core.Tracer) or not np.ndim(value):
        return None
    array = np.asarray(value, np.float64)
    return _Foreign(
        f"constant array of shape {array.shape}",
        lambda shape: float(np.var(np.broadcast_to(array, tuple(shape)))),
    )


def _uniform(scale: float) -> Rule:
    low, high = sorted((0.0, scale))
    std = abs(scale) / math.sqrt(12)
    return _Foreign(f"uniform in [{low:g}, {high:g}), std {std:.3g}", lambda shape: std**2)


def _truncated(stddev: float, lower: float | None, upper: float | None) -> Rule | None:
    """Return the rule of ``stddev`` times a standard Gaussian cut at ``lower`` and ``upper``."""
    if lower is None or upper is None or not lower < upper:
        return None
    mass = (math.erf(upper / math.sqrt(2)) - math.erf(lower / math.sqrt(2))) / 2
    if mass < 1e-6:  # far in a tail, where the differences below are rounding errors
        return None
    mean = (_density(lower) - _density(upper)) / mass
    ends = (_times_density(lower) - _times_density(upper)) / mass
    std = abs(stddev) * math.sqrt(1 + ends - mean**2)
    low, high = sorted((stddev * lower, stddev * upper))
    text = f"truncated normal in [{low:g}, {high:g}], std {std:.3g}"
    nearest = min(abs(lower), abs(upper))
    cut = nearest if math.isclose(lower, -upper) or nearest > _FAR else None
    return _Foreign(text, lambda shape: std**2, cut)


def _density(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _times_density(x: float) -> float:
    return 0.0 if math.isinf(x) else x * _density(x)


def _orthogonal_variance(scale: float, axis: int, shape: Sequence[int]) -> float:
    if len(shape) < 2 or not -len(shape) <= axis < len(shape) or 0 in shape:
        raise ValueError(
            f"orthogonal: a kernel of shape {shape} has no columns on axis {axis}; expected a "
            "shape of at least two axes, one of them the axis of the columns."
        )
    rows = math.prod(shape) // shape[axis]
    return scale**2 / max(rows, shape[axis])


def _hashable(axis: Any) -> int | tuple[int, ...]:
    return axis if isinstance(axis, int) else tuple(axis)
