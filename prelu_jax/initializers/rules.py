"""Rules: distributions of weights, as values that can be compared, printed and called."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, Protocol, get_args

import jax
import jax.numpy as jnp

from prelu_jax import draws, names
from prelu_jax.initializers.fans import MODES, PLAIN, Layout, Mode

Distribution = Literal["normal", "truncated_normal", "uniform"]
DISTRIBUTIONS: tuple[Distribution, ...] = get_args(Distribution)


class Initializer(Protocol):
    """Interface of an initialiser: hashable, equal by value, and able to describe its rule."""

    def __call__(
        self, key: jax.Array, shape: Sequence[int], dtype: jax.typing.DTypeLike = jnp.float32
    ) -> jax.Array: ...

    def variance(self, shape: Sequence[int]) -> float:
        """Return the variance of the weights of a kernel of this shape."""

    def describe(self) -> str:
        """Return the rule in words, with its variance as a function of the fans."""


@dataclasses.dataclass(frozen=True)
class VarianceScaling:
    """Zero-mean weights of variance ``gain / fan``; drawn by `jax.nn.initializers`.

    Attributes:
        gain: the variance (not the standard deviation) times the fan.
        mode: the fan in the denominator: 'fan_in', 'fan_out', their arithmetic mean 'fan_avg' or
            their geometric mean 'fan_geo_avg'.
        distribution: 'normal' (a true Gaussian), 'truncated_normal' (at two standard deviations
            of the Gaussian before truncation; the variance is still that of the rule), 'uniform'.
        layout: roles of the kernel's axes.
        note: added to the description.
    """

    gain: float
    mode: Mode = "fan_in"
    distribution: Distribution = "normal"
    layout: Layout = PLAIN
    note: str = dataclasses.field(default="", compare=False)

    def __post_init__(self) -> None:
        names.check("mode", self.mode, MODES)
        names.check("distribution", self.distribution, DISTRIBUTIONS)
        _check_positive("gain", self.gain)

    def __call__(
        self, key: jax.Array, shape: Sequence[int], dtype: jax.typing.DTypeLike = jnp.float32
    ) -> jax.Array:
        shape = tuple(shape)

        def draw(
            key: jax.Array, drawn_shape: tuple[int, ...], dtype: jax.typing.DTypeLike
        ) -> jax.Array:
            # JAX's fans ignore groups and strides. With all axes as outputs its fan_in is 1, so
            # the scale is the variance itself.
            outputs = tuple(range(len(drawn_shape)))
            rule = jax.nn.initializers.variance_scaling(
                self.variance(shape), "fan_in", self.distribution, in_axis=(), out_axis=outputs
            )
            return rule(key, drawn_shape, dtype)

        return draws.flat(draw, key, shape, _draw_dtype(dtype)).astype(dtype)

    def variance(self, shape: Sequence[int]) -> float:
        return self.gain / self.layout.fan(self.mode, shape)

    def describe(self) -> str:
        words = f"{self.distribution.replace('_', ' ')}, variance {self.gain:.6g} / {self.mode}"
        return _with_note(words, self.note)


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Zero-mean Gaussian weights of a fixed standard deviation, whatever the fans."""

    stddev: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.stddev) and self.stddev >= 0):
            raise ValueError(f"gaussian: stddev is {self.stddev}, expected a number >= 0.")

    def __call__(
        self, key: jax.Array, shape: Sequence[int], dtype: jax.typing.DTypeLike = jnp.float32
    ) -> jax.Array:
        weights = draws.flat(jax.random.normal, key, shape, _draw_dtype(dtype))
        return (self.stddev * weights).astype(dtype)

    def variance(self, shape: Sequence[int]) -> float:
        del shape
        return self.stddev**2

    def describe(self) -> str:
        return f"normal, std {self.stddev:g}"


@dataclasses.dataclass(frozen=True)
class Constant:
    """The same number for all weights: zeros for biases, 0.25 for slopes."""

    value: float

    def __call__(
        self, key: jax.Array, shape: Sequence[int], dtype: jax.typing.DTypeLike = jnp.float32
    ) -> jax.Array:
        del key
        return jnp.full(tuple(shape), self.value, dtype)

    def variance(self, shape: Sequence[int]) -> float:
        del shape
        return 0.0

    def describe(self) -> str:
        return "zeros" if self.value == 0 else f"constant {self.value:g}"


@dataclasses.dataclass(frozen=True)
class Orthogonal:
    """Uniformly distributed kernels with orthonormal filters (or inputs) times ``√gain``.

    A kernel is seen as a matrix of ``fan_in`` rows and one column per filter. Its columns are
    orthogonal if there are no more filters than inputs, else its rows are (Saxe et al. 2014). Every
    group and every stacked layer is a matrix of its own.

    Attributes:
        gain: the square of the columns' (or rows') norm.
        layout: roles of the kernel's axes.
        only_centre: delta-orthogonal (Xiao et al. 2018): the matrix is in the centre of the
            convolution's window, with zeros elsewhere.
        identity: the matrix is the identity instead of a random one; with fewer outputs than inputs
            it keeps the first inputs.
        note: added to the description.
    """

    gain: float = 1.0
    layout: Layout = PLAIN
    only_centre: bool = False
    identity: bool = False
    note: str = dataclasses.field(default="", compare=False)

    def __post_init__(self) -> None:
        _check_positive("gain", self.gain)

    def __call__(
        self, key: jax.Array, shape: Sequence[int], dtype: jax.typing.DTypeLike = jnp.float32
    ) -> jax.Array:
        shape = tuple(shape)
        stack, rows, columns = self._sizes(shape)
        if self.identity:
            _draw_dtype(dtype)  # raises for types that are not floating-point
            matrices = jnp.broadcast_to(jnp.eye(rows, columns), (*stack, rows, columns))
        else:
            matrices = _orthonormal(key, (*stack, rows, columns), dtype)
        matrices = (math.sqrt(self.gain) * matrices).astype(dtype)
        if not self.only_centre:
            return from_matrices(matrices, shape, self.layout)
        window = self.layout.axes(shape)[3]
        centre = [1 if i in window else size for i, size in enumerate(shape)]
        around = [((n - 1) // 2, n // 2) if i in window else (0, 0) for i, n in enumerate(shape)]
        return jnp.pad(from_matrices(matrices, centre, self.layout), around)

    def variance(self, shape: Sequence[int]) -> float:
        _, rows, columns = self._sizes(shape)
        window = self.layout.axes(shape)[3]
        centre = math.prod(shape[i] for i in window) if self.only_centre else 1
        return self.gain / max(rows, columns) / centre

    def describe(self) -> str:
        if self.identity:
            return _with_note(f"Dirac, variance {self.gain:.6g} / max(fan_in, fan_out)", self.note)
        if self.only_centre:
            return _with_note(f"delta-orthogonal, variance {self.gain:.6g} / fan_out", self.note)
        return _with_note(f"orthogonal, variance {self.gain:.6g} / max(fan_in, filters)", self.note)

    def _sizes(self, shape: Sequence[int]) -> tuple[tuple[int, ...], int, int]:
        """Return the shape of the stack of matrices, and the rows and columns of each."""
        batch, inputs, outputs, window = self.layout.axes(shape)
        groups = self.layout.feature_group_count
        columns = math.prod(shape[i] for i in outputs) // groups
        rows = math.prod(shape[i] for i in inputs)
        if not self.only_centre:
            rows *= math.prod(shape[i] for i in window)
        elif rows > columns and not self.identity:
            raise ValueError(
                f"delta_orthogonal: a kernel of shape {tuple(shape)} has {rows} input features "
                f"and {columns} output features; expected at least as many outputs as inputs."
            )
        return (*(shape[i] for i in batch), groups), rows, columns


def from_matrices(matrices: jax.Array, shape: Sequence[int], layout: Layout = PLAIN) -> jax.Array:
    """Build a kernel from the matrices that it applies to the flattened inputs of a window.

    Args:
        matrices: ``[*batch, groups, rows, filters of a group]``; a row is a position in the window
            with an input feature, in the order of the kernel's axes.
        shape: shape of the kernel.
        layout: roles of its axes.
    """
    batch, inputs, outputs, window = layout.axes(shape)
    # The filters of a grouped convolution are stored group by group.
    matrices = jnp.moveaxis(matrices, len(batch), -2)
    order = [*batch, *sorted(inputs + window), *outputs]
    kernel = matrices.reshape([shape[i] for i in order])
    return jnp.transpose(kernel, [order.index(i) for i in range(len(shape))])


def _with_note(words: str, note: str) -> str:
    return f"{words} ({note})" if note else words


def _orthonormal(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.Array:
    """Return uniformly distributed orthonormal columns, or rows where there are fewer rows.

    The same numbers as `jax.random.orthogonal`, from a draw by `draws.flat`.
    """
    *stack, rows, columns = shape
    tall = (*stack, max(rows, columns), min(rows, columns))
    q, r = jnp.linalg.qr(draws.flat(jax.random.normal, key, tall, _draw_dtype(dtype)))
    q *= jnp.sign(jnp.linalg.diagonal(r))[..., None, :]  # else not uniform (Mezzadri 2007)
    return q.mT if rows < columns else q


def _draw_dtype(dtype: jax.typing.DTypeLike) -> jax.typing.DTypeLike:
    """Return the type to draw in: half-precision uniforms are too coarse for Gaussian tails."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(
            f"The type of the weights is {jnp.dtype(dtype).name}, expected a floating-point type."
        )
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value}, expected a number > 0.")
