"""The methods that need one forward pass: their part at a single layer.

Within-layer initialisation (Krähenbühl et al. 2015, Algorithm 1) and layer-sequential unit variance
(Mishkin & Matas 2015); `from_patches` has those that draw filters from a layer's input.
"""

import dataclasses
import math
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prelu_jax import initializers
from prelu_jax.datadep.channels import Correction, Moments
from prelu_jax.datadep.layers import Layer
from prelu_jax.initializers import Initializer, Layout
from prelu_jax.tracing import Visit

_WORDS = {bool: "True or False", numbers.Integral: "an integer", numbers.Real: "a number"}


def check_type(method: Any, option: str, expected: type) -> None:
    """Check the type of a method's option; its range the method checks.

    Args:
        method: the method, with its options as attributes.
        option: the name of one.
        expected: `bool`, `numbers.Integral` or `numbers.Real`; a bool is none of the others.

    Raises:
        TypeError: it is of another type.
    """
    value = getattr(method, option)
    if not isinstance(value, expected) or isinstance(value, bool) is not (expected is bool):
        raise TypeError(
            f"{type(method).__name__}: {option} is {value!r}, expected {_WORDS[expected]}. Options "
            f"are best given by name, {option}=..."
        )


class Redrawn(NamedTuple):
    """W from the layer's input, and whether that had enough patches and directions."""

    weight: jax.Array
    enough: jax.Array


class OnePass:
    """A method with one forward pass. Methods are frozen dataclasses of their options."""

    def initializer(self, layout: Layout) -> Initializer | None:
        """Return what draws W before the pass, with a bias of 0; None to keep both."""
        del layout
        return None

    @property
    def without_redraw(self) -> "OnePass":
        """The method for layers that are drawn already: it only corrects them."""
        return self

    def redraw(
        self, layer: Layer, visit: Visit, key: jax.Array, axis_name: str | None
    ) -> Redrawn | None:
        """Return a new W, made of the layer's input, with a bias of 0; None to keep both."""
        del layer, visit, key, axis_name
        return None

    def correction(self, moments: Moments, has_bias: bool) -> Correction:
        """Return the correction of an output of these moments; without a bias the shift is 0."""
        raise NotImplementedError

    def error(self, moments: Moments, has_bias: bool) -> float:
        """Return the distance of an output of these moments from the target."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class WithinLayer(OnePass):
    """Within-layer initialisation: every channel of every affine output gets mean β and std 1.

    W ← W / σ̂ and b ← (b − μ̂) / σ̂ + β, channel by channel, with the mean μ̂ and the std σ̂ of the
    layer's output after the layers before it are corrected. The directions of the weights stay:
    Gaussian, orthogonal, PCA or pre-trained. Without a bias only the scale is corrected.

    With β = 0 gradients grow towards the input, if outputs are roughly Gaussian, kernels random
    with fan_in = fan_out, and every layer has a bias to centre with. A rectifier of negative slope
    a then makes a second moment of (1 + a²)/2, whose variance, (1 + a²)/2 less the square of its
    mean, (1 − a)²/2π, the next kernel scales to 1. That kernel multiplies the gradient's second
    moment by 1 over the variance, and the rectifier by (1 + a²)/2. Their product is the growth in
    every layer: π/(π − 1) = 1.467 for ReLU, 45,700-fold over 28 layers. `Lsuv` does not centre and
    has no such growth; `BetweenLayer` makes the rates of change equal again.

    Attributes:
        target_mean: β. The authors' code has 0.1, for fewer dead units of a rectifier.
    """

    target_mean: float = 0.0

    def __post_init__(self) -> None:
        check_type(self, "target_mean", numbers.Real)
        if not math.isfinite(self.target_mean):
            raise ValueError(f"within_layer: target_mean is {self.target_mean}, expected a number.")

    def correction(self, moments: Moments, has_bias: bool) -> Correction:
        """Return the scale and shift of the output; 1 and 0 for channels that do not vary."""
        scale = 1 / jnp.where(moments.varies, moments.std, 1)
        shift = jnp.where(moments.varies, self.target_mean - moments.mean * scale, 0)
        return Correction(scale, shift if has_bias else jnp.zeros_like(shift))

    def error(self, moments: Moments, has_bias: bool) -> float:
        """Return the largest distance of a channel from its target, as a fraction of its std."""
        off = np.abs(moments.std - 1)
        if has_bias:
            off = np.maximum(off, np.abs(moments.mean - self.target_mean))
        return float(np.max(np.where(moments.varies, off, 0)))


@dataclasses.dataclass(frozen=True)
class Lsuv(OnePass):
    """LSUV: every affine output gets a variance of 1 over examples, positions and channels.

    Orthonormal kernels and biases of 0, then W ← W / √Var(y), layer by layer in execution order.
    An output is proportional to its kernel and bias, so one division is exact and the published
    loop of repeated measurements is not needed. The mean stays as it is.

    Attributes:
        orthonormal: draw new kernels; False keeps the given kernels and biases.
        tolerance: layers with ``|Var(y) − 1|`` below it stay as they are. With 0.02, the value in
            the authors' code, the weights are those of the published loop.
    """

    orthonormal: bool = True
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        check_type(self, "orthonormal", bool)
        check_type(self, "tolerance", numbers.Real)
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"lsuv: tolerance is {self.tolerance}, expected 0 (none) to below 1.")

    def initializer(self, layout: Layout) -> Initializer | None:
        """Return that of orthonormal weights, in the layer's own layout."""
        return initializers.orthogonal(layout=layout) if self.orthonormal else None

    def correction(self, moments: Moments, has_bias: bool) -> Correction:
        """Return the same scale for every channel, 1 if nothing varies, and no shift."""
        std = _std(moments)
        near = jnp.abs(jnp.square(std) - 1) < self.tolerance
        scale = 1 / jnp.where(near | (std == 0), 1, std)
        return Correction(jnp.full_like(moments.std, scale), jnp.zeros_like(moments.std))

    def error(self, moments: Moments, has_bias: bool) -> float:
        """Return the distance of the variance from its target; 0 within the tolerance."""
        off = abs(float(_std(moments, np)) ** 2 - 1)  # NumPy: nothing to compile
        return off if off >= self.tolerance and moments.varies.any() else 0.0


def _std(moments: Moments, numpy: Any = jnp) -> Any:
    """Return the std of the whole output, within channels and between their means.

    It is computed in units of the largest moment, whose square fits in float32.

    Args:
        moments: of every channel.
        numpy: the module that computes, `jax.numpy` or `numpy`.
    """
    largest = numpy.maximum(numpy.abs(moments.mean), moments.std).max()
    unit = numpy.where(largest == 0, 1, largest)
    square = numpy.square(moments.std / unit).mean() + (moments.mean / unit).var()
    return numpy.sqrt(square) * largest
