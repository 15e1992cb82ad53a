"""Checks of a measurement's inputs, before anything is compiled."""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from prelu_jax import axes
from prelu_jax.signal import batches
from prelu_jax.signal.coverage import Coverage

T = TypeVar("T")

_ARRAYS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)


def shapes(
    function: Callable[..., Any], axis_name: str | None, *args: Any, bound: tuple[str, ...] = ()
) -> Any:
    """Return the shapes and types of a function's outputs, with the axes bound that it asks for.

    Args:
        function: called once for each axis that it asks for, so it has to forget earlier calls.
        axis_name: the axis that a caller maps over; without one, any axis is bound at size 1.
        *args: arrays, or their shapes and types.
        bound: axis names that it is known to ask for.

    Raises:
        TypeError: the function returned something other than a pytree of arrays.
        ValueError: it asks for an axis other than ``axis_name``.
    """

    def checked(*args: Any) -> Any:
        return arrays(function(*args))

    def trace(names: tuple[str, ...]) -> Any:
        given = names if axis_name is None else (axis_name,)
        return jax.make_jaxpr(axes.bind(checked, given), return_shape=True)(*args)[1]

    return with_axes(trace, axis_name, bound)


def variables_and_batch(caller: str, model: Any, given: Sequence[Any]) -> tuple[Any, Any]:
    """Return the variables, None for a model that holds its own, and the batch.

    Args:
        caller: the function that was called, for the message.
        model: its first argument.
        given: its other positional arguments.

    Raises:
        TypeError: there are too few or too many.
    """
    expected = {1, 2}
    if isinstance(model, nn.Module | nnx.Module):
        expected = {1} if isinstance(model, nnx.Module) else {2}
    if len(given) not in expected:
        raise TypeError(
            f"{caller} was given {1 + len(given)} positional arguments; expected "
            f"{caller}(model, variables, batch), or {caller}(model, batch) for NNX modules and "
            "callable pytrees. Several inputs of a model go into a tuple."
        )
    *variables, batch = given
    return (variables[0] if variables else None), batch


def arrays(outputs: Any) -> Any:
    """Return the outputs of a model or a loss.

    Raises:
        TypeError: they are something other than a pytree of arrays.
    """
    for leaf in jax.tree.leaves(outputs):
        if not isinstance(leaf, _ARRAYS):
            raise TypeError(
                f"the model or the loss returned a {type(leaf).__name__}, expected arrays, or "
                "a pytree of them. A dataclass is one after jax.tree_util.register_dataclass."
            )
    return outputs


def with_axes(
    trace: Callable[[tuple[str, ...]], T], axis_name: str | None, bound: tuple[str, ...] = ()
) -> T:
    """Return ``trace(names)`` with the names of the axes that a model asks for.

    Raises:
        ValueError: it asks for an axis other than ``axis_name``.
    """
    try:
        return axes.trace(trace, bound) if axis_name is None else trace(())
    except NameError as error:
        if axes.missing(error) is None:
            raise
        raise ValueError(
            f"the model asks for an axis of devices, as BatchNorm(axis_name=...) does, but "
            f"axis_name is {axis_name!r} here. Prepare a probe with that axis_name and map its "
            f"statistics over it: see signal.prepare. JAX says: {error}"
        ) from error


def check_objective(
    outputs: Any,
    loss: Callable[[Any], jax.Array] | None,
    axis_name: str | None,
    bound: tuple[str, ...] = (),
) -> None:
    """Check that the outputs hold floats and the loss of them is a scalar.

    Raises:
        ValueError: they do not, or it is none.
        TypeError: the loss is no function.
    """
    if not any(is_float(leaf) for leaf in jax.tree.leaves(outputs)):
        raise ValueError(
            f"the model returned {batches.described(outputs)}, expected an array of floats, "
            "or a pytree that holds one: there is nothing to send a gradient back from."
        )
    if loss is None:
        return
    if not callable(loss):
        raise TypeError(f"loss is {loss!r}, expected a function of the model's outputs.")
    value = shapes(loss, axis_name, outputs, bound=bound)
    if not is_float(value) or value.shape != ():
        raise ValueError(
            f"the loss returned {batches.described(value)}, expected a scalar of floats. "
            "Take the mean over the batch."
        )


def is_hashable(value: Any) -> bool:
    """Return whether a value can key a cache: not a model with a list for a field, for example."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


def is_float(value: Any) -> bool:
    """Return whether a value is an array of real floats, concrete or abstract."""
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating)


@contextlib.contextmanager
def differentiable(coverage: Coverage) -> Iterator[None]:
    """Explain JAX's ValueError about a model that has no backward pass."""
    try:
        yield
    except ValueError as error:
        if not re.search("[Rr]everse-mode|Pure callbacks do not support", str(error)):
            raise
        reason = f" {coverage.sentence()}." if coverage.not_measured else ""
        raise ValueError(
            "the gradient of the model cannot be taken: it goes through a while_loop, a "
            "pure_callback or a reduce_window with a rule of its own, which have no backward pass."
            f"{reason} A loop of a known number of steps can be a scan, or a fori_loop with bounds "
            "that are Python integers; a maximum over windows has to start from -jnp.inf."
        ) from error


def nothing_to_measure(kinds: set[str], coverage: Coverage) -> str:
    """Return the message about a model of these kinds of modules and no measured layer."""
    reason = f"; {coverage.sentence()}" if coverage.not_measured else ""
    modules = f" Kinds of module found: {', '.join(sorted(kinds))}." if kinds else ""
    return (
        f"no layer of the model can be measured{reason}.{modules} Expected a product of weights "
        "with data: a matrix product, a convolution or a look-up."
    )
