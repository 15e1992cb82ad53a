"""Weight initialisers with the papers' own definitions.

Every factory returns an `Initializer`, a callable ``(key, shape, dtype) -> array`` that Flax,
Haiku and plain JAX accept. Names say exactly what is drawn: ``normal`` is a true Gaussian (JAX's
own ``he_normal`` and ``glorot_normal`` are truncated at two standard deviations).

For a convolution kernel ``[k, k, c, d]``, ``fan_in`` is ``n = k²c`` and ``fan_out`` is
``n̂ = k²d`` (He et al. 2015, Eq. 7 and 12). Three initialisers are called Xavier in the literature:

=====================================  ==========================================================
Glorot & Bengio 2010, Eq. 16           ``xavier_uniform()``, variance ``2 / (fan_in + fan_out)``
Caffe's ``xavier`` filler              ``xavier_uniform(mode='fan_in')``, variance ``1 / fan_in``
He et al. 2015, Figures 2 and 3        ``xavier_normal(mode='fan_out')``, variance ``1 / fan_out``
=====================================  ==========================================================
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, get_args

import jax
import jax.numpy as jnp

from prelu_jax import names, rectifiers

Mode = Literal["fan_in", "fan_out", "fan_avg"]
MODES: tuple[Mode, ...] = get_args(Mode)


class Initializer(Protocol):
    """What every factory here returns: hashable, equal by value, and able to say its rule."""

    def __call__(
        self, key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32
    ) -> jax.Array: ...

    def variance(self, shape: Sequence[int]) -> float:
        """The variance of each weight of a kernel of this shape."""

    def describe(self) -> str:
        """The rule in words."""


@dataclasses.dataclass(frozen=True)
class VarianceScaling:
    """Zero-mean weights of variance ``gain / fan``; drawn by `jax.nn.initializers`.

    Attributes:
        gain: the variance, not the standard deviation, times the fan.
        mode: which fan divides: 'fan_in', 'fan_out' or their average 'fan_avg'.
        distribution: 'normal' (untruncated) or 'uniform'.
    """

    gain: float
    mode: Mode
    distribution: Literal["normal", "uniform"]

    def __post_init__(self) -> None:
        names.check("mode", self.mode, MODES)

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        draw = jax.nn.initializers.variance_scaling(self.gain, self.mode, self.distribution)
        return draw(key, tuple(shape), dtype)

    def variance(self, shape: Sequence[int]) -> float:
        fan_in, fan_out = fans(shape)
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.mode]
        return self.gain / fan

    def describe(self) -> str:
        return f"{self.distribution}, variance {self.gain:.6g} / {self.mode}"


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Zero-mean Gaussian weights of a fixed standard deviation, whatever the fans."""

    stddev: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.stddev) and self.stddev >= 0):
            raise ValueError(f"gaussian: stddev is {self.stddev}, expected a number >= 0.")

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return self.stddev * jax.random.normal(key, tuple(shape), dtype)

    def variance(self, shape: Sequence[int]) -> float:
        del shape
        return self.stddev**2

    def describe(self) -> str:
        return f"normal, std {self.stddev:g}"


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """``(fan_in, fan_out)`` of a kernel ``[*window, in_features, out_features]``.

    Raises:
        ValueError: fewer than two axes, so there is no fan to speak of.
    """
    if len(shape) < 2:
        raise ValueError(
            f"A kernel of shape {tuple(shape)} has no fans: expected at least 2 axes, "
            "[*window, in_features, out_features]. For a bias or a slope use a constant."
        )
    *window, features_in, features_out = shape
    size = math.prod(window)
    return size * features_in, size * features_out


def he_normal(mode: Mode = "fan_in", negative_slope: jax.typing.ArrayLike = 0.0) -> VarianceScaling:
    """Gaussian of variance ``2 / ((1 + a²) n)`` (He et al. 2015, Eq. 10, 14 and 15).

    Args:
        mode: 'fan_in' keeps the forward signal (Eq. 10), 'fan_out' the gradient (Eq. 14).
        negative_slope: the rectifier's initial slope ``a``: 0 for ReLU, 0.25 for PReLU; an
            array of channel slopes counts by the mean of its squares.
    """
    return VarianceScaling(1 / rectifiers.second_moment_gain(negative_slope), mode, "normal")


def he_uniform(
    mode: Mode = "fan_in", negative_slope: jax.typing.ArrayLike = 0.0
) -> VarianceScaling:
    """Uniform with the variance of `he_normal`."""
    return VarianceScaling(1 / rectifiers.second_moment_gain(negative_slope), mode, "uniform")


def xavier_normal(mode: Mode = "fan_avg") -> VarianceScaling:
    """Gaussian of variance ``1 / n``; with 'fan_out', the baseline of He et al. 2015, Fig. 2-3."""
    return VarianceScaling(1.0, mode, "normal")


def xavier_uniform(mode: Mode = "fan_avg") -> VarianceScaling:
    """Uniform of variance ``1 / n`` (Glorot & Bengio 2010, Eq. 12 and 16)."""
    return VarianceScaling(1.0, mode, "uniform")


def gaussian(stddev: float = 0.01) -> Gaussian:
    """Gaussian of a fixed standard deviation, the practice that He et al. 2015 compare with."""
    return Gaussian(stddev)


REGISTRY: dict[str, Callable[..., Initializer]] = {
    factory.__name__: factory
    for factory in (he_normal, he_uniform, xavier_normal, xavier_uniform, gaussian)
}


def accepts(name: str, option: str) -> bool:
    """Whether the factory of this name has an option of that name."""
    names.check("initializer", name, REGISTRY)
    return option in inspect.signature(REGISTRY[name]).parameters


def get(name: str, **options: Any) -> Initializer:
    """The initialiser of a registered name: ``get('he_normal', mode='fan_out')``.

    Raises:
        ValueError: the name is not registered; the error lists those that are.
        TypeError: the factory has no such option; the error lists those it has.
    """
    names.check("initializer", name, REGISTRY)
    factory = REGISTRY[name]
    for option in options:
        if not accepts(name, option):
            raise TypeError(
                f"initializer {name!r} has no option {option!r}; it has "
                f"{', '.join(inspect.signature(factory).parameters)}."
            )
    return factory(**options)
