"""What a measurement asks of its inputs, told before anything is compiled."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prelu_jax.signal.sites import Site

_ARRAYS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)


def abstractly(function: Callable[..., Any], axis_name: str | None, *args: Any) -> Any:
    """`jax.eval_shape`, with the axis bound that collectives in the model may ask for.

    Raises:
        TypeError: the function returned what is no array, nor a pytree of them.
        ValueError: the model asks for an axis that is not bound.
    """

    def checked(*args: Any) -> Any:
        try:
            outputs = function(*args)
        except NameError as error:
            if "unbound axis name" not in str(error):
                raise
            raise ValueError(
                f"the model asks for an axis of devices, as BatchNorm(axis_name=...) does, but "
                f"axis_name is {axis_name!r} here. Prepare a probe with that axis_name and map "
                f"its statistics over it: see signal.prepare. JAX says: {error}"
            ) from error
        for leaf in jax.tree.leaves(outputs):
            if not isinstance(leaf, _ARRAYS):
                raise TypeError(
                    f"the model or the loss returned a {type(leaf).__name__}, expected arrays, or "
                    "a pytree of them. A dataclass is one after jax.tree_util.register_dataclass."
                )
        return outputs

    if axis_name is None:
        return jax.eval_shape(checked, *args)
    mapped = jax.vmap(checked, in_axes=None, axis_size=1, axis_name=axis_name)
    outputs = jax.eval_shape(mapped, *args)
    return jax.tree.map(lambda y: jax.ShapeDtypeStruct(y.shape[1:], y.dtype), outputs)


def check_objective(
    outputs: Any, loss: Callable[[Any], jax.Array] | None, axis_name: str | None
) -> None:
    """Raises ValueError unless the outputs hold floats and the loss of them is a scalar.

    TypeError if the loss is no function.
    """
    if not any(is_float(leaf) for leaf in jax.tree.leaves(outputs)):
        raise ValueError(
            f"the model returned {jax.tree.map(_describe, outputs)}, expected an array of floats, "
            "or a pytree that holds one: there is nothing to send a gradient back from."
        )
    if loss is None:
        return
    if not callable(loss):
        raise TypeError(f"loss is {loss!r}, expected a function of the model's outputs.")
    value = abstractly(loss, axis_name, outputs)
    if not is_float(value) or value.shape != ():
        raise ValueError(
            f"the loss returned {jax.tree.map(_describe, value)}, expected a scalar of floats. "
            "Take the mean over the batch."
        )


def args_of(batch: Any) -> tuple[Any, ...]:
    """The model's positional arguments; a named tuple is one of them."""
    return batch if type(batch) is tuple else (batch,)


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


def is_hashable(value: Any) -> bool:
    """Whether it can key a cache; not so with a list for a field of the model, or as a keyword."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


def is_float(value: Any) -> bool:
    """Whether a value is an array of real floats, concrete or abstract."""
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating)


def _describe(array: Any) -> str:
    return f"{array.dtype}{list(array.shape)}"


def check_batch_axis(site: Site, x: jax.Array, batch: Any) -> None:
    """Raises ValueError if a layer reads the batch as it is and has no axis to find examples in.

    Flax would take an image ``[h, w, channels]`` or a vector ``[features]`` for one example.
    """
    if x.ndim < site.least_ndim and x.shape == jax.tree.leaves(batch)[0].shape:
        raise ValueError(
            f"the layer {site.path or site.kind!r} was given {_describe(x)}, expected at least "
            f"{site.least_ndim} axes, of which the first counts the examples. One example? Give "
            "x[None]."
        )


def nothing_to_measure(kinds: set[str], unseen: tuple[str, ...]) -> str:
    """What to say of a model that has modules of these kinds and no affine layer in sight."""
    return (
        f"no layer of the model can be measured. Kinds of module found: "
        f"{', '.join(sorted(kinds))}; weights not seen: {', '.join(unseen) or 'none'}. "
        "Expected a Dense, Conv, Einsum or Embed, or their kin, called outside of scan, remat, "
        "vmap, jit and cond."
    )


def unseen(parameters: Mapping[str, Any], sites: Sequence[Site]) -> tuple[str, ...]:
    """The weights that no site speaks of; what lies beside a measured kernel is its bias."""
    owners = {site.parameter.rpartition("/")[0] for site in sites}
    met = {site.parameter for site in sites} | {
        name for name in parameters if name.endswith("bias") and name.rpartition("/")[0] in owners
    }
    return tuple(
        name
        for name, value in parameters.items()
        if name not in met and (name.rpartition("/")[-1] == "kernel" or value.ndim >= 2)
    )
