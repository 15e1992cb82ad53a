"""Seeing into Linen models; what the methods do is said in `taps.View`."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
from flax import linen as nn
from flax.core import tracers

from prelu_jax.signal.sites import Observe, is_affine, observed, site_of
from prelu_jax.tracing import models
from prelu_jax.tracing.models import outputs_of


@dataclasses.dataclass(frozen=True)
class LinenView(models.Linen):
    """Flax offers interception of methods, which is all that is needed here."""

    def like(self, variables: Any, parameters: Mapping[str, jax.Array]) -> Any:
        held = flax.core.unfreeze(variables["params"])
        exchanged = self.replace(variables, parameters)["params"]
        params = flax.core.meta.replace_boxed(held, exchanged)
        if isinstance(variables["params"], flax.core.FrozenDict):
            params = flax.core.freeze(params)
        if isinstance(variables, flax.core.FrozenDict):
            return variables.copy({"params": params})
        return {**variables, "params": params}

    def run(
        self,
        variables: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        rngs: Any,
        observe: Observe,
    ) -> Any:
        here = tracers.current_trace()
        model = self.bound(variables, rngs)
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
            outputs_of(self.bound(variables, rngs), args, kwargs)
        return found
