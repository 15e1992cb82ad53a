"""The places of an operation's weights and bias among the entries of its parameters."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr
from numpy.typing import NDArray

from prelu_jax import compiling
from prelu_jax.tracing.evaluation import Visit
from prelu_jax.tracing.program import Program

Places = Mapping[str, NDArray[np.int32]]  # of a parameter's entries; -1: not there

_BASE = 128  # the digits of a number that bfloat16 holds exactly


@dataclasses.dataclass(frozen=True, eq=False)
class Arrangement:
    """The parameters of an operation, entry by entry.

    Attributes:
        weight: of every parameter in W, the flat place of each entry in W with the axes of the
            scans whose steps have weights of their own before its others. None if W is computed.
        bias: the same for the bias, in the shape of the channels of y. None if it is computed; {}
            without a bias.
    """

    weight: Places | None
    bias: Places | None


def of(
    program: Program, parameters: Mapping[str, Any], others: Any, batch: Any
) -> dict[int, Arrangement]:
    """Return the arrangements of a function's operations by their numbers.

    Args:
        program: the function.
        parameters, others, batch: in the shapes that it was traced with; values do not count.
    """
    records = program.records(_weight_and_bias, parameters, others, batch)
    operations = {operation.number: operation for operation in program.operations}
    found: dict[int, dict[str, Places | None]] = {number: {"bias": {}} for number in operations}
    leaves = jax.tree_util.tree_leaves_with_path(records.shapes)
    known: dict[Any, list[NDArray[np.int32]] | None] = {}  # most layers are equal
    for place, ((number, what), shape) in enumerate(leaves):
        function, names = records.function(place)
        held = {name: parameters[name] for name in names if name is not None}
        if len(held) < len(names) or not all(map(_is_float, held.values())):
            found[number.key][what.key] = None
            continue
        own = operations[number.key].own
        key = number.key if function.consts else (str(function), own)
        if key not in known:
            known[key] = _places(function, list(held.values()), own, shape.shape)
        places = known[key]
        of_names = None if places is None else dict(zip(held, places, strict=True))
        found[number.key][what.key] = of_names
    for number, parts in found.items():
        if not operations[number].is_view:
            parts["weight"] = None
    return {number: Arrangement(**parts) for number, parts in found.items()}


def used_beside_biases(
    program: Program, parameters: Mapping[str, Any], others: Any, batch: Any
) -> set[str]:
    """Return the parameters that a function's outputs depend on if no operation adds its bias."""

    def without_bias(visit: Visit) -> tuple[jax.Array, None]:
        return visit.y if visit.bias is None else visit.after(
            visit.product(visit.operand, visit.weight), without_bias=True
        ), None

    return program.depends_on(without_bias, parameters, others, batch)


def _weight_and_bias(visit: Visit) -> tuple[jax.Array, Any]:
    if visit.bias is None:
        return visit.y, {"weight": visit.weight}
    bias, axes = jnp.broadcast_to(visit.bias, visit.y.shape), visit.operation.channel_axes
    by_channel = bias[tuple(slice(None) if i - bias.ndim in axes else 0 for i in range(bias.ndim))]
    return visit.y, {"weight": visit.weight, "bias": by_channel}


def _places(
    closed: ClosedJaxpr, held: Sequence[Any], own: Sequence[bool], shape: Sequence[int]
) -> list[NDArray[np.int32]] | None:
    """Return where a function's arguments are in its result; None if it computes with them.

    ``shape`` is the result's, with the axes of scans first, and ``own`` says of each scan whether
    every step has weights of its own.
    """

    def function(*arguments: Any) -> Any:
        return jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *arguments)[0]

    def pull_back(arguments: Sequence[jax.Array], numbers: jax.Array) -> Any:
        return jax.vjp(function, *arguments)[1](numbers)

    first = tuple(slice(None) if each else slice(1) for each in own)
    counted = np.zeros(shape, np.int64)
    size = math.prod(counted[first].shape)
    counted[first] = np.arange(1, size + 1).reshape(counted[first].shape)

    if not closed.eqns and closed.jaxpr.outvars == closed.jaxpr.invars and all(own):
        return [(counted - 1).astype(np.int32)]  # the parameter itself
    back = compiling.for_few_calls(pull_back)
    arguments, dtype = [_alternating(leaf) for leaf in held], closed.out_avals[0].dtype

    def pulled(numbers: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return [
            np.asarray(leaf).astype(np.int64) for leaf in back(arguments, numbers.astype(dtype))
        ]

    times = pulled((counted > 0).astype(np.int64))
    if sum(int(leaf.sum()) for leaf in times) != size or any((leaf > 1).any() for leaf in times):
        return None
    totals = [np.zeros(leaf.shape, np.int64) for leaf in held]
    unit = 1
    while unit <= size:
        for total, digit in zip(totals, pulled(counted // unit % _BASE), strict=True):
            total += unit * digit
        unit *= _BASE
    return [(total - 1).astype(np.int32) for total in totals]


def _alternating(leaf: Any) -> jax.Array:
    """Return numbers at which functions such as `tanh` have derivatives other than 1."""
    signs = 1 - 2 * (np.arange(math.prod(leaf.shape)) % 2)
    numbers = 0.7 * signs.reshape(leaf.shape)
    return jnp.asarray(numbers, jax.dtypes.canonicalize_dtype(leaf.dtype))


def _is_float(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))
