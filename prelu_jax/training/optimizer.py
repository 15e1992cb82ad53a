"""SGD of He et al. 2015: decay on kernels only, and a learning rate that drops."""

import functools
import operator
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from prelu_jax.decay import decay_mask


class Optimizer(NamedTuple):
    """Descent and learning-rate schedule; `state.TrainState` keeps the state of each.

    Attributes:
        descent: from gradients to updates; its ``update`` takes ``rate_scale``.
        plateau: counts evaluations without a lower error and holds the rate's factor.
        weight_decay: of kernels (`decay_mask`), part of ``descent``.
        drop_factor: factor on the rate when it drops.
        drop_steps: steps after which it drops; empty: it drops when the error plateaus.
    """

    descent: optax.GradientTransformationExtraArgs
    plateau: optax.GradientTransformationExtraArgs
    weight_decay: float
    drop_factor: float
    drop_steps: tuple[int, ...]

    def rate_scale(self, step: jax.Array, plateau: Any) -> jax.Array:
        """Return the ratio of the learning rate after ``step`` steps to the first one."""
        scale: jax.Array = plateau.scale
        if self.drop_steps:
            dropped = jnp.sum(step >= jnp.array(self.drop_steps))
            scale = jnp.float32(self.drop_factor) ** dropped.astype(jnp.float32)
        return scale


@functools.cache  # equal recipes are one object: states that differ in values compile once
def sgd(
    learning_rate: float,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    drop_factor: float = 0.1,
    plateau_patience: int = 10,
    min_learning_rate: float = 1e-4,
    frozen: str = "",
    drop_steps: tuple[int, ...] = (),
) -> Optimizer:
    """Return SGD with momentum in the form of Caffe and He et al. 2015 (Eq. 4).

    The velocity is ``v := momentum · v + rate · gradient``: after the rate drops, the old velocity
    keeps the old rate.

    Args:
        learning_rate: the first rate.
        momentum: of the velocity.
        weight_decay: of kernels (`decay_mask`).
        drop_factor: factor on the rate when it drops.
        plateau_patience: evaluations without a lower error that make a plateau.
        min_learning_rate: on plateaus, the rate drops no further.
        frozen: regex of the parameters (`matching`) that get no update, no decay, no velocity.
        drop_steps: numbers of steps after which the rate drops, instead of on plateaus.
    """
    descent = optax.chain(
        optax.add_decayed_weights(weight_decay, mask=decay_mask),
        _scale_by_rate(learning_rate),
        optax.trace(decay=momentum),
        optax.scale(-1.0),
    )
    if frozen:
        descent = optax.chain(
            optax.masked(descent, lambda p: jax.tree.map(operator.not_, matching(p, frozen))),
            optax.masked(optax.set_to_zero(), lambda p: matching(p, frozen)),
        )
    plateau = optax.contrib.reduce_on_plateau(
        factor=drop_factor,
        patience=plateau_patience,
        min_scale=min(1.0, min_learning_rate / learning_rate),
    )
    return Optimizer(descent, plateau, weight_decay, drop_factor, drop_steps)


def matching(params: Any, pattern: str) -> Any:
    """Return which parameters have a path, as 'conv2_1/kernel', that matches a regex.

    Args:
        params: of a Linen model.
        pattern: for `re.search`; an empty one matches no parameter.

    Returns:
        The same tree with a bool for every parameter, a mask for optax.
    """
    found = {
        path: bool(pattern and re.search(pattern, "/".join(path)))
        for path in traverse_util.flatten_dict(params)
    }
    return traverse_util.unflatten_dict(found)


def _scale_by_rate(learning_rate: float) -> optax.GradientTransformationExtraArgs:
    def update(
        updates: Any, state: Any, params: Any = None, *, rate_scale: jax.Array, **_: Any
    ) -> tuple[Any, Any]:
        return jax.tree.map(lambda u: learning_rate * rate_scale * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
