"""The methods by name."""

import functools
from collections.abc import Callable, Sequence

from prelu_jax import names
from prelu_jax.datadep import filters
from prelu_jax.datadep.between_layer import BetweenLayer
from prelu_jax.datadep.from_patches import FromPatches
from prelu_jax.datadep.lsuv import Lsuv
from prelu_jax.datadep.walk import OnePass
from prelu_jax.datadep.within_layer import WithinLayer

Method = OnePass | BetweenLayer

REGISTRY: dict[str, Callable[[], Method | None]] = {
    "none": lambda: None,
    "within_layer": WithinLayer,
    "lsuv": Lsuv,
    "between_layer": BetweenLayer,
    **{kind: functools.partial(FromPatches, kind=kind) for kind in filters.KINDS},
}


def resolve(method: str | Method | Sequence[str | Method]) -> tuple[Method, ...]:
    """The methods of a name, of several in a string with commas, or of a sequence of them.

    Raises:
        ValueError: an unknown name, or none at all.
        TypeError: what is neither a name nor a method.
    """
    if isinstance(method, Method):
        return (method,)
    if isinstance(method, str):
        method = [name.strip() for name in method.split(",")]
    if not isinstance(method, Sequence) or not method:
        raise TypeError(
            f"method is {method!r}, expected a name of {', '.join(REGISTRY)}, a method of "
            "prelu_jax.datadep, or a sequence of these."
        )
    found: list[Method | None] = []
    for each in method:
        if not isinstance(each, str | Method):
            raise TypeError(f"method holds {each!r}, expected names and methods.")
        if isinstance(each, str):
            names.check("method", each, REGISTRY)
            found.append(REGISTRY[each]())
        else:
            found.append(each)
    return tuple(each for each in found if each is not None)
