"""Functions that leave an operation's output as it is and change its backward pass."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prelu_jax.signal import checks, reductions
from prelu_jax.signal.reductions import Axes, SecondMoments, scaled
from prelu_jax.tracing import Operation, Visit

_OF_TWO_ARRAYS = ("dense", "conv", "conv transpose")
Product = Callable[[jax.Array, jax.Array], jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def tap(y: jax.Array, sink: SecondMoments, channel_axes: Axes) -> jax.Array:
    """Return ``y``; the derivative by ``sink`` is `scaled` of y's gradient.

    The backward pass reduces the gradient where it meets it, and keeps nothing else of it.
    ``sink`` is zeros in the shapes of `scaled`'s result.
    """
    del sink, channel_axes
    return y


def _tap_forward(y: jax.Array, sink: SecondMoments, channel_axes: Axes) -> tuple[jax.Array, None]:
    del sink, channel_axes
    return y, None


def _tap_backward(
    channel_axes: Axes, _: None, gradient: jax.Array
) -> tuple[jax.Array, SecondMoments]:
    return gradient, scaled(gradient, channel_axes)


tap.defvjp(_tap_forward, _tap_backward)


class Sinks(NamedTuple):
    """Zeros whose derivatives are the second moments of a backward pass.

    Attributes:
        output: of y's gradient, of every channel.
        for_unit_variance: of Δx as expected for independent weights of variance 1
            (`tracing.counts`); nan where it is not known.
        operand: of Δx, the part of x's gradient that comes through this operation, summed over the
            entries of a padded operand; nan where it is not measured.
    """

    output: SecondMoments
    for_unit_variance: SecondMoments
    operand: SecondMoments


def sinks(operation: Operation) -> Sinks:
    """Return the sinks of an operation, for every step of the scans around it."""
    channels = (math.prod(operation.channels), 1, 1)
    return Sinks(*(_filled(0, n, operation.steps) for n in channels))


def _filled(value: float, channels: int, steps: tuple[int, ...] = ()) -> SecondMoments:
    full = functools.partial(jnp.full, fill_value=value, dtype=jnp.float32)
    return SecondMoments(full(steps), full((*steps, channels)))


def observed(visit: Visit, named: Callable[[jax.Array], jax.Array] | None) -> jax.Array:
    """Return an operation's output; its backward pass fills the operation's sinks.

    The gradient of its weights reads the input late. XLA would compute that input from the output
    of the layer before as soon as it can, and keep both of them until the backward pass. Here it
    depends on the gradient as well, so that XLA computes it when the gradient arrives, and keeps
    the output alone.

    Args:
        visit: of the operation.
        named: gives the output a name for `jax.checkpoint`, if not None.
    """
    operation, given = visit.operation, visit.given
    y = visit.y
    if (operation.kind in _OF_TWO_ARRAYS or operation.counts) and _of_floats(visit):
        call = _Call(visit.product, operation)
        y = visit.after(_product(call, visit.operand, visit.weight, given))
        y = named(y) if named else y
        return y if call.fills_output else tap(y, given.output, operation.channel_axes)
    if has_operand_gradient(visit):
        operand = tap(visit.operand, given.operand, ())
        y = visit.after(visit.product(operand, visit.weight))
    return tap(named(y) if named else y, given.output, operation.channel_axes)


def has_operand_gradient(visit: Visit) -> bool:
    """Return whether Δx is measured: not where x is the batch, which needs no gradient."""
    operation = visit.operation
    return operation.kind != "look-up" and operation.reads_parameters and _of_floats(visit)


def _of_floats(visit: Visit) -> bool:
    return all(map(checks.is_float, (visit.operand, visit.weight)))


class _Call(NamedTuple):
    """A product of two arrays, and its description."""

    product: Product
    operation: Operation

    @property
    def fills_output(self) -> bool:
        """Whether its backward pass records Δy too, as it passes over Δy for the borders anyway."""
        counts = self.operation.counts
        return counts is not None and bool(counts.by_output_axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(call: _Call, operand: jax.Array, weight: jax.Array, sinks: Sinks) -> jax.Array:
    del sinks
    return call.product(operand, weight)


def _product_forward(call: _Call, operand: jax.Array, weight: jax.Array, sinks: Sinks) -> Any:
    del sinks
    return call.product(operand, weight), (operand, weight)


def _product_backward(
    call: _Call, factors: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[Any, ...]:
    operand, weight = factors
    # Means are over the entries of x: those of a padded or unfolded operand are copies, or zeros.
    x_size = math.prod(call.operation.input_shape)
    largest = jnp.max(jnp.abs(gradient)).astype(jnp.float32)
    never = largest < 0  # which XLA does not know
    _, back = jax.vjp(call.product, jnp.where(never, 0, operand), weight)
    of_operand, of_weight = back(gradient)
    output = _filled(0, math.prod(call.operation.channels))
    for_unit_variance = of_x = _filled(jnp.nan, 1)
    if counts := call.operation.counts:
        if call.fills_output:
            output, weighted = reductions.scaled_and_weighted(
                gradient, largest, counts.output_channels, counts.by_output_axis
            )
        else:
            weighted = reductions.in_units(gradient, largest)
        for_unit_variance = _times(counts.inputs * gradient.size / x_size, weighted)
    if call.operation.reads_parameters:
        # Entries of Δx are at most fan-out times these two: its scale needs no pass of its own.
        scale = largest * jnp.max(jnp.abs(weight)).astype(jnp.float32)
        of_x = _times(operand.size / x_size, reductions.in_units(of_operand, scale))
    return of_operand, of_weight, Sinks(output, for_unit_variance, of_x)


def _times(factor: float, moments: SecondMoments) -> SecondMoments:
    return moments._replace(means=factor * moments.means)


_product.defvjp(_product_forward, _product_backward)
