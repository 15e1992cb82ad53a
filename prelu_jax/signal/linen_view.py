"""Seeing into Linen models; what the methods do is said in `taps.View`."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
from flax import linen as nn
from flax.core import tracers

from prelu_jax.signal.sites import Observe, is_affine, observed, outputs_of, site_of


@dataclasses.dataclass(frozen=True)
class LinenView:
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
            return outputs_of(model, args, kwargs)

    def kinds(self, variables: Any, args: tuple[Any, ...], kwargs: Any, rngs: Any) -> set[str]:
        found: set[str] = set()

        def meet(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            found.add(type(context.module).__name__)
            return call(*args, **kwargs)

        with nn.intercept_methods(meet):
            outputs_of(self._bound(variables, rngs), args, kwargs)
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
