"""The expected second moment of a layer's output for independent weights, given its input."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from prelu_jax.signal import reductions
from prelu_jax.signal.reductions import SecondMoments
from prelu_jax.tracing import Visit
from prelu_jax.tracing.counts import ByAxis


def reader_weights(visit: Visit) -> ByAxis:
    """Return the number of outputs that read an entry of x, up to a factor, where it varies.

    Empty where the product takes x after padding, or where the number is not known.
    """
    counts = visit.operation.counts
    return counts.by_operand_axis if counts and visit.operand is visit.x else ()


def for_unit_variance(
    visit: Visit, of_x: Mapping[str, jax.Array], axis_name: str | None
) -> jax.Array:
    """Return E[(W x)²] for weights of variance 1, in units of the square of x's scale.

    It is Σ c (x / scale)² over the entries of x, divided by the number of outputs, where c outputs
    read an entry; nan where c is not known.

    Args:
        visit: of the operation.
        of_x: `reductions.of_channels` of x, with `reader_weights`.
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
    mean: jax.Array = factor * reductions.pmean(local.means[0], axis_name)
    return mean


def bias(visit: Visit) -> SecondMoments:
    """Return the second moment of the bias, which is the same at all positions."""
    if visit.bias is None:
        return SecondMoments(jnp.zeros(()), jnp.zeros(1))
    values = jax.lax.stop_gradient(visit.bias)
    channels = {axis + values.ndim for axis in visit.operation.channel_axes}
    at = tuple(slice(None) if i in channels else slice(1) for i in range(values.ndim))
    return reductions.scaled(values[at])
