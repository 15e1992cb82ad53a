"""Seeing into NNX models; what the methods do is said in `taps.View`."""

import contextvars
import dataclasses
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from flax.core import tracers

from prelu_jax.signal.sites import Observe, is_affine, observed, site_of
from prelu_jax.tracing import models
from prelu_jax.tracing.models import outputs_of

# Which instance is watched, and by whom, while a copy of a model is traced in this thread.
_WATCHED: contextvars.ContextVar[Mapping[int, Callable[..., Any]]] = contextvars.ContextVar(
    "watched", default=types.MappingProxyType({})
)


@functools.cache
def _watchable(layer_class: type[nnx.Module]) -> type[nnx.Module]:
    """A subclass whose calls pass by `_WATCHED`; one per class, for NNX registers each class."""

    def watched(name: str) -> Callable[..., Any]:
        method = getattr(layer_class, name)

        @functools.wraps(method)
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            call = functools.partial(method, self)
            watch = _WATCHED.get().get(id(self))
            return call(*args, **kwargs) if watch is None else watch(name, call, args, kwargs)

        return wrapper

    names = ("__call__", "attend") if issubclass(layer_class, nnx.Embed) else ("__call__",)
    body = {name: watched(name) for name in names}
    return type(layer_class.__name__, (layer_class,), {"__module__": layer_class.__module__} | body)


def _nnx_again(
    method: str, layer: nnx.Module, parameters: Mapping[str, jax.Array], *args: Any, **kwargs: Any
) -> Any:
    copy: Any = nnx.clone(layer)
    for name, value in parameters.items():
        setattr(copy, name, None if value is None else nnx.Param(value))
    if parameters.get("bias") is None:
        copy.use_bias = False
    return getattr(copy, method)(*args, **kwargs)  # nobody watches the copy


@dataclasses.dataclass(frozen=True)
class NnxView(models.Nnx):
    """NNX offers no interception: Python looks ``__call__`` up on the class, not the instance.

    A model is traced on a copy that `nnx.merge` builds inside the trace, so the copy's layers can
    be given a subclass with a watched ``__call__``. Neither the user's model nor any class that
    others use is touched, where patching the classes would be seen by every model and thread.
    """

    def like(self, variables: Any, parameters: Mapping[str, jax.Array]) -> Any:
        return self.replace(variables, parameters)

    def run(
        self,
        variables: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        rngs: Any,
        observe: Observe,
    ) -> Any:
        here = tracers.current_trace()
        model = self.merged(variables, rngs)
        # By identity: a variable that two layers share has one path among the parameters.
        names = {id(v): "/".join(map(str, path)) for path, v in nnx.iter_graph(model)}

        def watch(layer: Any, path: tuple[Any, ...]) -> Callable[..., Any]:
            def meet(method: str, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
                kernel = layer.embedding if isinstance(layer, nnx.Embed) else layer.kernel
                parameter = names.get(id(kernel), "")
                if tracers.current_trace() != here:
                    return call(*args, **kwargs)
                site = site_of(layer, method, "/".join(map(str, path)), parameter, args, kwargs)
                own = {
                    name: value.get_raw_value()
                    for name, value in vars(layer).items()
                    if isinstance(value, nnx.Param)
                }
                again = functools.partial(_nnx_again, method)
                return observed(observe, site, layer, own, call, again, args, kwargs)

            return meet

        watched = {}
        for path, module in list(nnx.iter_modules(model)):
            if is_affine(module):
                object.__setattr__(module, "__class__", _watchable(type(module)))
                watched[id(module)] = watch(module, path)
        token = _WATCHED.set(watched)
        try:
            return outputs_of(model, args, kwargs)
        finally:
            _WATCHED.reset(token)

    def kinds(self, variables: Any, args: tuple[Any, ...], kwargs: Any, rngs: Any) -> set[str]:
        return {
            type(module).__name__ for _, module in nnx.iter_modules(self.merged(variables, rngs))
        }
