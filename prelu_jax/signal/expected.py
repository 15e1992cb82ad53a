"""The second moment of an output that independent weights would give, from that of the input."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from prelu_jax.signal import reductions
from prelu_jax.tracing import Visit
from prelu_jax.tracing.counts import ByAxis


def weights(visit: Visit) -> ByAxis:
    """Return how many outputs read an entry of x, up to a factor, along the axes where it varies.

    Empty where x was padded before the product takes it, or where that is not known.
    """
    counts = visit.operation.counts
    return counts.by_operand_axis if counts and visit.operand is visit.x else ()


def read(visit: Visit, of_x: Mapping[str, jax.Array], axis_name: str | None) -> jax.Array:
    """Return E[(W x)²] over the weights' variance, in units of the square of x's scale.

    It is the mean over outputs of c (x / scale)², where c is how many outputs read an entry of x;
    nan where that is not known.

    Args:
        visit: of the operation.
        of_x: `reductions.of_input` of x with `weights`.
        axis_name: the axis of devices under `pmap`.
    """
    counts = visit.operation.counts
    if counts is None:
        return jnp.full((), jnp.nan)
    factor = counts.readers * visit.operand.size / visit.y.size
    if visit.operand is visit.x:
        return jnp.asarray(factor * of_x["weighted"])
    operand = jax.lax.stop_gradient(visit.operand)
    _, local = reductions.scaled_and_weighted(operand, of_x["scale"], -1, counts.by_operand_axis)
    mean: jax.Array = factor * reductions.pmean(local[1], axis_name)
    return mean


def bias(visit: Visit) -> jax.Array:
    """Return `reductions.scaled` of the bias, which is the same at all positions."""
    if visit.bias is None:
        return jnp.zeros(2)
    values = jax.lax.stop_gradient(visit.bias)
    channels = {axis + values.ndim for axis in visit.operation.channel_axes}
    at = tuple(slice(None) if i in channels else slice(1) for i in range(values.ndim))
    return reductions.scaled(values[at])
