"""Building blocks of `theory`: maps of second moments through convolutions, both ways.

A map ``[h, w]`` holds E[x²] at every position, over examples, channels and random weights; its
correlations ``[h, w, h, w]`` hold E[x(p) x(q)] / √(E[x(p)²] E[x(q)²]). Weights are independent,
of mean zero and a symmetric distribution; biases are 0.

Other layers are sums of these: of a residual block E[x²] + E[F(x)²], since F ends in new weights,
which makes it uncorrelated with x; of a concatenation the mean weighted by channels.
"""

import math

import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

from prelu_jax import rectifiers
from prelu_jax.arch import Conv

Map = NDArray[np.float64]


def taps(size: int, conv: Conv) -> Map:
    """How often output i of a convolution reads input j, along one axis: ``[outputs, size]``.

    Raises:
        ValueError: the padded input is smaller than the kernel.
    """
    before, after = conv.padding
    outputs = (size + before + after - conv.kernel_size) // conv.stride + 1
    if outputs < 1:
        raise ValueError(
            f"{conv.name}: {size} positions, padded by {conv.padding}, are fewer than the "
            f"{conv.kernel_size} of its kernel; give a larger input."
        )
    reads = np.zeros((outputs, size))
    for tap in range(conv.kernel_size):
        i = np.arange(outputs)
        j = i * conv.stride - before + tap
        if conv.circular:
            j %= size
        there = (j >= 0) & (j < size)  # the padding's zeros add nothing
        np.add.at(reads, (i[there], j[there]), 1.0)
    return reads


def conv_forward(x_hw: Map, conv: Conv, weight_variance: float, in_features: int) -> Map:
    """E[y²] of a convolution from E[x²] of its input, position by position (Eq. 7 with borders).

    ``E[y²](p) = Var[w] c Σ_taps E[x²](p + tap)``, ``[h, w] -> [h', w']``; in a convolution with
    groups c counts the inputs of one group. Exact at any width.
    """
    rows, columns = (taps(size, conv) for size in x_hw.shape)
    return weight_variance * in_features * (rows @ x_hw @ columns.T)


def conv_backward(
    dy_hw: Map, conv: Conv, weight_variance: float, input_shape: tuple[int, int]
) -> Map:
    """E[Δx²] from E[Δy²]: the transpose of `conv_forward` with ``conv.features`` for c (Eq. 12).

    ``[h', w'] -> [h, w]``. Exact in the wide limit.
    """
    rows, columns = (taps(size, conv) for size in input_shape)
    return weight_variance * conv.features * (rows.T @ dy_hw @ columns)


def conv_correlation(correlation: Map, x_hw: Map, conv: Conv) -> Map:
    """Correlations ``E[y(p) y(q)] / √(E[y(p)²] E[y(q)²])`` of a convolution's outputs.

    ``[h, w, h, w] -> [h', w', h', w']``, from those of its inputs and E[x²]. Outputs at p and q
    share their weights tap by tap, so that their products add up over taps, exactly at any width.
    """
    deviation = np.sqrt(np.asarray(x_hw, np.float64))
    products = correlation * np.multiply.outer(deviation, deviation)
    products = np.pad(products, (conv.padding,) * 4, mode="wrap" if conv.circular else "constant")
    total: Map | float = 0.0
    last = [side - conv.kernel_size + 1 for side in products.shape]
    for i in range(conv.kernel_size):
        for j in range(conv.kernel_size):
            starts = (i, j, i, j)
            total = (
                total
                + products[
                    tuple(slice(a, a + b, conv.stride) for a, b in zip(starts, last, strict=True))
                ]
            )
    total = np.asarray(total)
    deviation = np.sqrt(np.einsum("ijij->ij", total))
    return total / np.maximum(np.multiply.outer(deviation, deviation), 1e-300)


def rectified_correlation(correlation: ArrayLike, negative_slope: ArrayLike = 0.0) -> Map:
    """``E[f(u)f(v)] / √(E[f(u)²] E[f(v)²])`` of Gaussians u and v of this correlation.

    The arc-cosine kernel of degree 1 (Cho & Saul 2009) for ``f(u) = a u + (1 - a) max(0, u)``;
    for one slope per channel, the mean over channels. Any shape.
    """
    slope = np.asarray(negative_slope, np.float64)
    cosine = np.clip(np.asarray(correlation, np.float64), -1.0, 1.0)
    of_relu = (np.sqrt(1 - cosine**2) + (math.pi - np.arccos(cosine)) * cosine) / (2 * math.pi)
    product = np.mean(slope) * cosine + np.mean((1 - slope) ** 2) * of_relu
    return product / rectifiers.second_moment_gain(slope)
