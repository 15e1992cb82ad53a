"""Adapters: models of every library as functions of a state, with parameters by path."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import numpy as np
from flax import linen as nn
from flax import nnx

Parameters = dict[str, Any]  # path -> array
# Collections and variables that hold data: their arrays are no weights.
_DATA = ("batch_stats", "cache")
_NNX_DATA = (nnx.BatchStat, nnx.Cache)


class Model:
    """A model as a function of its state: a pytree of all arrays that it is made of."""

    def parameters(self, state: Any) -> Parameters:
        """Return every parameter by its path."""
        raise NotImplementedError

    def others(self, state: Any) -> list[str | None]:
        """Return a name for every leaf of the state that may be a weight and is no parameter.

        None for parameters, statistics and caches.
        """
        return [None] * len(jax.tree.leaves(state))

    def replace(self, state: Any, parameters: Mapping[str, Any]) -> Any:
        """Return the state with some of the parameters exchanged."""
        raise NotImplementedError

    def restored(self, variables: Any, state: Any) -> Any:
        """Return the state's parameters in the form of the variables that it was made of.

        Args:
            variables: as `of` took them; None for a model that holds its own.
            state: of that model.
        """
        return state

    def call(self, state: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], rngs: Any) -> Any:
        """Return the outputs. Changes of the state are dropped."""
        return outputs_of(self.bound(state, rngs), args, kwargs)

    def bound(self, state: Any, rngs: Any) -> Any:
        """Return the model with its state and random streams, ready to be called."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Linen(Model):
    """A Linen module; its state are its variables."""

    model: nn.Module

    def parameters(self, state: Any) -> Parameters:
        return {"/".join(map(str, path)): value for path, value in self._flat(state).items()}

    def _flat(self, state: Any) -> dict[tuple[str, ...], Any]:
        held = list(state) if isinstance(state, Mapping) else type(state).__name__
        if not isinstance(state, Mapping) or "params" not in state:
            raise ValueError(
                f"the variables hold no 'params', only {held}; expected the result of model.init: "
                "{'params': ...} and perhaps other collections."
            )
        if not state["params"]:
            raise ValueError("the variables' 'params' are empty: there is no layer to measure.")
        params = flax.core.unfreeze(unboxed(state["params"]))
        return dict(flax.traverse_util.flatten_dict(params))

    def others(self, state: Any) -> list[str | None]:
        leaves = jax.tree_util.tree_leaves_with_path(unboxed(state))
        names = [_path(path) for path, _ in leaves]
        return [None if name.split("/")[0] in ("params", *_DATA) else name for name in names]

    def replace(self, state: Any, parameters: Mapping[str, Any]) -> Any:
        params = {
            path: parameters.get("/".join(map(str, path)), value)
            for path, value in self._flat(state).items()
        }
        return {**state, "params": flax.traverse_util.unflatten_dict(params)}

    def restored(self, variables: Any, state: Any) -> Any:
        """Return the variables with the state's parameters, boxed and frozen where they are."""
        held = flax.core.unfreeze(variables["params"])
        exchanged = self.replace(variables, self.parameters(state))["params"]
        params = flax.core.meta.replace_boxed(held, exchanged)
        if isinstance(variables["params"], flax.core.FrozenDict):
            params = flax.core.freeze(params)
        if isinstance(variables, flax.core.FrozenDict):
            return variables.copy({"params": params})
        return {**variables, "params": params}

    def bound(self, state: Any, rngs: Any) -> Any:
        # With the parameters mutable too, Flax would draw those that are missing.
        mutable = flax.core.DenyList("params")
        return self.model.bind(unboxed(state), rngs=rngs, mutable=mutable)


@dataclasses.dataclass(frozen=True)
class Nnx(Model):
    """An NNX module, by its structure; its state is `nnx.state`."""

    graphdef: Any

    def parameters(self, state: Any) -> Parameters:
        return {
            "/".join(map(str, path)): leaf.get_raw_value()
            for path, leaf in nnx.to_flat_state(state)
            if isinstance(leaf, nnx.Param)
        }

    def others(self, state: Any) -> list[str | None]:
        held = jax.tree_util.tree_leaves_with_path(
            state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)
        )
        return [
            None if isinstance(variable, (nnx.Param, *_NNX_DATA)) else _path(path)
            for path, variable in held
            for _ in jax.tree.leaves(variable)
        ]

    def replace(self, state: Any, parameters: Mapping[str, Any]) -> Any:
        def exchange(path: tuple[Any, ...], leaf: Any) -> Any:
            name = "/".join(map(str, path))
            return leaf.copy(parameters[name]) if name in parameters else leaf

        flat = nnx.to_flat_state(state)
        return nnx.from_flat_state([(path, exchange(path, leaf)) for path, leaf in flat])

    def restored(self, variables: Any, state: Any) -> Any:
        return nnx.merge(self.graphdef, state)

    def bound(self, state: Any, rngs: Any) -> Any:
        """Return a copy of the module, its variables too, which a trace may change."""
        model = nnx.merge(self.graphdef, state, copy=True)
        if rngs:
            nnx.reseed(model, **rngs)
        return model


@dataclasses.dataclass(frozen=True)
class Haiku(Model):
    """Haiku's ``Transformed`` or ``TransformedWithState``; its state are its parameters.

    Attributes:
        apply: its function.
        has_state: whether the state is a pair of parameters and Haiku's state.
        takes_key: whether it takes a key, as it does but for `hk.without_apply_rng`.
    """

    apply: Callable[..., Any]
    has_state: bool
    takes_key: bool

    def parameters(self, state: Any) -> Parameters:
        return arrays_of(state[0] if self.has_state else state)

    def replace(self, state: Any, parameters: Mapping[str, Any]) -> Any:
        held = state[0] if self.has_state else state
        leaves = [parameters.get(name, leaf) for name, leaf in self.parameters(state).items()]
        exchanged = jax.tree.unflatten(jax.tree.structure(held), leaves)
        return (exchanged, *state[1:]) if self.has_state else exchanged

    def call(self, state: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], rngs: Any) -> Any:
        key = next(iter(rngs.values())) if rngs else None
        keys = [key] if self.takes_key else []
        if self.has_state:
            return self.apply(*state, *keys, *args, **kwargs)[0]
        return self.apply(state, *keys, *args, **kwargs)


@dataclasses.dataclass(frozen=True)
class Pytree(Model):
    """A function of a pytree; its state are the arrays in it.

    Attributes:
        function: takes the pytree, then the inputs.
        structure: of the pytree.
        statics: its leaves that are no arrays, None for those that are.
        names: the paths of its arrays.
    """

    function: Callable[..., Any]
    structure: Any
    statics: tuple[Any, ...]
    names: tuple[str, ...]

    def parameters(self, state: Any) -> Parameters:
        return dict(zip(self.names, state, strict=True))

    def replace(self, state: Any, parameters: Mapping[str, Any]) -> Any:
        return [parameters.get(name, leaf) for name, leaf in self.parameters(state).items()]

    def restored(self, variables: Any, state: Any) -> Any:
        return self.tree(state)

    def call(self, state: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], rngs: Any) -> Any:
        return self.function(self.tree(state), *args, **{**kwargs, **(rngs or {})})

    def tree(self, state: Any) -> Any:
        """Return the pytree with these arrays."""
        arrays = iter(state)
        leaves = [next(arrays) if static is None else static for static in self.statics]
        return jax.tree.unflatten(self.structure, leaves)


def is_array(leaf: Any) -> bool:
    """Return whether a leaf is an array, or the shape and type of one."""
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def arrays_of(tree: Any) -> Parameters:
    """Return the arrays of a pytree by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_path(path) or "parameters": leaf for path, leaf in leaves if is_array(leaf)}


def _path(keys: Any) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def outputs_of(model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return a model's outputs; one that takes keywords only gets its arguments in their order."""
    parameters = list(inspect.signature(model.__call__).parameters.values())
    if any(parameter.kind is not parameter.KEYWORD_ONLY for parameter in parameters):
        return model(*args, **kwargs)
    names = [parameter.name for parameter in parameters if parameter.name not in kwargs]
    return model(*args[len(names) :], **dict(zip(names, args, strict=False)), **kwargs)


def unboxed(variables: Any) -> Any:
    """Return a Linen model's variables without the boxes of partitioning metadata.

    Unlike this function, `flax.core.meta.unbox` also applies the sharding, for which it needs the
    mesh and real arrays.
    """

    def unbox(leaf: Any) -> Any:
        return unboxed(leaf.value) if _is_box(leaf) else leaf

    return jax.tree.map(unbox, variables, is_leaf=_is_box)


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, nn.meta.AxisMetadata) and hasattr(leaf, "value")
