"""Measurements of the signal in a training step, layer by layer, for the log."""

import functools
import math
from typing import Any

from prelu_jax import signal
from prelu_jax.training import step
from prelu_jax.training.state import TrainState

_LOGGED = (
    *("second_moment", "gradient_second_moment", "change_rate"),
    *("dead_fraction", "cosine", "gradient_to_decay"),
)


def prepare(
    state: TrainState, batch: dict[str, Any], axis_name: str | None = None
) -> tuple[signal.Probe, step.Inputs]:
    """Return the probe of the state's next step, and the inputs of that step.

    Args:
        state, batch, axis_name: as `step.train_step`.
    """
    inputs = step.inputs(state, batch["image"], step.first_of_part(batch, axis_name))
    probe = signal.prepare(
        state.model,
        {"params": state.params},
        inputs.images,
        loss=functools.partial(step.mean_loss, labels=batch["label"]),
        weight_decay=state.optimizer.weight_decay,
        rngs=inputs.rngs,
        call_kwargs=inputs.call_kwargs,
        axis_name=axis_name,
    )
    return probe, inputs


def statistics(state: TrainState, batch: dict[str, Any], *, axis_name: str | None = None) -> Any:
    """Return the statistics that `signal.Probe.read` takes; a pure function.

    It makes a probe of its own, because labels and the place in the global batch are traced.
    """
    probe, inputs = prepare(state, batch, axis_name)
    return probe.statistics({"params": state.params}, inputs.images, rngs=inputs.rngs)


def record(measurement: signal.Measurement) -> dict[str, dict[str, float]]:
    """Return the defined and finite values as ``{'signal_NAME': {layer: value}}``."""
    values = {
        name: [(row.name, getattr(row, name)) for row in measurement.layers] for name in _LOGGED
    }
    return {
        f"signal_{name}": {
            layer: value for layer, value in by_layer if value is not None and math.isfinite(value)
        }
        for name, by_layer in values.items()
    }
