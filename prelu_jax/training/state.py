"""The state of a run at a step, and its random streams."""

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
    """A run between two steps. A checkpoint holds its arrays.

    Attributes:
        step: number of steps taken, int32 scalar.
        seed: of every random stream, uint32 scalar; no key is stored.
        params: the model's parameters, float32.
        velocity: state of ``optimizer.descent``.
        plateau: state of ``optimizer.plateau``: the best error, the count, the rate's factor.
        pixels: mean image, scale and colours that normalise and recolour the images.
        model: the Linen module (static).
        optimizer: descent and schedule (static).
        flip: whether training images are mirrored (static).
        colour: std of the colour altering, see `augment.alter_colour` (static).
        accumulate: number of parts that a device takes one after another in a step (static).
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
        """Return the ratio of the next step's learning rate to the first one."""
        return self.optimizer.rate_scale(self.step, self.plateau)


def stream(seed: jax.typing.ArrayLike, name: str, step: jax.typing.ArrayLike = 0) -> jax.Array:
    """Return the key of a named random stream at a step; it depends on nothing else."""
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
    """Return the state at step 0: parameters drawn from the seed, velocity zero.

    The model is initialised with one image of the shape of ``pixels.mean``.
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
    """Return the state after an evaluation; on a plateau the learning rate drops."""
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies an integer with a float here
        _, plateau = state.optimizer.plateau.update(optax.EmptyState(), state.plateau, value=error)
    return state.replace(plateau=plateau)
