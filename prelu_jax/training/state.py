"""Everything a run is at one step, and the random streams it draws from."""

import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from prelu_jax.data.augment import PixelStatistics
from prelu_jax.training.optimizer import Optimizer


class TrainState(struct.PyTreeNode):
    """A run between two steps. Its arrays are what a checkpoint holds.

    Attributes:
        step: how many steps were taken, int32 scalar.
        seed: names every random stream of the run, uint32 scalar; no key is stored.
        params: the model's parameters, float32.
        velocity: state of ``optimizer.descent``.
        plateau: state of ``optimizer.plateau``: the best error, the count, the rate's factor.
        pixels: what is subtracted from images, what they are multiplied with, how colours vary.
        model: the Linen module (static).
        optimizer: the two halves of the recipe (static).
        flip: whether training images are mirrored (static).
        colour: how much training images are recoloured, see `augment.alter_colour` (static).
        accumulate: the parts that a device takes one after another in a step (static).
    """

    step: jax.Array
    seed: jax.Array
    params: Any
    velocity: Any
    plateau: Any
    pixels: PixelStatistics
    model: nn.Module = struct.field(pytree_node=False)
    optimizer: Optimizer = struct.field(pytree_node=False)
    flip: bool = struct.field(pytree_node=False, default=False)
    colour: float = struct.field(pytree_node=False, default=0.0)
    accumulate: int = struct.field(pytree_node=False, default=1)

    @property
    def rate_scale(self) -> jax.Array:
        """The learning rate of the next step over the first one."""
        return self.optimizer.rate_scale(self.step, self.plateau)


def stream(seed: jax.typing.ArrayLike, name: str, step: jax.typing.ArrayLike = 0) -> jax.Array:
    """The key of a named random stream at a step, the same however the run came there."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    return jax.random.fold_in(key, step)


@functools.partial(jax.jit, static_argnames=("model", "optimizer", "flip", "colour", "accumulate"))
def create(
    model: nn.Module,
    optimizer: Optimizer,
    pixels: PixelStatistics,
    seed: jax.typing.ArrayLike,
    flip: bool = False,
    colour: float = 0.0,
    accumulate: int = 1,
) -> TrainState:
    """The state at step 0: parameters drawn from the seed, velocity zero.

    The parameters are those of one image of the shape of ``pixels.mean``.
    """
    image = jnp.zeros((1, *pixels.mean.shape), jnp.float32)
    params = model.init(stream(seed, "params"), image)["params"]
    return TrainState(
        step=jnp.int32(0),
        seed=jnp.uint32(seed),
        params=params,
        velocity=optimizer.descent.init(params),
        plateau=optimizer.plateau.init(params),
        pixels=pixels,
        model=model,
        optimizer=optimizer,
        flip=flip,
        colour=colour,
        accumulate=accumulate,
    )


@jax.jit
def observe_error(state: TrainState, error: jax.typing.ArrayLike) -> TrainState:
    """The state after an evaluation: the learning rate's factor drops if the error plateaus."""
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies an integer with a float here
        _, plateau = state.optimizer.plateau.update(optax.EmptyState(), state.plateau, value=error)
    return state.replace(plateau=plateau)
