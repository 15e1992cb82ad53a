"""One step of training: a pure function of the state and a batch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from prelu_jax.data import augment
from prelu_jax.training.state import TrainState, stream

Metrics = dict[str, Any]


class Inputs(NamedTuple):
    """What the model is called with in a step of training.

    Attributes:
        images: normalised and, if the run asks for it, half of them mirrored, all recoloured.
        call_kwargs: keywords of the call.
        rngs: keys of the model's random streams.
    """

    images: jax.Array
    call_kwargs: dict[str, Any]
    rngs: dict[str, jax.Array]


def inputs(state: TrainState, batch: dict[str, jax.Array], axis_name: str | None) -> Inputs:
    """The inputs of the step that the state is before; the arguments are those of `train_step`."""
    images = batch["image"]
    first_example = images.shape[0] * jax.lax.axis_index(axis_name) if axis_name else 0
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
    """What a step descends: the mean cross-entropy of scores ``[b, classes]``."""
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()


def train_step(
    state: TrainState, batch: dict[str, jax.Array], *, axis_name: str | None = None
) -> tuple[TrainState, Metrics]:
    """Takes one step of SGD on the mean cross-entropy of the batch.

    Args:
        state: the run before the step.
        batch: this device's part: ``image`` uint8 ``[b, h, w, 3]``, ``label`` int32 ``[b]``.
        axis_name: the mapped axis that other devices' parts lie along; None for one device.

    Returns:
        The state after it, the same on every device, and the metrics of the whole batch: 'loss',
        'error', and by parameter path 'grad_rms', 'param_rms' and 'slope_mean', before the step.
    """
    images, call_kwargs, rngs = inputs(state, batch, axis_name)
    labels = batch["label"]

    def loss_fn(params: Any) -> tuple[jax.Array, jax.Array]:
        scores: Any = state.model.apply({"params": params}, images, rngs=rngs, **call_kwargs)
        return mean_loss(scores, labels), jnp.mean(scores.argmax(axis=-1) != labels)

    (loss, error), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    if axis_name:
        # Devices hold equal parts, so the mean of their means is the mean over the batch.
        loss, error, grads = jax.lax.pmean((loss, error, grads), axis_name)

    updates, velocity = state.optimizer.descent.update(
        grads, state.velocity, state.params, rate_scale=state.plateau.scale
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


def _rms(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x)))


def _slope_means(params: Any) -> dict[str, jax.Array]:
    return {
        layer: jnp.mean(leaves["negative_slope"])
        for layer, leaves in params.items()
        if "negative_slope" in leaves
    }
