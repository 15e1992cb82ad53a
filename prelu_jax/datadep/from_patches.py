"""Filters made of what a layer sees: PCA, ZCA and k-means of its input (Krähenbühl et al. 2015)."""

import dataclasses
import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from prelu_jax import initializers, names
from prelu_jax.datadep import filters, options
from prelu_jax.datadep.walk import Layer, OnePass, Redrawn
from prelu_jax.datadep.within_layer import WithinLayer
from prelu_jax.signal.sites import Visit

_DENSE = (nn.Dense, nnx.Linear, nn.DenseGeneral, nnx.LinearGeneral)
_CONV = (nn.Conv, nnx.Conv)
_EXAMPLES = 4  # patches looked at for one that is taken: from more images than need be


@dataclasses.dataclass(frozen=True)
class FromPatches(WithinLayer):
    """Kernels from the layer's own input, then `WithinLayer`.

    A patch is what one position of the output sees: of a convolution its window, with the layer's
    stride, padding, dilation and groups; of a fully connected layer its input. Where there are
    fewer patches than filters, where none varies, or of a layer of another kind, the kernel is
    Gaussian. Patches that are rank deficient, as where an input is constant, give as many filters
    as they can: the rest are random (see `filters`). Biases are 0 before `WithinLayer` sets them.

    Attributes:
        kind: 'pca', 'zca' or 'kmeans'; see `filters`.
        max_patches: at most so many, drawn at random, over all devices.
    """

    kind: str = "pca"
    max_patches: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        names.check("kind of filters", self.kind, filters.KINDS)
        options.check_type(self, "max_patches", numbers.Integral)
        if self.max_patches < 2:
            raise ValueError(f"{self.kind}: max_patches is {self.max_patches}, expected 2 or more.")

    @property
    def plain(self) -> OnePass:
        return WithinLayer(self.target_mean)

    def redraw(self, layer: Layer, visit: Visit, key: jax.Array, axis_name: str | None) -> Redrawn:
        """The filters, or a Gaussian kernel."""
        kernel = visit.parameters["kernel"]
        of_sample, of_filters = jax.random.split(key)
        if not has_patches(visit.layer):
            gaussian = jax.random.normal(of_filters, kernel.shape, jnp.float32)
            return Redrawn(gaussian.astype(kernel.dtype), jnp.array(False))
        devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
        sample = patches(layer, visit, of_sample, self.max_patches // devices, axis_name)
        count = math.prod(layer.channels) // layer.layout.feature_group_count
        found, enough = filters.filters(self.kind, sample, count, of_filters, axis_name)
        drawn = initializers.from_matrices(found, kernel.shape, layer.layout)
        return Redrawn(drawn.astype(kernel.dtype), enough)


def has_patches(layer: Any) -> bool:
    """Whether it is a fully connected layer or a convolution of plain kind."""
    if isinstance(layer, _CONV):
        return layer.mask is None
    batch = getattr(layer, "batch_dims", ()) or getattr(layer, "batch_axis", ())
    return isinstance(layer, _DENSE) and not batch


def patches(
    layer: Layer, visit: Visit, key: jax.Array, most: int, axis_name: str | None = None
) -> jax.Array:
    """At most so many of a layer's inputs at random, float32 ``[groups, patches, rows]``.

    The layer itself cuts them out: with the identity for a kernel it puts out what it sees.
    """
    groups = layer.layout.feature_group_count
    shape = visit.parameters["kernel"].shape
    rows = math.prod(shape) // math.prod(layer.channels)
    if axis_name is not None:  # every device draws its own
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    of_examples, of_patches = jax.random.split(key)
    positions = visit.y.size // math.prod(layer.channels) // visit.x.shape[0]
    examples = min(visit.x.shape[0], math.ceil(_EXAMPLES * most / max(positions, 1)))
    x = jax.random.choice(of_examples, visit.x, (examples,), replace=False)
    inputs = shape[: len(shape) - len(layer.channels)]
    identity = jnp.eye(rows, dtype=visit.parameters["kernel"].dtype).reshape(*inputs, rows)
    changes = {"kernel": jnp.tile(identity, groups), "bias": None}
    seer = visit.layer
    if isinstance(seer, nn.Module):  # whose shapes are checked against its fields
        seer = seer.clone(features=groups * rows, use_bias=False)
    seen = visit.again(changes, layer=seer, x=x).astype(jnp.float32)
    seen = jnp.moveaxis(seen.reshape(-1, groups, rows), 1, 0)
    return filters.sample(of_patches, seen, most)
