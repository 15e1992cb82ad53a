"""The methods by name."""

import functools
from collections.abc import Callable, Sequence

from prelu_jax import names
from prelu_jax.datadep import filters
from prelu_jax.datadep.between_layer import BetweenLayer
from prelu_jax.datadep.from_patches import FromPatches
from prelu_jax.datadep.lsuv import Lsuv
from prelu_jax.datadep.method import OnePass
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
    expected = (
        f"expected a name of {', '.join(REGISTRY)}, an instance of one of prelu_jax.datadep's "
        "methods, such as WithinLayer(), or a sequence of these."
    )
    if isinstance(method, str):
        method = [name.strip() for name in method.split(",")]
    given = method if isinstance(method, Sequence) else [method]
    if not given:
        raise ValueError(f"method is {method!r}, {expected}")
    found: list[Method | None] = []
    for each in given:
        if isinstance(each, str):
            names.check("method", each, REGISTRY)
            found.append(REGISTRY[each]())
        elif isinstance(each, Method):
            found.append(each)
        else:
            raise TypeError(f"method is {method!r}, {expected}")
    return tuple(each for each in found if each is not None)
