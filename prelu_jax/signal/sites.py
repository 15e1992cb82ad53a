"""One call of an affine layer: which layers count, what is known of a call, how it is shown."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

_GENERAL = (nn.DenseGeneral, nnx.LinearGeneral)
_EINSUM = (nn.Einsum, nnx.Einsum)
_EMBED = (nn.Embed, nnx.Embed)
_CONV = (nn.Conv, nn.ConvLocal, nn.ConvTranspose, nnx.Conv, nnx.ConvTranspose)
_AFFINE = (nn.Dense, nnx.Linear, *_GENERAL, *_EINSUM, *_CONV, *_EMBED)


@dataclasses.dataclass(frozen=True)
class Site:
    """One call of an affine layer, as far as it is known before anything is computed.

    Attributes:
        path: the layer's path in the model, e.g. 'block_0/conv'.
        kind: the name of its class, e.g. 'Conv'; 'Embed.attend' for that method.
        parameter: the path of its kernel, or an embedding's table, among the model's parameters.
        channel_axes: the axes of the output that count channels, from the end: (-1,) for most.
        least_ndim: how many axes an input of several examples has, at least.
        looks_up: whether its input is an integer, the row of a table.
    """

    path: str
    kind: str
    parameter: str
    channel_axes: tuple[int, ...]
    least_ndim: int = 2
    looks_up: bool = False


Observe = Callable[[Site, jax.Array, jax.Array], jax.Array]


def site_of(layer: Any, method: str, path: str, parameter: str, args: Any, kwargs: Any) -> Site:
    """What is known of a call of this layer's method with these arguments."""
    kind = type(layer).__name__ if method == "__call__" else f"{type(layer).__name__}.{method}"
    if isinstance(layer, _EINSUM):
        equation = args[1] if len(args) > 1 else kwargs.get("einsum_str")
        axes = _einsum_channels(str(equation or layer.einsum_str))
    elif isinstance(layer, _GENERAL):
        features = layer.features if isinstance(layer, nn.DenseGeneral) else layer.out_features
        axes = tuple(range(-1 if isinstance(features, int) else -len(features), 0))
    else:
        axes = (-1,)
    looks_up = isinstance(layer, _EMBED) and method == "__call__"
    least_ndim = 1 if looks_up else 2
    if isinstance(layer, _CONV):
        least_ndim += 1 if isinstance(layer.kernel_size, int) else len(layer.kernel_size)
    return Site(path, kind, parameter, axes, least_ndim, looks_up)


def is_affine(module: Any) -> bool:
    """Whether it is a layer y = W x + b, or a table of embeddings."""
    return isinstance(module, _AFFINE)


def _einsum_channels(equation: str) -> tuple[int, ...]:
    """The output's axes that come from the kernel alone, counted from the end."""
    operands, output = equation.replace(" ", "").split("->")
    inputs = operands.split(",")[0]
    axes = tuple(i - len(output) for i, label in enumerate(output) if label not in inputs)
    return axes or (-1,)


def observed(
    observe: Observe, site: Site, call: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]
) -> Any:
    """The layer's output as the observer hands it back; complex numbers pass it by."""
    x = args[0] if args else kwargs["query" if site.kind.endswith(".attend") else "inputs"]
    if not site.looks_up and not jnp.issubdtype(jnp.result_type(x), jnp.inexact):
        raise ValueError(
            f"the layer {site.path or site.kind!r} was given {jnp.result_type(x)} of shape "
            f"{jnp.shape(x)}, expected floats. Convert images first: images.astype(float32) / 255."
        )
    y = call(*args, **kwargs)
    if jnp.iscomplexobj(x) or jnp.iscomplexobj(y):
        return y
    return observe(site, jnp.asarray(x), y)
