"""Named device axes that a model uses, bound at size 1 where it runs on one device."""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax

T = TypeVar("T")

_UNBOUND = re.compile(r"unbound axis name: (.+?)(?:\. To fix this|$)")


def bind(function: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    """Return the function with every axis name bound at size 1.

    Collectives over such an axis are the identity, and `jax.lax.axis_index` is 0.

    Args:
        function: takes and returns pytrees of arrays.
        names: the axis names; if empty, the function is returned unchanged.
    """
    for name in names:
        function = _bind_one(function, name)
    return function


def _bind_one(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    mapped = jax.vmap(function, in_axes=None, axis_size=1, axis_name=name)

    def bound(*args: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[0], mapped(*args))

    return bound


def trace(function: Callable[[tuple[str, ...]], T], names: tuple[str, ...] = ()) -> T:
    """Return ``function(names)`` with the names of all axes that the function uses.

    Args:
        function: traces a model with the axes of these names bound. It is called again with one
            more name for each axis that JAX does not find.
        names: the axis names that are already known.

    Raises:
        NameError: a Python name is not defined, or an axis name cannot be bound.
    """
    while True:
        try:
            return function(names)
        except NameError as error:
            name = missing(error)
            if name is None or name in names:
                raise
            names = (*names, name)


def missing(error: NameError) -> str | None:
    """Return the axis name that JAX did not find; None if the error is about something else."""
    match = _UNBOUND.search(str(error))
    return match[1] if match else None
