"""Exact evaluation: every example of a split counts once."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prelu_jax.data import augment
from prelu_jax.models import RectifierNet

Sums = dict[str, jax.Array]


class EvaluationState(Protocol):
    """Interface of a state that can be evaluated, such as `training.state.TrainState`."""

    @property
    def model(self) -> RectifierNet:
        """The network."""

    @property
    def params(self) -> Any:
        """Its parameters, a pytree."""

    @property
    def pixels(self) -> augment.PixelStatistics:
        """The statistics for `augment.normalize`."""


def eval_step(
    state: EvaluationState, batch: dict[str, jax.Array], *, axis_name: str | None = None
) -> Sums:
    """Return sums over the batch's real examples, the same on every device.

    Args:
        state: a `training.state.TrainState`, or a `runs.finished.InferenceState`.
        batch: ``image``, ``label`` and ``mask`` (1 for an example, 0 for padding).
        axis_name: the mapped axis over which devices share the batch; None for one device.

    Returns:
        'loss' (float32), 'errors' and 'count' (int32).
    """
    x = augment.normalize(batch["image"], state.pixels)
    scores: Any = state.model.apply({"params": state.params}, x, train=False)
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, batch["label"])
    real = batch["mask"] > 0
    wrong = real & (scores.argmax(axis=-1) != batch["label"])
    sums = {
        "loss": jnp.sum(jnp.where(real, losses, 0.0)),
        "errors": jnp.sum(wrong, dtype=jnp.int32),
        "count": jnp.sum(real, dtype=jnp.int32),
    }
    return jax.lax.psum(sums, axis_name) if axis_name else sums


def evaluate(
    step: Callable[[dict[str, np.ndarray]], Sums], batches: Iterable[dict[str, np.ndarray]]
) -> dict[str, float]:
    """Return the mean loss and error over all real examples of the batches.

    Args:
        step: function from a batch to its sums, as `eval_step` returns them.
        batches: padded, masked batches (`data.pipeline.eval_batches`).

    Returns:
        'test_loss', 'test_error' (a fraction) and 'test_examples'.

    Raises:
        ValueError: the batches hold no example.
    """
    return mean(jax.device_get([step(batch) for batch in batches]))


def mean(sums: Sequence[Sums]) -> dict[str, float]:
    """Average per-batch sums into the metrics that `evaluate` returns."""
    count = sum(int(s["count"]) for s in sums)
    if not count:
        raise ValueError(
            "There is no example to evaluate: the split is empty, or no image decodes."
        )
    return {
        "test_loss": sum(float(s["loss"]) for s in sums) / count,
        "test_error": sum(int(s["errors"]) for s in sums) / count,
        "test_examples": count,
    }
