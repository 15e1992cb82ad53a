"""Gaussian moments of any elementwise activation, and what they do to a signal at depth.

A pre-activation of a wide layer of random weights is Gaussian, z ~ N(0, q). An activation f then
keeps E[f(z)²] / q of the second moment forward and E[f'(z)²] backward, and it maps the cosine c of
two examples to C(c) = E[f(u) f(v)] / E[f²] (Poole et al. 2016; Schoenholz et al. 2017). For the
rectifiers there are closed forms; for every other function the expectations are integrals, computed
here in float64 by Gauss-Legendre rules on pieces that are halved until both halves agree. Kinks, as
those of `jax.nn.relu6`, are found in the same way.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from prelu_jax import moment_maps, rectifiers

Activation = Callable[[jax.Array], jax.Array]
Keeps = Literal["forward", "backward"]
Array = NDArray[np.float64]

_LARGEST = 14  # standard deviations; a Gaussian is beyond with a probability of 1e-44
_EDGES = np.arange(-_LARGEST, _LARGEST + 1.0)
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_TOLERANCE = 1e-15  # of an integral, in one piece
_NEAR = 1e-9  # on both sides of a kink, where the derivative is compared
_JUMP = 1e-5  # of a derivative at a kink, at least, over its root mean square


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
        """Return backward / forward, C'(1): 1 for the rectifiers, where one gain keeps both."""
        return self.backward / self.forward

    def kept(self, keeps: Keeps) -> float:
        """Return `forward` or `backward`.

        Raises:
            ValueError: ``keeps`` is neither.
        """
        if keeps not in ("forward", "backward"):
            raise ValueError(f"keeps is {keeps!r}, expected 'forward' or 'backward'.")
        return self.forward if keeps == "forward" else self.backward


def moments(activation: Activation, variance: float = 1.0) -> Moments:
    """Return the moments of an activation by quadrature, to about 1e-13.

    Args:
        activation: an elementwise JAX function, such as `jax.nn.gelu`.
        variance: q, of the Gaussian pre-activation.

    Raises:
        TypeError: the activation is no function, cannot be traced, or is not real.
        ValueError: it is not elementwise, not finite, or it grows so fast that the moments are
            infinite; or the variance is not positive.
    """
    _check_variance(variance)
    return _moments(_elementwise(activation), float(variance))


@functools.lru_cache(maxsize=256)
def _moments(activation: Activation, variance: float) -> Moments:
    scale = math.sqrt(variance)

    def integrands(z: Array) -> Array:
        f, derivative = _values(activation, scale * z)
        return np.stack([f, f**2, derivative**2, f**2 * (z**2 - 1)])

    (mean, second, derivative, growth), _ = _expectations(integrands, _EDGES)
    if not second > 0:
        raise ValueError(
            f"{_name(activation)} is 0 almost everywhere at variance {variance:g}: expected a "
            "function that keeps a part of the signal."
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
    """

    def growth(log_variance: float) -> float:
        q = math.exp(log_variance)
        return length_map(activation, q, gain, bias_variance) / q - 1

    smallest, largest = map(math.log, within)
    grid = np.linspace(smallest, largest, 33)
    values = [growth(x) for x in grid]
    points = []
    for (a, b), (at_a, at_b) in zip(
        itertools.pairwise(grid), itertools.pairwise(values), strict=True
    ):
        if at_a * at_b < 0 and max(abs(at_a), abs(at_b)) > 1e-12:
            q = math.exp(optimize.brentq(growth, a, b, xtol=1e-14))
            m = moments(activation, q)
            slope = gain * m.exponent * m.forward
            points.append(FixedPoint(q, slope, gain * m.backward))
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


def cosine_at_depth(negative_slope: jax.typing.ArrayLike, depth: int, cosine: float = 0.0) -> float:
    """Return the cosine of two examples after ``depth`` rectified layers of random weights.

    Args:
        negative_slope: a scalar, or the slopes of a layer's channels; the same in every layer.
        depth: number of layers.
        cosine: of the examples before the first layer.
    """
    for _ in range(depth):
        cosine = float(moment_maps.rectified_correlation(cosine, negative_slope))
    return cosine


def tailored_slope(depth: int, cosine: float = 0.9) -> float:
    """Return the slope with which a plain net of leaky rectifiers keeps examples apart.

    Orthogonal examples have this cosine after ``depth`` layers (Zhang, Botev & Martens 2022). With
    ReLU it approaches 1: at depth examples look the same.

    Args:
        depth: number of rectified layers, at least 1.
        cosine: of orthogonal examples after the last layer.

    Raises:
        ValueError: the depth is below 1, or no slope in [0, 1] gives that cosine; the error gives
            the range that slopes reach.
    """
    if not (isinstance(depth, (int, np.integer)) and depth >= 1):
        raise ValueError(f"tailored_slope: depth is {depth!r}, expected a whole number above 0.")
    largest = cosine_at_depth(0.0, depth)
    if not 0 <= cosine <= largest:
        raise ValueError(
            f"tailored_slope: cosine is {cosine!r}, expected one that a slope in [0, 1] reaches "
            f"in {depth} layers: from 0 (slope 1) to {largest:.4g} (slope 0)."
        )
    if cosine == largest:
        return 0.0
    return float(optimize.brentq(lambda a: cosine_at_depth(a, depth) - cosine, 0, 1, xtol=1e-14))


def _products(activation: Activation, cosine: float, variance: float) -> tuple[float, float]:
    """Return E[f(u) f(v)] and E[f'(u) f'(v)] for Gaussians of this cosine and variance."""
    _check_variance(variance)
    if not -1 <= cosine <= 1:
        raise ValueError(f"cosine is {cosine}, expected a number in [-1, 1].")
    return _cached_products(_elementwise(activation), float(cosine), float(variance))


@functools.lru_cache(maxsize=1024)
def _cached_products(activation: Activation, cosine: float, variance: float) -> tuple[float, float]:
    scale, sine = math.sqrt(variance), math.sqrt(1 - cosine**2)
    kinks = _kinks(activation, variance)

    def integrands(u: Array) -> Array:
        at_u = _values(activation, scale * u)
        # v = c u + s w with w independent of u: the inner expectation is over w.
        if sine == 0:
            at_v = _values(activation, scale * cosine * u)
        else:
            w, weights = _inner_rule(kinks, cosine, sine, u)
            inner = _values(activation, scale * (cosine * u[:, None] + sine * w))
            at_v = (weights * inner).sum(axis=-1)
        return np.asarray(at_u * at_v)

    edges = {*_EDGES, *kinks}
    if cosine:
        # For a cosine near 1 the inner expectation is smooth only on a scale of s.
        edges |= {k / cosine for k in kinks if abs(k) < _LARGEST * abs(cosine)}
    (product, derivative), _ = _expectations(integrands, np.array(sorted(edges)), 1e-14)
    return float(product), float(derivative)


def _inner_rule(kinks: Sequence[float], cosine: float, sine: float, u: Array) -> tuple[Any, Any]:
    """Return nodes and weights of E over w, split where c u + s w is at a kink: ``[u, nodes]``."""
    at_kinks = (np.asarray(kinks) - cosine * u[:, None]) / sine
    edges = np.broadcast_to(_EDGES, (len(u), len(_EDGES)))
    edges = np.sort(np.concatenate([edges, at_kinks.clip(-_LARGEST, _LARGEST)], axis=1))
    w, weights = _rule(edges[:, :-1], edges[:, 1:])
    shape = len(u), -1
    return w.reshape(shape), (weights * np.exp(-(w**2) / 2) / math.sqrt(2 * math.pi)).reshape(shape)


@functools.lru_cache(maxsize=256)
def _kinks(activation: Activation, variance: float) -> tuple[float, ...]:
    """Return the places of f(√q z) where its value or derivative jumps."""
    scale = math.sqrt(variance)

    def integrands(z: Array) -> Array:
        return _values(activation, scale * z)  # squares would hide the kink of |z - k|

    _, pieces = _expectations(integrands, _EDGES)
    edges = np.unique(pieces)  # between the outermost
    edges = edges[abs(edges) < _LARGEST]
    sides = [_values(activation, scale * (edges + side)) for side in (-_NEAR, _NEAR)]
    size = np.sqrt(np.mean(sides[0] ** 2, axis=-1, keepdims=True)) + 1e-300
    jumps = (abs(sides[1] - sides[0]) > _JUMP * size).any(axis=0)
    widths = dict(zip(pieces[:, 0].tolist(), np.diff(pieces)[:, 0].tolist(), strict=True))
    kinks: list[float] = []
    for edge in edges[jumps]:
        # Several edges surround one kink: it lies in the narrowest piece.
        if kinks and edge - kinks[-1] < 4 * _NEAR:
            kinks[-1] = min(kinks[-1], float(edge), key=widths.__getitem__)
        else:
            kinks.append(float(edge))
    return tuple(kinks)


def _expectations(
    integrands: Callable[[Array], Array], edges: Array, tolerance: float = _TOLERANCE
) -> tuple[Array, Array]:
    """Return E over z ~ N(0, 1) of functions ``[n] -> [k, n]``, and the pieces ``[m, 2]``.

    A piece is halved until the rule on it and on its halves agree, or until it is as narrow as
    float64 allows, which happens at kinks.

    Args:
        integrands: the functions.
        edges: of the first pieces.
        tolerance: of a piece, over the expectations of absolute values.
    """
    pieces = np.stack([edges[:-1], edges[1:]], axis=1)
    values, sizes = _on_pieces(integrands, pieces)
    size = sizes.sum(axis=1, keepdims=True) + 1e-300
    if (sizes[:, [0, -1]] > 1e-12 * size).any():
        raise ValueError("The activation grows so fast that its moments are infinite.")
    total = np.zeros(len(values))
    kept = []
    while len(pieces):
        middles = pieces.mean(axis=1)
        halves = np.stack([pieces[:, 0], middles, middles, pieces[:, 1]], axis=1).reshape(-1, 2)
        of_halves, _ = _on_pieces(integrands, halves)
        sums = of_halves.reshape(len(total), -1, 2).sum(axis=2)
        narrow = pieces[:, 1] - pieces[:, 0] <= 8 * np.spacing(abs(pieces).max(axis=1))
        done = (abs(sums - values) <= tolerance * size).all(axis=0) | narrow
        total += sums[:, done].sum(axis=1)
        kept.append(pieces[done])
        again = np.repeat(~done, 2)
        pieces, values = halves[again], of_halves[:, again]
    return total, np.concatenate(kept)


def _on_pieces(integrands: Callable[[Array], Array], pieces: Array) -> tuple[Array, Array]:
    """Return the integral of every function over every piece, and of its absolute value."""
    z, weights = _rule(pieces[:, 0], pieces[:, 1])
    weights = weights * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    values = integrands(z.ravel()).reshape(-1, *z.shape)
    return (values * weights).sum(axis=2), (abs(values) * weights).sum(axis=2)


def _rule(left: Array, right: Array) -> tuple[Array, Array]:
    """Return the nodes and weights of the Gauss-Legendre rule on every piece, ``[..., nodes]``."""
    half = ((right - left) / 2)[..., None]
    return left[..., None] + half * (_NODES + 1), half * _WEIGHTS


@functools.partial(jax.jit, static_argnums=0)
def _value_and_derivative(activation: Activation, x: jax.Array) -> jax.Array:
    return jax.numpy.stack(jax.jvp(activation, (x,), (jax.numpy.ones_like(x),)))


def _values(activation: Activation, z: Array) -> Array:
    """Return f and f' in float64, ``[2, *shape of z]``.

    Raises:
        ValueError: they are not finite; the error names the place.
    """
    flat = z.ravel()
    # Few sizes, because each compiles.
    padded = np.full(1 << max(10, (flat.size - 1).bit_length()), flat[0])
    padded[: flat.size] = flat
    with jax.enable_x64(True):
        values = np.asarray(_value_and_derivative(activation, padded), np.float64)
    values = values[:, : flat.size].reshape(2, *z.shape)
    finite = np.isfinite(values).all(axis=0)
    if not finite.all():
        place = z[~finite][np.argmin(abs(z[~finite]))]
        raise ValueError(
            f"{_name(activation)} or its derivative is not finite at {place:.3g}: expected an "
            f"activation that is finite within {_LARGEST} standard deviations of 0."
        )
    return values


_PROBE = np.array([-1.7, -0.4, 0.3, 0.9, 2.2])


def _elementwise(activation: Activation) -> Activation:
    """Return the activation, once it is checked on five numbers.

    Raises:
        TypeError: it is no function, cannot be traced, or is not real.
        ValueError: it is not elementwise.
    """
    if not callable(activation):
        raise TypeError(
            f"activation is {activation!r}, expected an elementwise function such as jax.nn.gelu."
        )
    try:
        hash(activation)
    except TypeError:  # a callable pytree: hashed by identity instead
        activation = functools.partial(activation)
    _check_elementwise(activation)
    return activation


@functools.lru_cache(maxsize=256)
def _check_elementwise(activation: Activation) -> None:
    name = _name(activation)
    with jax.enable_x64(True):
        x = jax.numpy.asarray(_PROBE)
        try:
            shape = jax.eval_shape(activation, x)
        except Exception as error:
            raise TypeError(
                f"{name} cannot be traced by JAX ({type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else ''}): expected a function of "
                "arrays made of jax.numpy operations."
            ) from error
        if getattr(shape, "shape", None) != x.shape:
            raise ValueError(
                f"{name} returns {shape} for an array of shape {x.shape}: expected an elementwise "
                "function, whose output has the shape of its input."
            )
        if not jax.numpy.issubdtype(shape.dtype, jax.numpy.floating):
            raise TypeError(
                f"{name} returns values of type {shape.dtype}: expected real floating-point values."
            )
        together = np.asarray(activation(x))
        alone = np.concatenate([np.asarray(activation(x[i : i + 1])) for i in range(len(x))])
    if not np.allclose(together, alone, rtol=1e-6, atol=1e-12, equal_nan=True):
        raise ValueError(
            f"{name} gives another value for a number alone than in an array: expected an "
            "elementwise function, which does not mix positions as jax.nn.softmax does."
        )


def _name(activation: Activation) -> str:
    return str(getattr(activation, "__name__", activation))


def _check_variance(variance: float) -> None:
    if not (math.isfinite(variance) and variance > 0):
        raise ValueError(f"variance is {variance}, expected a number above 0.")
