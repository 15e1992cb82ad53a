"""Within-layer initialisation (Krähenbühl et al. 2015, Algorithm 1)."""

import dataclasses
import math
import numbers

import jax.numpy as jnp
import numpy as np

from prelu_jax.datadep import options
from prelu_jax.datadep.method import OnePass
from prelu_jax.datadep.moments import Moments
from prelu_jax.datadep.places import Correction


@dataclasses.dataclass(frozen=True)
class WithinLayer(OnePass):
    """Every channel of every affine layer's output to a mean of β and a std of 1.

    W ← W / σ̂ and b ← (b − μ̂) / σ̂ + β, channel by channel, with the mean μ̂ and the std σ̂ of what
    the layer puts out given the layers before it, which are corrected already. The direction of the
    incoming weights is kept: Gaussian, orthogonal, PCA or pre-trained. Without a bias the scale
    alone is corrected and the mean is what it is.

    With β = 0 gradients grow towards the input, if outputs are roughly Gaussian, kernels random
    with fan_in = fan_out, and every layer has a bias to centre with. A rectifier of negative slope
    a then makes a second moment of (1 + a²)/2, whose variance, (1 + a²)/2 less the square of its
    mean, (1 − a)²/2π, the next kernel scales to 1. That kernel multiplies the gradient's second
    moment by 1 over the variance, and the rectifier by (1 + a²)/2. Their product is the growth in
    every layer: π/(π − 1) = 1.467 for ReLU, 45,700-fold over 28 layers. `Lsuv`, which does not
    centre, does not do so; `BetweenLayer` makes the rates of change even again.

    Attributes:
        target_mean: β. The authors' code has 0.1: more units of a rectifier are alive.
    """

    target_mean: float = 0.0

    def __post_init__(self) -> None:
        options.check_type(self, "target_mean", numbers.Real)
        if not math.isfinite(self.target_mean):
            raise ValueError(f"within_layer: target_mean is {self.target_mean}, expected a number.")

    def correction(self, moments: Moments, has_bias: bool) -> Correction:
        """The scale and shift of the output; of channels that do not vary, 1 and 0."""
        scale = 1 / jnp.where(moments.varies, moments.std, 1)
        shift = jnp.where(moments.varies, self.target_mean - moments.mean * scale, 0)
        return Correction(scale, shift if has_bias else jnp.zeros_like(shift))

    def error(self, moments: Moments, has_bias: bool) -> float:
        """How far the farthest channel is from its target, as a fraction of its std."""
        off = np.abs(moments.std - 1)
        if has_bias:
            off = np.maximum(off, np.abs(moments.mean - self.target_mean))
        return float(np.max(np.where(moments.varies, off, 0)))
