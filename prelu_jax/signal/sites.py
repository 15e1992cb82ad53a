"""One call of an affine layer: which layers count, what is known of a call, how it is shown."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from prelu_jax.signal.roles import SCOPE

_TRANSPOSED = (nn.ConvTranspose, nnx.ConvTranspose)
_GENERAL = (nn.DenseGeneral, nnx.LinearGeneral)
_EINSUM = (nn.Einsum, nnx.Einsum)
_EMBED = (nn.Embed, nnx.Embed)
_CONV = (nn.Conv, nn.ConvLocal, nnx.Conv, *_TRANSPOSED)
_AFFINE = (nn.Dense, nnx.Linear, *_GENERAL, *_EINSUM, *_CONV, *_EMBED)


Axes = tuple[int, ...]  # from the end


@dataclasses.dataclass(frozen=True)
class Site:
    """One call of an affine layer, as far as it is known before anything is computed.

    Attributes:
        path: the layer's path in the model, e.g. 'block_0/conv'.
        kind: the name of its class, e.g. 'Conv'; 'Embed.attend' for that method.
        parameter: the path of its kernel, or an embedding's table, among the model's parameters.
        channel_axes: the axes of the output that count channels, from the end: (-1,) for most.
        kernel_axes, bias_axes: the same channels' axes of the kernel and of the bias.
        least_ndim: how many axes an input of several examples has, at least.
        looks_up: whether its input is an integer, the row of a table.
    """

    path: str
    kind: str
    parameter: str
    channel_axes: Axes
    kernel_axes: Axes = (-1,)
    bias_axes: Axes = (-1,)
    least_ndim: int = 2
    looks_up: bool = False


@dataclasses.dataclass(frozen=True)
class Visit:
    """A call of an affine layer while the model runs.

    Attributes:
        site: what was known before.
        layer: the module; of NNX, the traced copy.
        x: its input.
        y: its output.
        parameters: its own, e.g. 'kernel' and 'bias'.
        again: ``again(parameters, layer=layer, x=x)`` is the output with some of its parameters
            exchanged (None: without it); of a clone with other fields, or for another input.
    """

    site: Site
    layer: Any
    x: jax.Array
    y: jax.Array
    parameters: Mapping[str, jax.Array]
    again: Callable[..., jax.Array]


Observe = Callable[[Visit], jax.Array]


def site_of(layer: Any, method: str, path: str, parameter: str, args: Any, kwargs: Any) -> Site:
    """What is known of a call of this layer's method with these arguments."""
    kind = type(layer).__name__ if method == "__call__" else f"{type(layer).__name__}.{method}"
    axes: tuple[Axes, Axes, Axes] = ((-1,), (-1,), (-1,))
    if isinstance(layer, _EINSUM):
        equation = args[1] if len(args) > 1 else kwargs.get("einsum_str")
        axes = _einsum_channels(str(equation or layer.einsum_str))
    elif isinstance(layer, _GENERAL):
        features = layer.features if isinstance(layer, nn.DenseGeneral) else layer.out_features
        trailing = tuple(range(-1 if isinstance(features, int) else -len(features), 0))
        axes = (trailing, trailing, trailing)
    elif isinstance(layer, _TRANSPOSED) and layer.transpose_kernel:
        axes = ((-1,), (-2,), (-1,))
    looks_up = isinstance(layer, _EMBED) and method == "__call__"
    least_ndim = 1 if looks_up else 2
    if isinstance(layer, _CONV):
        least_ndim += 1 if isinstance(layer.kernel_size, int) else len(layer.kernel_size)
    return Site(path, kind, parameter, *axes, least_ndim, looks_up)


def is_affine(module: Any) -> bool:
    """Whether it is a layer y = W x + b, or a table of embeddings."""
    return isinstance(module, _AFFINE)


def _einsum_channels(equation: str) -> tuple[Axes, Axes, Axes]:
    """The labels that come from the kernel alone: their axes of the output, kernel and bias."""
    operands, output = equation.replace(" ", "").split("->")
    inputs, kernel = operands.split(",")
    bias = [label for label in output if label in kernel]
    labels = [label for label in output if label not in inputs]
    if not labels:
        return (-1,), (-1,), (-1,)
    of_output, of_kernel, of_bias = (
        tuple(where.index(label) - len(where) for label in labels)
        for where in (list(output), list(kernel), bias)
    )
    return of_output, of_kernel, of_bias


def observed(
    observe: Observe,
    site: Site,
    layer: Any,
    parameters: Mapping[str, jax.Array],
    call: Callable[..., Any],
    again: Callable[..., Any],
    args: Any,
    kwargs: Mapping[str, Any],
) -> Any:
    """The layer's output as the observer hands it back; complex numbers pass it by.

    Args:
        observe, site, layer, parameters: see `Visit`.
        call: the layer's method.
        again: the same for ``(layer, parameters, *args, **kwargs)``.
        args, kwargs: what the method was called with.
    """
    keyword = "query" if site.kind.endswith(".attend") else "inputs"
    x = args[0] if args else kwargs[keyword]
    if isinstance(x, Mapping | Sequence):
        raise TypeError(
            f"the layer {site.path or site.kind!r} was given a {type(x).__name__}, expected an "
            "array. Is a part of the batch what the model takes?"
        )
    if not site.looks_up and not jnp.issubdtype(jnp.result_type(x), jnp.inexact):
        raise ValueError(
            f"the layer {site.path or site.kind!r} was given {jnp.result_type(x)} of shape "
            f"{jnp.shape(x)}, expected floats. Convert numbers first, x.astype(jnp.float32), those "
            "of images / 255 as well; numbers of tokens or of classes go through nn.Embed."
        )
    if jnp.iscomplexobj(x):
        return call(*args, **kwargs)
    with jax.named_scope(SCOPE):
        y = call(*args, **kwargs)
    if jnp.iscomplexobj(y):
        return y

    def exchanged(changes: Mapping[str, jax.Array], layer: Any = layer, x: Any = x) -> jax.Array:
        inputs = (x, *args[1:]) if args else ()
        keywords = kwargs if args else {**kwargs, keyword: x}
        return again(layer, {**parameters, **changes}, *inputs, **keywords)

    return observe(Visit(site, layer, jnp.asarray(x), y, parameters, exchanged))
