"""What a measurement asks of its inputs, told before anything is compiled."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def abstractly(function: Callable[..., Any], axis_name: str | None, *args: Any) -> Any:
    """`jax.eval_shape`, with the axis bound that collectives in the model may ask for."""
    if axis_name is None:
        return jax.eval_shape(function, *args)
    mapped = jax.vmap(function, in_axes=None, axis_size=1, axis_name=axis_name)
    outputs = jax.eval_shape(mapped, *args)
    return jax.tree.map(lambda y: jax.ShapeDtypeStruct(y.shape[1:], y.dtype), outputs)


def check_objective(
    outputs: Any, loss: Callable[[Any], jax.Array] | None, axis_name: str | None
) -> None:
    """Raises ValueError unless the outputs hold floats and the loss of them is a scalar."""
    if not any(is_float(leaf) for leaf in jax.tree.leaves(outputs)):
        raise ValueError(
            f"the model returned {jax.tree.map(_describe, outputs)}, expected an array of floats, "
            "or a pytree that holds one: there is nothing to send a gradient back from."
        )
    if loss is None:
        return
    value = abstractly(loss, axis_name, outputs)
    if not is_float(value) or value.shape != ():
        raise ValueError(
            f"the loss returned {jax.tree.map(_describe, value)}, expected a scalar of floats. "
            "Take the mean over the batch."
        )


def args_of(batch: Any) -> tuple[Any, ...]:
    """The model's positional arguments."""
    return batch if isinstance(batch, tuple) else (batch,)


def batch_size_of(batch: Any) -> int:
    """The length of the first axis of the first array.

    Raises:
        TypeError: the batch holds what is no array.
        ValueError: no batch axis, or an empty batch.
    """
    leaves = jax.tree.leaves(batch)
    for leaf in leaves:
        if not hasattr(leaf, "shape"):
            raise TypeError(
                f"the batch holds {leaf!r}, a {type(leaf).__name__}; expected arrays only. Give "
                "flags as call_kwargs={'train': True}."
            )
    if not leaves or leaves[0].ndim == 0:
        raise ValueError(
            f"the batch is {jax.tree.map(_describe, batch)}, expected arrays of which the first "
            "has the examples along its first axis. One example? Give x[None]."
        )
    if any(0 in leaf.shape for leaf in leaves):
        raise ValueError(f"the batch is empty: {jax.tree.map(_describe, batch)}.")
    return leaves[0].shape[0]


def is_float(value: Any) -> bool:
    """Whether a value is an array of real floats, concrete or abstract."""
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating)


def _describe(array: Any) -> str:
    return f"{array.dtype}{list(array.shape)}"
