"""Models of every library as pure functions of named parameters.

Only Flax is imported. Haiku's models are known by their two functions, Equinox's by being pytrees.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax
import jax
import numpy as np
from flax import linen as nn
from flax import nnx

Parameters = dict[str, Any]  # path -> array
# Collections and variables that are data: their arrays are no weights.
_DATA = ("batch_stats", "cache")
_NNX_DATA = (nnx.BatchStat, nnx.Cache)


class Model(Protocol):
    """A model as a function of its state: a pytree of all arrays that it is made of."""

    def parameters(self, state: Any) -> Parameters:
        """Return every parameter by its path."""

    def others(self, state: Any) -> list[str | None]:
        """Return a name for every leaf of the state that may be a weight and is no parameter.

        None for parameters, statistics and caches.
        """

    def replace(self, state: Any, parameters: Mapping[str, Any]) -> Any:
        """Return the state with some of the parameters exchanged."""

    def restored(self, variables: Any, state: Any) -> Any:
        """Return the state's parameters in the form of the variables that it was made of.

        Args:
            variables: as `of` took them; None for a model that holds its own.
            state: of that model.
        """

    def call(self, state: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], rngs: Any) -> Any:
        """Return the outputs. Changes of the state are dropped."""


def of(model: Any, variables: Any = None) -> tuple[Model, Any]:
    """Return a model as a function, and its state.

    Args:
        model: a Linen or NNX module; Haiku's ``Transformed``; a callable pytree, such as an Equinox
            module; or a function ``f(variables, *inputs)``.
        variables: of a Linen module, what ``init`` returned; of Haiku's, the parameters, or for
            ``TransformedWithState`` a pair of these and the state; of a function, its first
            argument. None for NNX modules and callable pytrees, which hold their own.

    Raises:
        TypeError: the model is none of these, or a function's variables hold no array.
        ValueError: variables beside a model that holds its own, or none beside one that does not.
    """
    if isinstance(model, nn.Module):
        return Linen(model), variables
    if isinstance(model, nnx.Module):
        _check_none(variables, "an NNX model")
        graphdef, state = nnx.split(model)
        return Nnx(graphdef), state
    apply = getattr(model, "apply", None)
    if isinstance(model, tuple) and callable(apply):
        has_state = type(model).__name__ == "TransformedWithState"
        if has_state and not (isinstance(variables, tuple | list) and len(variables) == 2):
            raise ValueError(
                f"variables are a {type(variables).__name__}, expected a pair of parameters and "
                "state, as init of Haiku's transform_with_state returns."
            )
        of_haiku = str(getattr(apply, "__module__", "")).startswith("haiku")
        takes_key = not of_haiku or "rng" in inspect.signature(apply).parameters
        return Haiku(apply, has_state, takes_key), variables
    if not callable(model) or isinstance(model, type):
        raise TypeError(
            f"model is a {type(model).__name__}, expected a Linen or NNX module, Haiku's "
            "Transformed, a callable pytree such as an Equinox module, or a function "
            "f(parameters, *inputs)."
        )
    if variables is None:
        variables, function = model, _call_itself
        if jax.tree.leaves(model) == [model]:
            raise ValueError(
                f"{_name(model)} is a function and no variables are given: expected its "
                "parameters, the first argument of f(parameters, *inputs)."
            )
    else:
        function = model
    leaves, structure = jax.tree.flatten(variables)
    arrays = [leaf for leaf in leaves if _is_array(leaf)]
    if not arrays:
        kinds = ", ".join(sorted({type(leaf).__name__ for leaf in leaves}))
        held = f"no arrays, only {kinds}" if kinds else "nothing"
        raise TypeError(
            f"the variables of {_name(function)} hold {held}; expected a pytree of arrays, such as "
            "{'kernel': jnp.ones((3, 4))}. jnp.asarray makes an array of a list of numbers."
        )
    statics = tuple(None if _is_array(leaf) else leaf for leaf in leaves)
    return Pytree(function, structure, statics, tuple(_names(variables))), arrays


def holds_variables(model: Any) -> bool:
    """Return whether a model holds its own variables: an NNX module, or a callable pytree."""
    if isinstance(model, nnx.Module):
        return True
    if isinstance(model, nn.Module) or not callable(model):
        return False
    return jax.tree.leaves(model) != [model]


def _check_none(variables: Any, what: str) -> None:
    if variables is not None:
        raise ValueError(f"{what} holds its own variables; expected variables=None.")


def _call_itself(model: Any, *args: Any, **kwargs: Any) -> Any:
    return outputs_of(model, args, kwargs)


def _name(function: Any) -> str:
    return repr(getattr(function, "__name__", type(function).__name__))


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def _names(tree: Any) -> list[str]:
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return [
        jax.tree_util.keystr(path, simple=True, separator="/") or "parameters"
        for path, leaf in paths
        if _is_array(leaf)
    ]


@dataclasses.dataclass(frozen=True)
class Linen:
    """A Linen module; its state are its variables."""

    model: nn.Module

    def parameters(self, state: Any) -> Parameters:
        return {"/".join(map(str, path)): value for path, value in self._flat(state).items()}

    def _flat(self, state: Any) -> dict[tuple[str, ...], Any]:
        held = list(state) if isinstance(state, Mapping) else type(state).__name__
        if not isinstance(state, Mapping) or "params" not in state:
            raise ValueError(
                f"the variables hold no 'params', only {held}; expected what model.init returns: "
                "{'params': ...} and perhaps other collections."
            )
        if not state["params"]:
            raise ValueError("the variables' 'params' are empty: there is no layer to measure.")
        params = flax.core.unfreeze(flax.core.meta.unbox(state["params"]))
        return dict(flax.traverse_util.flatten_dict(params))

    def others(self, state: Any) -> list[str | None]:
        leaves = jax.tree_util.tree_leaves_with_path(flax.core.meta.unbox(state))
        names = (jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves)
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

    def call(self, state: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], rngs: Any) -> Any:
        return outputs_of(self.bound(state, rngs), args, kwargs)

    def bound(self, state: Any, rngs: Any) -> Any:
        """Return the module with its variables, all but the parameters mutable."""
        # With the parameters mutable too, Flax would draw those that are missing.
        mutable = flax.core.DenyList("params")
        return self.model.bind(flax.core.meta.unbox(state), rngs=rngs, mutable=mutable)


@dataclasses.dataclass(frozen=True)
class Nnx:
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
            None
            if isinstance(variable, (nnx.Param, *_NNX_DATA))
            else jax.tree_util.keystr(path, simple=True, separator="/")
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
        """Return the model."""
        return nnx.merge(self.graphdef, state)

    def call(self, state: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], rngs: Any) -> Any:
        return outputs_of(self.merged(state, rngs), args, kwargs)

    def merged(self, state: Any, rngs: Any) -> Any:
        """Return a copy of the module, its variables too, which a trace may change."""
        model = nnx.merge(self.graphdef, state, copy=True)
        if rngs:
            nnx.reseed(model, **rngs)
        return model


@dataclasses.dataclass(frozen=True)
class Haiku:
    """Haiku's ``Transformed`` or ``TransformedWithState``; its state are its parameters.

    Attributes:
        apply: its function.
        has_state: whether the state is a pair of parameters and Haiku's state.
        takes_key: whether it takes a key, as it does but for `hk.without_apply_rng`.
    """

    apply: Callable[..., Any]
    has_state: bool
    takes_key: bool = True

    def parameters(self, state: Any) -> Parameters:
        held = state[0] if self.has_state else state
        return dict(zip(_names(held), jax.tree.leaves(held), strict=True))

    def others(self, state: Any) -> list[str | None]:
        return [None] * len(jax.tree.leaves(state))

    def replace(self, state: Any, parameters: Mapping[str, Any]) -> Any:
        held = state[0] if self.has_state else state
        leaves = [parameters.get(name, leaf) for name, leaf in self.parameters(state).items()]
        exchanged = jax.tree.unflatten(jax.tree.structure(held), leaves)
        return (exchanged, *state[1:]) if self.has_state else exchanged

    def restored(self, variables: Any, state: Any) -> Any:
        return state

    def call(self, state: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], rngs: Any) -> Any:
        key = next(iter(rngs.values())) if isinstance(rngs, Mapping) and rngs else rngs or None
        keys = [key] if self.takes_key else []
        if self.has_state:
            return self.apply(*state, *keys, *args, **kwargs)[0]
        return self.apply(state, *keys, *args, **kwargs)


@dataclasses.dataclass(frozen=True)
class Pytree:
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

    def others(self, state: Any) -> list[str | None]:
        return [None] * len(state)

    def replace(self, state: Any, parameters: Mapping[str, Any]) -> Any:
        return [parameters.get(name, leaf) for name, leaf in self.parameters(state).items()]

    def restored(self, variables: Any, state: Any) -> Any:
        return self.tree(state)

    def call(self, state: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], rngs: Any) -> Any:
        if rngs:
            kwargs = {**kwargs, **rngs}
        return self.function(self.tree(state), *args, **kwargs)

    def tree(self, state: Any) -> Any:
        """Return the pytree with these arrays."""
        arrays = iter(state)
        leaves = [next(arrays) if static is None else static for static in self.statics]
        return jax.tree.unflatten(self.structure, leaves)


def outputs_of(model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return a model's outputs; one that takes keywords only gets its arguments in their order."""
    parameters = list(inspect.signature(model.__call__).parameters.values())
    if any(parameter.kind is not parameter.KEYWORD_ONLY for parameter in parameters):
        return model(*args, **kwargs)
    names = [parameter.name for parameter in parameters if parameter.name not in kwargs]
    return model(*args[len(names) :], **dict(zip(names, args, strict=False)), **kwargs)
