"""Seeing into unmodified Flax models: every call of an affine layer, in Linen and in NNX."""

import contextvars
import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax
import jax
from flax import linen as nn
from flax import nnx
from flax.core import tracers

from prelu_jax.signal.sites import Observe, is_affine, observed, site_of


class View(Protocol):
    """What the probe asks of a model, be it Linen or NNX."""

    def parameters(self, variables: Any) -> dict[str, jax.Array]:
        """Every parameter by its path."""

    def replace(self, variables: Any, parameters: Mapping[str, jax.Array]) -> Any:
        """The variables with some of the parameters exchanged."""

    def like(self, variables: Any, parameters: Mapping[str, jax.Array]) -> Any:
        """The same, boxed and frozen where the variables are."""

    def call(
        self,
        variables: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        rngs: Any,
        observe: Observe,
        hidden: set[str] | None = None,
    ) -> Any:
        """The model's outputs, with every affine layer's output as ``observe(visit)`` hands it back.

        What the model changes of its variables is dropped. A call inside another transformation
        (`scan`, `remat`, `vmap`, `jit`, `cond`) is not shown: its arrays may not leave there. Its
        kernel's path is added to ``hidden``.
        """

    def kinds(self, variables: Any, args: tuple[Any, ...], kwargs: Any, rngs: Any) -> set[str]:
        """The names of the classes of all modules that the model holds or calls."""


def view(model: Any) -> View:
    """The view of a Linen or an NNX model.

    Raises:
        TypeError: the model is neither.
    """
    if isinstance(model, nn.Module):
        return _LinenView(model)
    if isinstance(model, nnx.Module):
        return _NnxView(nnx.graphdef(model))
    raise TypeError(f"model is a {type(model).__name__}, expected a Linen or NNX module.")


def _outputs(model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The model's outputs; one that takes keywords only is given its arguments in their order."""
    parameters = list(inspect.signature(model.__call__).parameters.values())
    if any(parameter.kind is not parameter.KEYWORD_ONLY for parameter in parameters):
        return model(*args, **kwargs)
    names = [parameter.name for parameter in parameters if parameter.name not in kwargs]
    return model(*args[len(names) :], **dict(zip(names, args, strict=False)), **kwargs)


# --- Linen -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _LinenView:
    """Flax offers interception of methods, which is all that is needed here."""

    model: nn.Module

    def parameters(self, variables: Any) -> dict[str, jax.Array]:
        return {"/".join(path): value for path, value in _flat(_params(variables)).items()}

    def replace(self, variables: Any, parameters: Mapping[str, jax.Array]) -> Any:
        flat = _flat(_params(variables))
        params = {path: parameters.get("/".join(path), value) for path, value in flat.items()}
        return {**variables, "params": flax.traverse_util.unflatten_dict(params)}

    def like(self, variables: Any, parameters: Mapping[str, jax.Array]) -> Any:
        held = flax.core.unfreeze(variables["params"])
        exchanged = self.replace(variables, parameters)["params"]
        params = flax.core.meta.replace_boxed(held, exchanged)
        if isinstance(variables["params"], flax.core.FrozenDict):
            params = flax.core.freeze(params)
        if isinstance(variables, flax.core.FrozenDict):
            return variables.copy({"params": params})
        return {**variables, "params": params}

    def call(
        self,
        variables: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        rngs: Any,
        observe: Observe,
        hidden: set[str] | None = None,
    ) -> Any:
        here = tracers.current_trace()
        model = self._bound(variables, rngs)
        names = {id(value): name for name, value in self.parameters(variables).items()}
        # Where in the model the paths of a scope's root begin: at its own root, unless a module
        # inside applies another one by itself, be it to the model's variables or to others.
        begins = {model.scope: ()}
        running = [(model, "")]
        unwatched = False

        def again(held: Any, layer: Any, parameters: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal unwatched
            unwatched = True
            try:
                exchanged = {**held, "params": parameters}
                return layer.clone(parent=None).apply(exchanged, *args, **kwargs)
            finally:
                unwatched = False

        def meet(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            if unwatched:
                return call(*args, **kwargs)
            layer: Any = context.module
            method = context.method_name
            root = layer.scope.root
            if root not in begins:
                caller = running[-1][0]
                begins[root] = begins[caller.scope.root]
                if not root.debug_path:  # ... which a root that a transformation made has
                    begins[root] += (*caller.path, type(layer).__name__)
            methods = ("__call__", "attend") if isinstance(layer, nn.Embed) else ("__call__",)
            # A subclass that calls its base's method is one layer.
            within = any(layer is other and name in methods for other, name in running)
            running.append((layer, method))
            try:
                if method not in methods or not is_affine(layer) or within:
                    return call(*args, **kwargs)
                path = "/".join((*begins[root], *layer.path))
                name = "embedding" if isinstance(layer, nn.Embed) else "kernel"
                parameter = "/".join((*layer.path, name))
                if tracers.current_trace() != here:
                    if hidden is not None:
                        hidden.add(parameter)
                    return call(*args, **kwargs)
                own = layer.variables.get("params", {})
                if begins[root]:
                    parameter = names.get(id(own[name]), "")
                site = site_of(layer, method, path, parameter, args, kwargs)
                anew = functools.partial(again, layer.variables)
                return observed(observe, site, layer, own, call, anew, args, kwargs)
            finally:
                running.pop()

        with nn.intercept_methods(meet):
            return _outputs(model, args, kwargs)

    def kinds(self, variables: Any, args: tuple[Any, ...], kwargs: Any, rngs: Any) -> set[str]:
        found: set[str] = set()

        def meet(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            found.add(type(context.module).__name__)
            return call(*args, **kwargs)

        with nn.intercept_methods(meet):
            _outputs(self._bound(variables, rngs), args, kwargs)
        return found

    def _bound(self, variables: Any, rngs: Any) -> Any:
        # With the parameters mutable too, Flax would draw those that are missing.
        mutable = flax.core.DenyList("params")
        return self.model.bind(flax.core.meta.unbox(variables), rngs=rngs, mutable=mutable)


def _params(variables: Any) -> Any:
    held = list(variables) if isinstance(variables, Mapping) else type(variables).__name__
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise ValueError(
            f"the variables hold no 'params', only {held}; expected what model.init returns: "
            "{'params': ...} and perhaps other collections."
        )
    if not variables["params"]:
        raise ValueError("the variables' 'params' are empty: there is no layer to measure.")
    return flax.core.meta.unbox(variables["params"])


def _flat(params: Any) -> dict[tuple[str, ...], Any]:
    return flax.traverse_util.flatten_dict(flax.core.unfreeze(params))


# --- NNX ---------------------------------------------------------------------------------------

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
class _NnxView:
    """NNX offers no interception: Python looks ``__call__`` up on the class, not the instance.

    A model is traced on a copy that `nnx.merge` builds inside the trace, so the copy's layers can
    be given a subclass with a watched ``__call__``. Neither the user's model nor any class that
    others use is touched, where patching the classes would be seen by every model and thread.
    """

    graphdef: Any

    def parameters(self, variables: Any) -> dict[str, jax.Array]:
        return {
            "/".join(map(str, path)): leaf.get_raw_value()
            for path, leaf in nnx.to_flat_state(variables)
            if isinstance(leaf, nnx.Param)
        }

    def replace(self, variables: Any, parameters: Mapping[str, jax.Array]) -> Any:
        def exchange(path: tuple[Any, ...], leaf: Any) -> Any:
            name = "/".join(map(str, path))
            return leaf.copy(parameters[name]) if name in parameters else leaf

        flat = nnx.to_flat_state(variables)
        return nnx.from_flat_state([(path, exchange(path, leaf)) for path, leaf in flat])

    like = replace

    def call(
        self,
        variables: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        rngs: Any,
        observe: Observe,
        hidden: set[str] | None = None,
    ) -> Any:
        here = tracers.current_trace()
        model = self._copy(variables, rngs)
        # By identity: a variable that two layers share has one path among the parameters.
        names = {id(v): "/".join(map(str, path)) for path, v in nnx.iter_graph(model)}

        def watch(layer: Any, path: tuple[Any, ...]) -> Callable[..., Any]:
            def meet(method: str, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
                kernel = layer.embedding if isinstance(layer, nnx.Embed) else layer.kernel
                parameter = names.get(id(kernel), "")
                if tracers.current_trace() != here:
                    if hidden is not None:
                        hidden.add(parameter)
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
            return _outputs(model, args, kwargs)
        finally:
            _WATCHED.reset(token)

    def kinds(self, variables: Any, args: tuple[Any, ...], kwargs: Any, rngs: Any) -> set[str]:
        return {
            type(module).__name__ for _, module in nnx.iter_modules(self._copy(variables, rngs))
        }

    def _copy(self, variables: Any, rngs: Any) -> Any:
        # A copy of the variables too, which this trace may change as it likes.
        model = nnx.merge(self.graphdef, variables, copy=True)
        if rngs:
            nnx.reseed(model, **rngs)
        return model
