"""The layout of a Flax layer's kernel."""

from typing import Any

import numpy as np
from flax import linen as nn

from prelu_jax import flax_layers
from prelu_jax.initializers.fans import Layout


def for_layer(layer: Any, *, count_strides: bool = False) -> Layout:
    """Return the layout of a Linen or NNX layer's kernel.

    Args:
        layer: a Dense, Linear, DenseGeneral, LinearGeneral, Conv or ConvTranspose, bound or not.
        count_strides: divide the window by the strides (`Layout.strides`), which the papers do
            not. Worth it for a transposed convolution that enlarges maps.

    Raises:
        TypeError: another kind of layer.

    Flax flattens the kernel of a `DenseGeneral` before it calls ``kernel_init``: there an
    initialiser needs the default layout, which is right unless the layer has batch axes
    (docs/findings/foreign-models.md). This layout is for a kernel drawn in the parameter's own
    shape.
    """
    if isinstance(layer, flax_layers.DENSE):
        return Layout()
    if isinstance(layer, flax_layers.CONV):
        groups = layer.feature_group_count
        return Layout(feature_group_count=groups, strides=_strides(layer) if count_strides else 1)
    if isinstance(layer, flax_layers.CONV_TRANSPOSE):
        in_axis, out_axis = (-1, -2) if layer.transpose_kernel else (-2, -1)
        strides = _strides(layer) if count_strides else 1
        return Layout(in_axis, out_axis, strides=strides, transposed=True)
    if isinstance(layer, flax_layers.DENSE_GENERAL):
        if isinstance(layer, nn.DenseGeneral):
            n_batch, n_in, n_out = map(_count, (layer.batch_dims, layer.axis, layer.features))
        else:
            n_batch, n_in, n_out = map(_count, (layer.batch_axis, layer.axis, layer.out_features))
        return Layout(
            in_axis=tuple(range(n_batch, n_batch + n_in)),
            out_axis=tuple(range(n_batch + n_in, n_batch + n_in + n_out)),
            batch_axis=tuple(range(n_batch)),
        )
    raise TypeError(
        f"for_layer: {type(layer).__name__} has no kernel that it knows; expected a Dense, Linear, "
        "DenseGeneral, LinearGeneral, Conv or ConvTranspose. Pass a Layout of your own instead."
    )


def _strides(layer: Any) -> int:
    """Return the product of the strides over the axes of the window."""
    return int(np.prod(np.broadcast_to(layer.strides or 1, np.size(layer.kernel_size))))


def _count(axes: Any) -> int:
    return 1 if isinstance(axes, int) else len(axes)
