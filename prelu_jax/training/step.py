"""One step of training: a pure function of the state and a batch."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from prelu_jax.data import augment
from prelu_jax.training.state import TrainState, stream

Metrics = dict[str, Any]
_LossAndGradient = tuple[tuple[jax.Array, jax.Array], Any]  # ((loss, error), gradient)


class Inputs(NamedTuple):
    """Arguments of the model in a training step.

    Attributes:
        images: normalised; with the state's augmentations, half of them mirrored, all recoloured.
        call_kwargs: keywords of the call.
        rngs: keys of the model's random streams.
    """

    images: jax.Array
    call_kwargs: dict[str, Any]
    rngs: dict[str, jax.Array]


def first_of_part(batch: dict[str, jax.Array], axis_name: str | None) -> jax.typing.ArrayLike:
    """Return the place of this device's first example in the global batch."""
    return batch["label"].shape[0] * jax.lax.axis_index(axis_name) if axis_name else 0


def inputs(state: TrainState, images: jax.Array, first_example: jax.typing.ArrayLike = 0) -> Inputs:
    """Return the inputs of the state's next step.

    Args:
        state: before the step.
        images: uint8 ``[b, h, w, 3]``, a part of the batch.
        first_example: the place of the first image in the global batch.
    """
    x = augment.normalize(images, state.pixels)
    if state.flip:
        x = augment.random_flip(stream(state.seed, "flip", state.step), x, first_example)
    if state.colour:
        key = stream(state.seed, "colour", state.step)
        x = augment.alter_colour(key, x, state.pixels, state.colour, first_example)
    return Inputs(
        images=x,
        call_kwargs={"train": True, "first_example": first_example},
        rngs={"dropout": stream(state.seed, "dropout", state.step)},
    )


def mean_loss(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean cross-entropy of scores ``[b, classes]``."""
    losses: jax.Array = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
    return losses.mean()


def train_step(
    state: TrainState, batch: dict[str, jax.Array], *, axis_name: str | None = None
) -> tuple[TrainState, Metrics]:
    """Take one step of SGD on the mean cross-entropy of the batch.

    Args:
        state: before the step.
        batch: this device's part: ``image`` uint8 ``[b, h, w, 3]``, ``label`` int32 ``[b]``.
        axis_name: the mapped axis over devices; None for one device.

    Returns:
        The state after the step, the same on every device, and metrics of the whole batch before
        it: 'loss', 'error', and by parameter path 'grad_rms', 'param_rms' and 'slope_mean'.
    """
    (loss, error), grads = _gradients(state, batch, first_of_part(batch, axis_name))
    if axis_name:
        # Devices hold equal parts, so the mean of their means is the mean over the batch.
        loss, error, grads = _mean_over_devices((loss, error, grads), axis_name)

    updates, velocity = state.optimizer.descent.update(
        grads, state.velocity, state.params, rate_scale=state.rate_scale
    )
    params = optax.apply_updates(state.params, updates)
    metrics = {
        "loss": loss,
        "error": error,
        "grad_rms": jax.tree.map(_rms, grads),
        "param_rms": jax.tree.map(_rms, state.params),
        "slope_mean": _slope_means(state.params),
    }
    new_state = state.replace(step=state.step + 1, params=params, velocity=velocity)
    return new_state, metrics


def _mean_over_devices(tree: Any, axis_name: str) -> Any:
    """Return the mean over devices, on CPUs as one array: they synchronise for every array."""
    if jax.default_backend() != "cpu":
        return jax.lax.pmean(tree, axis_name)  # XLA joins the arrays there, without this copy
    flat, unravel = ravel_pytree(tree)
    return unravel(jax.lax.pmean(flat, axis_name))


def _gradients(
    state: TrainState, batch: dict[str, jax.Array], first: jax.typing.ArrayLike
) -> _LossAndGradient:
    """Return mean loss and error of a device's examples, and the gradient of the loss.

    With ``state.accumulate`` equal parts, one after another, the memory is that of one part. The
    mean of the parts' means is the mean, and the random numbers of an example do not depend on
    its part.
    """
    images, labels, n = batch["image"], batch["label"], state.accumulate
    if n == 1:
        return _gradient(state, images, labels, first)
    gradient = functools.partial(_gradient, state)

    size = len(labels) // n
    parts = (
        images.reshape(n, size, *images.shape[1:]),
        labels.reshape(n, size),
        first + size * jnp.arange(n),
    )
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradient, *(p[0] for p in parts)))
    total, _ = jax.lax.scan(
        lambda sums, part: (jax.tree.map(jnp.add, sums, gradient(*part)), None), zeros, parts
    )
    mean: _LossAndGradient = jax.tree.map(lambda x: x / n, total)
    return mean


def _loss(
    params: Any,
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    first: jax.typing.ArrayLike,
) -> tuple[jax.Array, jax.Array]:
    """Return mean loss and error of a part of the batch, as a function of the parameters."""
    x, call_kwargs, rngs = inputs(state, images, first)
    scores: Any = state.model.apply({"params": params}, x, rngs=rngs, **call_kwargs)
    return mean_loss(scores, labels), jnp.mean(scores.argmax(axis=-1) != labels)


def _gradient(state: TrainState, *part: Any) -> _LossAndGradient:
    """Return `_loss` and its gradient."""
    return jax.value_and_grad(_loss, has_aux=True)(state.params, state, *part)


def _rms(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x)))


def _slope_means(params: Any) -> dict[str, jax.Array]:
    return {
        layer: jnp.mean(leaves["negative_slope"])
        for layer, leaves in params.items()
        if "negative_slope" in leaves
    }
