"""Functions that leave an operation's output as it is and change its backward pass."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from prelu_jax.signal import checks
from prelu_jax.signal.reductions import Axes, scaled
from prelu_jax.tracing import Visit

_OF_TWO_ARRAYS = ("dense", "conv", "conv transpose")
Product = Callable[[jax.Array, jax.Array], jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def tap(y: jax.Array, sink: jax.Array, channel_axes: Axes) -> jax.Array:
    """Return ``y``; the derivative by ``sink`` is `scaled` of y's gradient.

    The backward pass reduces the gradient where it meets it, and keeps nothing else of it.
    ``sink`` is an array of zeros of the shape of `scaled`'s result.
    """
    del sink, channel_axes
    return y


def _tap_forward(y: jax.Array, sink: jax.Array, channel_axes: Axes) -> tuple[jax.Array, None]:
    del sink, channel_axes
    return y, None


def _tap_backward(channel_axes: Axes, _: None, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gradient, scaled(gradient, channel_axes)


tap.defvjp(_tap_forward, _tap_backward)


def with_late_input(visit: Visit) -> jax.Array:
    """Return an operation's output; the gradient of its weights reads the input late.

    XLA would compute that input from the output of the layer before as soon as it can, and keep
    both of them until the backward pass. Here it depends on the gradient as well, so that XLA
    computes it when the gradient arrives, and keeps the output alone.
    """
    floats = all(map(checks.is_float, (visit.operand, visit.weight)))
    if visit.operation.kind not in _OF_TWO_ARRAYS or not floats:
        return visit.y
    return visit.after(_product(visit.product, visit.operand, visit.weight))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(product: Product, operand: jax.Array, weight: jax.Array) -> jax.Array:
    return product(operand, weight)


def _product_forward(product: Product, operand: jax.Array, weight: jax.Array) -> Any:
    return product(operand, weight), (operand, weight)


def _product_backward(
    product: Product, factors: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, ...]:
    operand, weight = factors
    never = jnp.max(jnp.abs(gradient)) < 0  # which XLA does not know
    _, back = jax.vjp(product, jnp.where(never, 0, operand), weight)
    gradients: tuple[jax.Array, ...] = back(gradient)
    return gradients


_product.defvjp(_product_forward, _product_backward)
