"""Models of every library as pure functions of named parameters.

Only Flax is imported. A Haiku model is recognised by its two functions, an Equinox model by being a
pytree.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from flax import nnx

from prelu_jax.tracing.adapters import (
    Haiku,
    Linen,
    Model,
    Nnx,
    Pytree,
    arrays_of,
    is_array,
    outputs_of,
)

__all__ = ["Haiku", "Linen", "Model", "Nnx", "Pytree", "holds_variables", "of", "outputs_of"]


def of(model: Any, variables: Any = None) -> tuple[Model, Any]:
    """Return a model as a function, and its state.

    Args:
        model: a Linen or NNX module; Haiku's ``Transformed``; a callable pytree, such as an Equinox
            module; or a function ``f(variables, *inputs)``.
        variables: of a Linen module, the result of ``init``; of Haiku's, the parameters, or for
            ``TransformedWithState`` a pair of these and the state; of a function, its first
            argument. None for NNX modules and callable pytrees, which hold their own.

    Raises:
        TypeError: the model is none of these, or a function's variables hold no array.
        ValueError: variables beside a model that holds its own, or none beside one that does not.
    """
    if isinstance(model, nn.Module):
        return Linen(model), variables
    if isinstance(model, nnx.Module):
        if variables is not None:
            raise ValueError("an NNX model holds its own variables; expected variables=None.")
        graphdef, state = nnx.split(model)
        return Nnx(graphdef), state
    if isinstance(model, tuple) and callable(getattr(model, "apply", None)):
        return _haiku(model, variables), variables
    if not callable(model) or isinstance(model, type):
        raise TypeError(
            f"model is a {type(model).__name__}, expected a Linen or NNX module, Haiku's "
            "Transformed, a callable pytree such as an Equinox module, or a function "
            "f(parameters, *inputs)."
        )
    return _pytree(model, variables)


def _haiku(model: Any, variables: Any) -> Haiku:
    has_state = type(model).__name__ == "TransformedWithState"
    if has_state and not (isinstance(variables, tuple | list) and len(variables) == 2):
        raise ValueError(
            f"variables are a {type(variables).__name__}, expected a pair of parameters and "
            "state, as init of Haiku's transform_with_state returns."
        )
    of_haiku = str(getattr(model.apply, "__module__", "")).startswith("haiku")
    takes_key = not of_haiku or "rng" in inspect.signature(model.apply).parameters
    return Haiku(model.apply, has_state, takes_key)


def _pytree(model: Callable[..., Any], variables: Any) -> tuple[Pytree, list[Any]]:
    """Return a function of a pytree, or a callable pytree, as a model."""
    function = model
    if variables is None:
        variables, function = model, _call_itself
        if not holds_variables(model):
            raise ValueError(
                f"{_name(model)} is a function and no variables are given: expected its "
                "parameters, the first argument of f(parameters, *inputs)."
            )
    leaves, structure = jax.tree.flatten(variables)
    arrays = [leaf for leaf in leaves if is_array(leaf)]
    if not arrays:
        kinds = ", ".join(sorted({type(leaf).__name__ for leaf in leaves}))
        held = f"no arrays, only {kinds}" if kinds else "nothing"
        raise TypeError(
            f"the variables of {_name(function)} hold {held}; expected a pytree of arrays, such as "
            "{'kernel': jnp.ones((3, 4))}. jnp.asarray makes an array of a list of numbers."
        )
    statics = tuple(None if is_array(leaf) else leaf for leaf in leaves)
    return Pytree(function, structure, statics, tuple(arrays_of(variables))), arrays


def holds_variables(model: Any) -> bool:
    """Return whether a model holds its own variables: an NNX module, or a callable pytree."""
    if isinstance(model, nnx.Module):
        return True
    if isinstance(model, nn.Module) or not callable(model):
        return False
    return jax.tree.leaves(model) != [model]


def _call_itself(model: Any, *args: Any, **kwargs: Any) -> Any:
    return outputs_of(model, args, kwargs)


def _name(function: Any) -> str:
    return repr(getattr(function, "__name__", type(function).__name__))
