"""The mask of weight decay: kernels decay, biases and PReLU slopes do not."""

from typing import Any

import jax
from flax.core import meta


def decay_mask(params: Any) -> Any:
    """Return True for every parameter that may decay: those named 'kernel'.

    Biases and PReLU slopes never decay (He et al. 2015, §2.1). Pass the function itself to an
    optimiser, ``optax.adamw(1e-3, mask=pj.decay_mask)``, or the tree that it returns.

    Args:
        params: the parameters of a Linen model (nested dicts), or the state of an NNX model
            (``nnx.state(model, nnx.Param)``).

    Returns:
        The same tree with a bool for every parameter. A parameter in a box of
        `flax.linen.with_partitioning` also gets a plain bool, so that the mask fits the tree before
        and after unboxing.

    Raises:
        TypeError: a parameter has no name.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: _name(path) == "kernel",
        params,
        is_leaf=lambda leaf: isinstance(leaf, meta.AxisMetadata),
    )


def _name(path: tuple[Any, ...]) -> str:
    """Return the name of a parameter: the last key of its path that is a name."""
    keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
    if not keys:
        raise TypeError(
            "decay_mask: a parameter has no name; expected the nested dict variables['params'] of "
            "a Linen model, or nnx.state(model, nnx.Param) of an NNX one."
        )
    return str(keys[-1])
