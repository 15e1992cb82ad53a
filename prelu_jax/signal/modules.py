"""The modules of a Flax model: their kinds, and inputs that a layer would misread."""

import contextvars
import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from prelu_jax import flax_layers
from prelu_jax.signal import batches, checks
from prelu_jax.tracing import models

Look = Callable[[Any, str, Any, Any], None]  # at a layer, its path, its arguments and keywords

# For each layer of the NNX copy that this thread traces, by its id: the function that looks at it.
_WATCHED: contextvars.ContextVar[Mapping[int, Callable[..., None]]] = contextvars.ContextVar(
    "watched", default=types.MappingProxyType({})
)


def check(
    model: Any,
    state: Any,
    batch: Any,
    call_kwargs: Any,
    rngs: Mapping[str, Any] | None,
    examples: int,
    axis_name: str | None,
) -> set[str]:
    """Return the names of the classes of a Flax model's modules; of another model none.

    Raises:
        TypeError, ValueError: a layer is given integers, no array, or an array without an axis of
            examples.
    """
    kinds: set[str] = set()

    def look(layer: Any, path: str, args: Any, kwargs: Any) -> None:
        kinds.add(type(layer).__name__)
        if isinstance(layer, flax_layers.ALL):
            x = args[0] if args else kwargs.get("inputs")
            _check_input(layer, path or type(layer).__name__, x, batch, examples)

    def run(state: Any, batch: Any, rngs: Any) -> None:
        args, kwargs = batches.arguments(batch, call_kwargs)
        if isinstance(model, nn.Module):
            _look_at_linen(models.Linen(model).bound(state, rngs), args, kwargs, look)
        else:
            copy = models.Nnx(nnx.graphdef(model)).bound(state, rngs)
            kinds.update(type(module).__name__ for _, module in nnx.iter_modules(copy))
            _look_at_nnx(copy, args, kwargs, look)

    if isinstance(model, nn.Module | nnx.Module):
        checks.shapes(run, axis_name, state, batch, rngs)
    return kinds


def _check_input(layer: Any, name: str, x: Any, batch: Any, examples: int) -> None:
    if isinstance(x, Mapping | Sequence):
        raise TypeError(
            f"the layer {name!r} was given a {type(x).__name__}, expected an array. Is a part of "
            "the batch what the model takes?"
        )
    if not isinstance(layer, flax_layers.EMBED) and not jnp.issubdtype(
        jnp.result_type(x), jnp.inexact
    ):
        raise ValueError(
            f"the layer {name!r} was given {jnp.result_type(x)} of shape {jnp.shape(x)}, expected "
            "floats. Convert numbers first, x.astype(jnp.float32), those of images / 255 as well; "
            "numbers of tokens or of classes go through nn.Embed."
        )
    # Flax would take an image [h, w, channels] or a vector [features] for one example.
    read = {leaf.shape for leaf in jax.tree.leaves(batch) if leaf.shape[:1] == (examples,)}
    if jnp.ndim(x) < _least_ndim(layer) and read == {jnp.shape(x)}:
        raise ValueError(
            f"the layer {name!r} was given {batches.described(x)}, expected at least "
            f"{_least_ndim(layer)} axes, of which the first counts the examples. One example? "
            "Give x[None]."
        )


def _least_ndim(layer: Any) -> int:
    """Return the least number of axes of an input of several examples."""
    if isinstance(layer, flax_layers.WINDOWED):
        return 2 + (1 if isinstance(layer.kernel_size, int) else len(layer.kernel_size))
    return 1 if isinstance(layer, flax_layers.EMBED) else 2


def _look_at_linen(model: Any, args: tuple[Any, ...], kwargs: Any, look: Look) -> None:
    def meet(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name == "__call__":
            look(context.module, "/".join(context.module.path), args, kwargs)
        return call(*args, **kwargs)

    with nn.intercept_methods(meet):
        models.outputs_of(model, args, kwargs)


def _look_at_nnx(model: Any, args: tuple[Any, ...], kwargs: Any, look: Look) -> None:
    """Call an NNX model and look at the input of every layer.

    NNX offers no interception, and Python looks ``__call__`` up on the class, not the instance. The
    model is a copy that belongs to a trace, so its layers can be given a subclass. Neither the
    user's model nor a class of others changes: a patched class would affect every model and thread.
    """
    watched = {}
    for path, module in list(nnx.iter_modules(model)):
        if isinstance(module, flax_layers.ALL):
            object.__setattr__(module, "__class__", _watchable(type(module)))
            watched[id(module)] = functools.partial(look, module, "/".join(map(str, path)))
    token = _WATCHED.set(watched)
    try:
        models.outputs_of(model, args, kwargs)
    finally:
        _WATCHED.reset(token)


@functools.cache
def _watchable(layer_class: type[nnx.Module]) -> type[nnx.Module]:
    """Return a subclass whose calls pass by `_WATCHED`; one per class: NNX registers each class."""
    method: Callable[..., Any] = layer_class.__call__

    @functools.wraps(method)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        look = _WATCHED.get().get(id(self))
        if look is not None:
            look(args, kwargs)
        return method(self, *args, **kwargs)

    body = {"__call__": watched, "__module__": layer_class.__module__}
    return type(layer_class.__name__, (layer_class,), body)
