"""The layers of Flax, in Linen and in NNX, by the kind of their kernel."""

from flax import linen as nn
from flax import nnx

DENSE = (nn.Dense, nnx.Linear)
DENSE_GENERAL = (nn.DenseGeneral, nnx.LinearGeneral)
EINSUM = (nn.Einsum, nnx.Einsum)
CONV = (nn.Conv, nnx.Conv)
CONV_LOCAL = (nn.ConvLocal,)
CONV_TRANSPOSE = (nn.ConvTranspose, nnx.ConvTranspose)
EMBED = (nn.Embed, nnx.Embed)
WINDOWED = (*CONV, *CONV_LOCAL, *CONV_TRANSPOSE)
ALL = (*DENSE, *DENSE_GENERAL, *EINSUM, *WINDOWED, *EMBED)
NORMED = (nn.WeightNorm, nn.SpectralNorm)  # around a layer
