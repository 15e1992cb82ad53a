"""Gaussian expectations of an elementwise function and its derivative, in float64.

Gauss-Legendre rules on pieces that are halved until both halves agree: a Gauss-Hermite rule would
converge slowly at kinks, as those of `jax.nn.relu6`.
"""

import functools
import math
import types
from collections.abc import Callable, Sequence

import jax
import numpy as np
from numpy.typing import NDArray

Activation = Callable[[jax.Array], jax.Array]
Array = NDArray[np.float64]

LARGEST = 14  # standard deviations; a Gaussian is beyond with a probability of 1e-44
EDGES = np.arange(-LARGEST, LARGEST + 1.0)
# Finer near 0, where the features of an activation lie at large variances.
FINE_EDGES = np.unique(
    [
        *np.arange(-LARGEST, LARGEST + 1 / 8, 1 / 8),
        *(2.0 ** -np.arange(4, 41)),
        *(-(2.0 ** -np.arange(4, 41))),
    ]
)
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
# Of an integral, in one piece, by the bits of the values. A function may compute in float32 inside.
_TOLERANCES = {64: (1e-15, 1e-7), 32: (1e-7,), 16: (1e-3,)}
_MOST_PIECES = 20_000
_RESOLVED = 1e-6  # of an integral, at most, in a piece that cannot be halved any more
_NEAR = 1e-9  # on both sides of a kink, where the derivative is compared
_JUMP = 1e-5  # of a derivative at a kink, at least, over its root mean square
# Results of these are cached; other callables may hold arrays that change.
_STATELESS = (
    *(types.FunctionType, types.BuiltinFunctionType, functools.partial),
    *(jax.custom_jvp, jax.custom_vjp, type(jax.jit(lambda x: x)), type(jax.numpy.add)),
)
_PROBE = np.array([-1.7, -0.4, 0.3, 0.9, 2.2])


def expectations(
    activation: Activation, integrands: Callable[[Array], Array], edges: Array = FINE_EDGES
) -> tuple[Array, Array]:
    """Return E over z ~ N(0, 1) of functions ``[n] -> [k, n]``, and the pieces ``[m, 2]``.

    A piece is halved until the rule on it and on its halves agree, or until it is as narrow as
    float64 allows, which happens at kinks. Functions that are computed in a shorter type agree to
    a few digits only. Features narrower than 0.005 that are not near 0 may be missed.

    Args:
        activation: of which the functions are made; its type decides the tolerance.
        integrands: the functions.
        edges: of the first pieces.

    Raises:
        ValueError: an expectation is infinite, or the functions vary too fast.
    """
    for tolerance in _TOLERANCES[_bits(activation)]:
        if result := _refined(integrands, edges, tolerance):
            return result
    raise ValueError(
        "The activation varies too fast for its moments, or they are infinite: expected a function "
        "without singularities whose features are wider than 0.001 standard deviations."
    )


@functools.lru_cache(maxsize=256)
def _bits(activation: Activation) -> int:
    """Return the size of the activation's values for float64 inputs."""
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        return int(8 * jax.eval_shape(activation, jax.numpy.asarray(_PROBE)).dtype.itemsize)


def _refined(
    integrands: Callable[[Array], Array], edges: Array, tolerance: float
) -> tuple[Array, Array] | None:
    """Return `expectations` to a tolerance over those of absolute values; None if it fails."""
    pieces = np.stack([edges[:-1], edges[1:]], axis=1)
    values, sizes = _on_pieces(integrands, pieces)
    size = sizes.sum(axis=1, keepdims=True) + 1e-300
    if (sizes[:, [0, -1]] > 1e-12 * size).any():
        raise ValueError(
            f"The moments of the activation lie beyond {LARGEST} standard deviations: they are "
            "infinite, or it is 0 at this variance."
        )
    total = np.zeros(len(values))
    kept: list[Array] = []
    while len(pieces):
        if sum(map(len, kept)) + len(pieces) > _MOST_PIECES:
            return None
        middles = pieces.mean(axis=1)
        halves = np.stack([pieces[:, 0], middles, middles, pieces[:, 1]], axis=1).reshape(-1, 2)
        of_halves, _ = _on_pieces(integrands, halves)
        sums = of_halves.reshape(len(total), -1, 2).sum(axis=2)
        errors = abs(sums - values) / size
        narrow = np.diff(pieces)[:, 0] <= 8 * np.spacing(np.maximum(abs(pieces).max(axis=1), 1e-4))
        if (errors[:, narrow] > _RESOLVED).any():
            return None  # a singularity
        done = (errors <= tolerance).all(axis=0) | narrow
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
    y, pull = jax.vjp(activation, x)
    (derivative,) = pull(jax.numpy.ones_like(y))
    return jax.numpy.stack([y.astype(x.dtype), derivative])


def values(activation: Activation, z: Array) -> Array:
    """Return f and f' in float64, ``[2, *shape of z]``.

    Raises:
        ValueError: they are not finite; the error names the place.
    """
    flat = z.ravel()
    # Few sizes, because each compiles.
    padded = np.full(1 << max(10, (flat.size - 1).bit_length()), flat[0])
    padded[: flat.size] = flat
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):  # also inside of jit
        values = np.asarray(_value_and_derivative(activation, padded), np.float64)
    values = values[:, : flat.size].reshape(2, *z.shape)
    finite = np.isfinite(values).all(axis=0)
    if not finite.all():
        place = z[~finite][np.argmin(abs(z[~finite]))]
        raise ValueError(
            f"{name_of(activation)} or its derivative is not finite at {place:.3g}: expected an "
            f"activation that is finite within {LARGEST} standard deviations of 0."
        )
    return values


def elementwise(activation: Activation) -> Activation:
    """Return the activation, once it is checked on five numbers.

    Raises:
        TypeError: it is no function, cannot be traced, or is not real.
        ValueError: it is not elementwise.
    """
    if not callable(activation):
        raise TypeError(
            f"activation is {activation!r}, expected an elementwise function such as jax.nn.gelu."
        )
    if not isinstance(activation, _STATELESS):
        activation = functools.partial(activation)  # a new object: its state may have changed
    _check(activation)
    return activation


@functools.lru_cache(maxsize=256)
def _check(activation: Activation) -> None:
    name = name_of(activation)
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
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
        try:
            jax.eval_shape(functools.partial(_value_and_derivative, activation), x)
        except Exception as error:
            raise TypeError(
                f"{name} cannot be differentiated by JAX ({type(error).__name__}): expected a "
                "function with a derivative."
            ) from error
        together = np.asarray(activation(x))
        alone = np.concatenate([np.asarray(activation(x[i : i + 1])) for i in range(len(x))])
    if not np.allclose(together, alone, rtol=1e-6, atol=1e-12, equal_nan=True):
        raise ValueError(
            f"{name} gives another value for a number alone than in an array: expected an "
            "elementwise function, which does not mix positions as jax.nn.softmax does."
        )


@functools.lru_cache(maxsize=256)
def kinks_of(activation: Activation, variance: float) -> tuple[float, ...]:
    """Return the places of f(√q z) where its value or derivative jumps."""
    scale = math.sqrt(variance)

    def integrands(z: Array) -> Array:
        return values(activation, scale * z)  # squares would hide the kink of |z - k|

    _, pieces = expectations(activation, integrands, EDGES)
    edges = np.unique(pieces)  # between the outermost
    edges = edges[abs(edges) < LARGEST]
    sides = [values(activation, scale * (edges + side)) for side in (-_NEAR, _NEAR)]
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


@functools.lru_cache(maxsize=1024)
def products(activation: Activation, cosine: float, variance: float) -> tuple[float, float]:
    """Return E[f(u) f(v)] and E[f'(u) f'(v)] for Gaussians of this correlation and variance."""
    scale, sine = math.sqrt(variance), math.sqrt(1 - cosine**2)
    kinks = kinks_of(activation, variance)

    def integrands(u: Array) -> Array:
        at_u = values(activation, scale * u)
        # v = c u + s w with w independent of u: the inner expectation is over w.
        if sine == 0:
            at_v = values(activation, scale * cosine * u)
        else:
            w, weights = _inner_rule(kinks, cosine, sine, u)
            inner = values(activation, scale * (cosine * u[:, None] + sine * w))
            at_v = (weights * inner).sum(axis=-1)
        return np.asarray(at_u * at_v)

    edges = {*EDGES, *kinks}
    if cosine:
        # For a cosine near 1 the inner expectation is smooth only on a scale of s.
        edges |= {k / cosine for k in kinks if abs(k) < LARGEST * abs(cosine)}
    (product, derivative), _ = expectations(activation, integrands, np.array(sorted(edges)))
    return float(product), float(derivative)


def _inner_rule(
    kinks: Sequence[float], cosine: float, sine: float, u: Array
) -> tuple[Array, Array]:
    """Return nodes and weights of E over w, split where c u + s w is at a kink: ``[u, nodes]``."""
    at_kinks = (np.asarray(kinks) - cosine * u[:, None]) / sine
    edges = np.broadcast_to(EDGES, (len(u), len(EDGES)))
    edges = np.sort(np.concatenate([edges, at_kinks.clip(-LARGEST, LARGEST)], axis=1))
    w, weights = _rule(edges[:, :-1], edges[:, 1:])
    shape = len(u), -1
    return w.reshape(shape), (weights * np.exp(-(w**2) / 2) / math.sqrt(2 * math.pi)).reshape(shape)


def name_of(activation: Activation) -> str:
    """Return the name of a function for messages."""
    return str(getattr(activation, "__name__", activation))
