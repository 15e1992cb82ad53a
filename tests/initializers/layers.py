"""Linear layers without bias, one per kind, for the tests of this folder."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from prelu_jax.initializers import Layout
from prelu_jax.initializers.fans import PLAIN


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer, the input of its call, and the expected layout of its kernel."""

    layer: nn.Module
    input_shape: tuple[int, ...]
    layout: Layout = PLAIN

    def kernel_shape(self) -> tuple[int, ...]:
        x = jax.ShapeDtypeStruct(self.input_shape, jnp.float32)
        return jax.eval_shape(self.layer.init, jax.random.key(0), x)["params"]["kernel"].shape


def conv(features: int, window: tuple[int, ...], **options: Any) -> nn.Conv:
    return nn.Conv(features, window, use_bias=False, **options)


def up(features: int, window: tuple[int, ...], **options: Any) -> nn.ConvTranspose:
    return nn.ConvTranspose(features, window, use_bias=False, **options)


CASES = {
    "dense": Case(nn.Dense(30, use_bias=False), (1, 20)),
    "conv1d": Case(conv(12, (5,)), (1, 11, 8)),
    "conv2d": Case(conv(12, (3, 3)), (1, 7, 7, 8)),
    "conv2d, even": Case(conv(8, (2, 2)), (1, 7, 7, 12)),
    "conv2d, dilated": Case(conv(8, (2, 2), kernel_dilation=2), (1, 9, 9, 12)),
    "conv3d": Case(conv(4, (3, 3, 3)), (1, 7, 7, 7, 6)),
    "grouped": Case(
        conv(12, (3, 3), feature_group_count=4), (1, 7, 7, 8), Layout(feature_group_count=4)
    ),
    "depthwise": Case(
        conv(16, (3, 3), feature_group_count=8), (1, 7, 7, 8), Layout(feature_group_count=8)
    ),
    "transposed": Case(up(6, (3, 3)), (1, 7, 7, 8), Layout(transposed=True)),
    "transposed, transpose_kernel": Case(
        up(6, (3, 3), transpose_kernel=True), (1, 7, 7, 8), Layout(-1, -2, transposed=True)
    ),
    "DenseGeneral": Case(
        nn.DenseGeneral((4, 5), axis=(-2, -1), use_bias=False),
        (1, 6, 7),
        Layout(in_axis=(0, 1), out_axis=(2, 3)),
    ),
    "DenseGeneral, batched": Case(
        nn.DenseGeneral((4, 5), axis=-1, batch_dims=(0,), use_bias=False),
        (3, 6, 7),
        Layout(in_axis=(1,), out_axis=(2, 3), batch_axis=(0,)),
    ),
}
# With strides counted: an input (of a transposed layer: an output) meets a part of the window.
STRIDED = {
    "conv2d": Case(conv(12, (3, 3), strides=2), (1, 12, 12, 8), Layout(strides=4)),
    "conv2d, one axis": Case(conv(6, (2, 4), strides=(1, 2)), (1, 9, 12, 4), Layout(strides=2)),
    "transposed": Case(
        up(6, (4, 4), strides=(2, 2)), (1, 8, 8, 5), Layout(strides=4, transposed=True)
    ),
    "transposed, 3 over 2": Case(
        up(6, (3, 3), strides=(2, 2)), (1, 8, 8, 5), Layout(strides=4, transposed=True)
    ),
}
