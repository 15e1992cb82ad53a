"""SGD as the paper trains: decay on kernels only, a learning rate that drops."""

import functools
import operator
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from prelu_jax.decay import decay_mask

decays = decay_mask


class Optimizer(NamedTuple):
    """The two halves of the recipe; `state.TrainState` keeps the state of each.

    Attributes:
        descent: gradients to updates; its ``update`` takes ``rate_scale``, the plateau's factor.
        plateau: counts evaluations without a lower error and holds the factor.
        weight_decay: of kernels (`decays`), part of ``descent``.
        drop_factor: what the rate is multiplied with when it drops.
        drop_steps: when it drops, whatever the error does; empty: when the error plateaus.
    """

    descent: optax.GradientTransformationExtraArgs
    plateau: optax.GradientTransformationExtraArgs
    weight_decay: float
    drop_factor: float
    drop_steps: tuple[int, ...]

    def rate_scale(self, step: jax.Array, plateau: Any) -> jax.Array:
        """The learning rate over the first one, in the step after ``step`` others."""
        if not self.drop_steps:
            return plateau.scale
        dropped = jnp.sum(step >= jnp.array(self.drop_steps))
        return jnp.float32(self.drop_factor) ** dropped.astype(jnp.float32)


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
    """SGD with momentum, as Caffe and He et al. 2015 (Eq. 4) write it.

    The velocity is ``v := momentum · v + rate · gradient``: the rate stands inside, so that after
    a drop the old velocity keeps the old rate.

    Args:
        learning_rate: the first rate.
        momentum: of the velocity.
        weight_decay: of kernels (`decays`).
        drop_factor: what the rate is multiplied with when it drops.
        plateau_patience: evaluations without a lower error that make a plateau.
        min_learning_rate: on plateaus, the rate drops no further.
        frozen: regex of the parameters (`matching`) that are left as they are: no update, no decay,
            no velocity kept.
        drop_steps: numbers of steps after which the rate drops, instead of on plateaus.
    """
    descent = optax.chain(
        optax.add_decayed_weights(weight_decay, mask=decays),
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
    """Which parameters have a path, as 'conv2_1/kernel', that a regex is found in.

    Args:
        params: of a Linen model.
        pattern: as `re.search` takes it; if it is empty, it is found in none.

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
