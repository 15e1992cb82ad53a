"""Filters made of a layer's own input by PCA, ZCA or k-means (Krähenbühl et al. 2015)."""

import dataclasses
import math
import numbers

import jax
import jax.numpy as jnp

from prelu_jax import draws, extras, initializers, names
from prelu_jax.datadep import filters
from prelu_jax.datadep.layers import Layer
from prelu_jax.datadep.methods import OnePass, Redrawn, WithinLayer, check_type
from prelu_jax.tracing import Visit

_EXAMPLES = 4  # patches made for each one that is used, so that they come from more images


@dataclasses.dataclass(frozen=True)
class FromPatches(WithinLayer):
    """Kernels from the layer's own input, then `WithinLayer`.

    A patch is the input of one position of the output: of a convolution its window, with the
    layer's stride, padding, dilation and groups; of a fully connected layer its input. The kernel
    is Gaussian where there are fewer patches than filters, where none varies, and in layers of
    other kinds. Rank deficient patches, as of a constant input, make as many filters as they can:
    the others are random (see `filters`). Biases are 0 before `WithinLayer` sets them.

    Attributes:
        kind: 'pca', 'zca' or 'kmeans'; see `filters`.
        max_patches: the greatest number of patches, drawn at random over all devices.

    Raises:
        ImportError: scikit-learn, for 'kmeans', is not installed: ``pip install
            'prelu_jax[kmeans]'``.
    """

    kind: str = "pca"
    max_patches: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        names.check("kind of filters", self.kind, filters.KINDS)
        if self.kind == "kmeans":
            extras.require("method 'kmeans'", "kmeans", "sklearn", "threadpoolctl")
        check_type(self, "max_patches", numbers.Integral)
        if self.max_patches < 2:
            raise ValueError(f"{self.kind}: max_patches is {self.max_patches}, expected 2 or more.")

    @property
    def without_redraw(self) -> OnePass:
        return WithinLayer(self.target_mean)

    def redraw(self, layer: Layer, visit: Visit, key: jax.Array, axis_name: str | None) -> Redrawn:
        """Return the filters, or a Gaussian kernel."""
        shape = visit.weight.shape
        of_sample, of_filters = jax.random.split(key)
        if visit.operation.kind not in ("dense", "conv"):
            gaussian = draws.flat(jax.random.normal, of_filters, shape, jnp.float32)
            return Redrawn(gaussian, jnp.array(False))
        devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
        most = max(1, self.max_patches // devices)
        sample = patches(layer, visit, of_sample, most, axis_name)
        count = math.prod(layer.channels) // visit.operation.layout.groups
        found, enough = filters.filters(self.kind, sample, count, of_filters, axis_name)
        return Redrawn(initializers.from_matrices(found, shape, layer.layout), enough)


def patches(
    layer: Layer, visit: Visit, key: jax.Array, most: int, axis_name: str | None = None
) -> jax.Array:
    """Return a random sample of a layer's inputs, float32 ``[groups, patches, rows]``.

    The product itself cuts them out: with the identity for weights its output is its input.
    """
    layout, shape = visit.operation.layout, list(visit.weight.shape)
    rows, groups = layout.fan_in, layout.groups
    if axis_name is not None:  # every device draws its own
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    operand, first = visit.operand, _first_axis(visit)
    positions = math.prod(visit.operation.shape) // math.prod(layer.channels)
    if first is not None:
        examples = operand.shape[first]
        enough = min(examples, math.ceil(_EXAMPLES * most * examples / max(positions, 1)))
        if enough < examples:
            key, of_examples = jax.random.split(key)
            operand = jax.random.choice(of_examples, operand, (enough,), replace=False, axis=first)
    for axis, size in zip(layout.weight_axes, (groups * rows, *[1] * len(shape)), strict=False):
        shape[axis] = size
    identity = jnp.broadcast_to(jnp.eye(rows, dtype=visit.weight.dtype), (groups, rows, rows))
    weight = initializers.from_matrices(identity, shape, layer.layout)
    seen = visit.product(operand, weight).astype(jnp.float32)
    seen = jnp.moveaxis(seen, layout.channel_axes, range(-len(layout.channel_axes), 0))
    seen = jnp.moveaxis(seen.reshape(-1, groups, rows), 1, 0)
    return filters.sample(key, seen, most)


def _first_axis(visit: Visit) -> int | None:
    """Return the first axis of the operand, as a rule of examples, that is not summed over."""
    axes = visit.operation.layout.operand_axes
    return next((axis for axis in axes if visit.operand.shape[axis] > 1), None)
