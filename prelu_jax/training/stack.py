"""Runs side by side in one program: every array of their states with an axis of the runs before.

A small network leaves an accelerator idle; sixteen of them at once do not. Each run computes what
it computes alone, to the rounding of float32: its random streams are named by its own seed.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from prelu_jax import evaluation
from prelu_jax.training import state as state_lib
from prelu_jax.training import step
from prelu_jax.training.state import TrainState


class Stack(struct.PyTreeNode):
    """Runs between two steps; it stands where a `TrainState` does.

    Attributes:
        states: theirs as one, of the same step and the same static parts; arrays ``[runs, ...]``.
        reads: which of the batches that are read for a step is each run's, int32 ``[runs]``.
    """

    states: TrainState
    reads: jax.Array


def together(states: Sequence[TrainState], reads: Sequence[int]) -> TrainState | Stack:
    """Several runs as a stack; one as it is."""
    if len(states) == 1:
        return states[0]
    return Stack(jax.tree.map(lambda *arrays: jnp.stack(arrays), *states), jnp.array(reads))


def apart(runs: TrainState | Stack) -> list[TrainState]:
    """The states of the runs; of a stack on the host."""
    if isinstance(runs, TrainState):
        return [runs]
    return split(jax.device_get(runs.states), len(runs.reads))


def split(tree: Any, runs: int) -> list[Any]:
    """What a step gives, on the host, as a tree for each run; of one alone, as it is."""
    if runs == 1:
        return [tree]
    return [jax.tree.map(lambda array, i=i: array[i, ...], tree) for i in range(runs)]


def train_step(
    runs: Stack, batches: dict[str, jax.Array], *, axis_name: str | None = None
) -> tuple[Stack, step.Metrics]:
    """`step.train_step` of every run.

    Args:
        runs: before the step.
        batches: this device's part of each: ``image`` uint8 ``[batches, b, h, w, 3]``, ``label``
            int32 ``[batches, b]``.
        axis_name: see `step.train_step`.

    Returns:
        The runs after it, and their metrics ``[runs]``.
    """

    def of_run(state: TrainState, read: jax.Array) -> tuple[TrainState, step.Metrics]:
        batch = {name: array[read] for name, array in batches.items()}
        return step.train_step(state, batch, axis_name=axis_name)

    states, metrics = jax.vmap(of_run)(runs.states, runs.reads)
    return runs.replace(states=states), metrics


def eval_step(
    runs: Stack, batch: dict[str, jax.Array], *, axis_name: str | None = None
) -> evaluation.Sums:
    """`evaluation.eval_step` of every run on one batch; the sums are ``[runs]``."""
    return jax.vmap(lambda state: evaluation.eval_step(state, batch, axis_name=axis_name))(
        runs.states
    )


def observe_errors(runs: TrainState | Stack, errors: Sequence[float]) -> TrainState | Stack:
    """`state.observe_error` of every run."""
    if isinstance(runs, TrainState):
        return state_lib.observe_error(runs, *errors)
    states = jax.vmap(state_lib.observe_error)(runs.states, np.array(errors, np.float32))
    return runs.replace(states=states)
