"""Gaussian moments of any elementwise activation, and its effect on a signal at depth.

A pre-activation of a wide layer of random weights is Gaussian, z ~ N(0, q). An activation f then
keeps E[f(z)²] / q of the second moment forward and E[f'(z)²] backward, and it maps the cosine c of
two examples to C(c) = E[f(u) f(v)] / E[f²] (Poole et al. 2016; Schoenholz et al. 2017). For the
rectifiers there are closed forms; for every other function the expectations are integrals
(`quadrature`).

Weights of variance gain / fan_in keep E[y²] with the gain q / E[f²], and the gradient's second
moment with 1 / E[f'²]. PyTorch's `calculate_gain` has one constant for both:

==========  ================  ================  ==================  =====
activation  PyTorch, squared  keeps the signal  keeps the gradient  χ
==========  ================  ================  ==================  =====
ReLU        2                 2                 2                   1
tanh        2.778 (5/3)²      2.536             2.153               0.461
SELU        0.5625 (3/4)²     1                 0.933               0.783
sigmoid     1                 3.409             22.30               0.106
ELU         none              1.551             1.497               0.891
GELU        none              2.352             2.194               1.144
SiLU        none              2.811             2.635               1.173
==========  ================  ================  ==================  =====

With χ above 1 the variance is an unstable fixed point: a deviation grows by χ in every layer, 1.144
to the power of 50 is 840 for GELU. No gain changes that.
"""

import dataclasses
import functools
import itertools
import math
from typing import Literal

import jax
import numpy as np

from prelu_jax import quadrature, rectifiers
from prelu_jax.cosines import cosine_at_depth as cosine_at_depth
from prelu_jax.cosines import depth_of_cosine as depth_of_cosine
from prelu_jax.cosines import tailored_slope as tailored_slope
from prelu_jax.quadrature import Activation, Array

Keeps = Literal["forward", "backward"]  # the second moment that weights keep


@dataclasses.dataclass(frozen=True)
class Moments:
    """Moments of f(z) for z ~ N(0, variance).

    Attributes:
        variance: q, of the pre-activation.
        mean: E[f].
        second_moment: E[f²].
        derivative_second_moment: E[f'²].
        exponent: χ = d log E[f²] / d log q, 1 for the rectifiers.
    """

    variance: float
    mean: float
    second_moment: float
    derivative_second_moment: float
    exponent: float

    @property
    def forward(self) -> float:
        """Return E[f²] / q, the part of the second moment that f keeps."""
        return self.second_moment / self.variance

    @property
    def backward(self) -> float:
        """Return E[f'²], the part of a gradient's second moment that f keeps."""
        return self.derivative_second_moment

    @property
    def ratio(self) -> float:
        """Return backward / forward, C'(1), which is 1 for rectifiers: one gain keeps both."""
        return self.backward / self.forward


def moments(activation: Activation, variance: float = 1.0) -> Moments:
    """Return the moments of an activation by quadrature, to about 1e-13 in float64.

    Args:
        activation: an elementwise JAX function, such as `jax.nn.gelu`.
        variance: q, of the Gaussian pre-activation.

    Raises:
        TypeError: the activation is no function, cannot be traced, or is not real.
        ValueError: it is not elementwise, not finite, or it grows so fast that the moments are
            infinite; or the variance is not positive.
    """
    _check_variance(variance)
    return _moments(quadrature.elementwise(activation), float(variance))


@functools.lru_cache(maxsize=256)
def _moments(activation: Activation, variance: float) -> Moments:
    scale = math.sqrt(variance)

    def integrands(z: Array) -> Array:
        f, derivative = quadrature.values(activation, scale * z)
        return np.stack([f, f**2, derivative**2, f**2 * (z**2 - 1)])

    (mean, second, derivative, growth), _ = quadrature.expectations(activation, integrands)
    if not second > 0:
        raise ValueError(
            f"{quadrature.name_of(activation)} is 0 almost everywhere at variance {variance:g}: "
            "expected a function that keeps a part of the signal."
        )
    # d E[f²] / d log q = E[f² (z² - 1)] / 2, by Stein's lemma.
    return Moments(variance, *map(float, (mean, second, derivative, growth / (2 * second))))


def rectifier_moments(negative_slope: jax.typing.ArrayLike, variance: float = 1.0) -> Moments:
    """Return the moments of ``f(z) = max(0, z) + a min(0, z)`` in closed form.

    For an array of channel slopes they are means over channels.
    """
    _check_variance(variance)
    kept = rectifiers.second_moment_gain(negative_slope)
    slope = float(np.mean(np.asarray(negative_slope, np.float64)))
    mean = (1 - slope) * math.sqrt(variance / (2 * math.pi))
    return Moments(variance, mean, kept * variance, kept, 1.0)


def length_map(
    activation: Activation, variance: float, gain: float, bias_variance: float = 0.0
) -> float:
    """Return the variance of the next layer's pre-activation, ``gain · E[f(z)²] + bias_variance``.

    Args:
        activation: elementwise JAX function.
        variance: q, of this layer's pre-activation.
        gain: fan_in times the variance of the weights.
        bias_variance: of the biases.
    """
    return gain * moments(activation, variance).second_moment + bias_variance


@dataclasses.dataclass(frozen=True)
class FixedPoint:
    """A variance that the length map leaves as it is.

    Attributes:
        variance: q*.
        slope: of the length map there. Below 1, variances nearby come closer (`stable`).
        derivative_gain: ``gain · E[f'²]`` there, the factor on a gradient's second moment.
    """

    variance: float
    slope: float
    derivative_gain: float

    @property
    def stable(self) -> bool:
        """Return whether variances nearby come closer."""
        return abs(self.slope) < 1


def fixed_points(
    activation: Activation,
    gain: float,
    bias_variance: float = 0.0,
    within: tuple[float, float] = (1e-4, 1e4),
) -> tuple[FixedPoint, ...]:
    """Return the isolated fixed points of the length map, the smallest first.

    A rectifier with its own gain has none: every variance is fixed.

    Args:
        activation: elementwise JAX function.
        gain: fan_in times the variance of the weights.
        bias_variance: of the biases.
        within: smallest and largest variance that is looked at; 0 is not.

    Raises:
        TypeError, ValueError: as `moments`; or a number is out of range.
    """
    from scipy import optimize  # slow to import, and few runs need it

    activation = quadrature.elementwise(activation)
    smallest, largest = within
    if not (0 < smallest < largest < math.inf and gain > 0 and bias_variance >= 0):
        raise ValueError(
            f"fixed_points: gain is {gain}, bias_variance {bias_variance} and within {within}; "
            "expected a gain above 0, a variance of at least 0, and two rising variances above 0."
        )

    def growth(log_variance: float) -> float:
        q = math.exp(log_variance)
        try:
            value = length_map(activation, q, gain, bias_variance) / q - 1
        except ValueError:
            if q > 1:  # at a small variance the activation may be 0
                raise
            value = bias_variance / q - 1
        return 0.0 if abs(value) < 1e-12 else value

    grid = np.linspace(math.log(smallest), math.log(largest), 33)
    # Zeros on the grid lie between their neighbours, which have signs.
    values = [(x, value) for x in grid if (value := growth(x))]
    brackets = [(a, b) for (a, at_a), (b, at_b) in itertools.pairwise(values) if at_a * at_b < 0]
    points = []
    for bracket in brackets:
        q = math.exp(optimize.brentq(growth, *bracket, xtol=1e-14))
        m = moments(activation, q)
        points.append(FixedPoint(q, gain * m.exponent * m.forward, gain * m.backward))
    return tuple(points)


def cosine_map(activation: Activation, cosine: float, variance: float = 1.0) -> float:
    """Return C(c) = E[f(u) f(v)] / E[f²], the cosine of two examples after an activation.

    Args:
        activation: elementwise JAX function.
        cosine: c, the correlation of the Gaussian pre-activations u and v.
        variance: q, of both.

    Raises:
        TypeError, ValueError: as `moments`; or the cosine is not in [-1, 1].
    """
    product, _ = _products(activation, cosine, variance)
    return product / moments(activation, variance).second_moment


def cosine_slope(activation: Activation, cosine: float, variance: float = 1.0) -> float:
    """Return C'(c) = q E[f'(u) f'(v)] / E[f²], the slope of `cosine_map`."""
    _, product = _products(activation, cosine, variance)
    return variance * product / moments(activation, variance).second_moment


def _products(activation: Activation, cosine: float, variance: float) -> tuple[float, float]:
    """Return E[f(u) f(v)] and E[f'(u) f'(v)] for Gaussians of this cosine and variance."""
    _check_variance(variance)
    if not -1 <= cosine <= 1:
        raise ValueError(f"cosine is {cosine}, expected a number in [-1, 1].")
    return quadrature.products(quadrature.elementwise(activation), float(cosine), float(variance))


def _check_variance(variance: float) -> None:
    if not (math.isfinite(variance) and variance > 0):
        raise ValueError(f"variance is {variance}, expected a number above 0.")
