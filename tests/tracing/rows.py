"""Every operation of a function, forward and backward, by the slowest and plainest means."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prelu_jax import tracing
from prelu_jax.tracing import models


class Row(NamedTuple):
    name: str
    x: np.ndarray
    y: np.ndarray
    gradient: np.ndarray
    weight: np.ndarray


def program_of(model, variables, *inputs):
    function, state = models.of(model, variables)

    def call(parameters, others, batch):
        return function.call(function.replace(others, parameters), batch, {}, None)

    names = function.others(state)
    return function, state, tracing.trace(call, function.parameters(state), state, inputs, names)


def rows(model, variables, *inputs):
    """Return the rows in the order of execution, and the outputs.

    The gradient is that of the sum of the outputs' squares: zeros are added to every y, and the
    objective is differentiated by them.
    """
    function, state, program = program_of(model, variables, *inputs)
    parameters = function.parameters(state)
    zeros = {o.number: jnp.zeros((*o.steps, *o.shape)) for o in program.operations}

    def observe(visit):
        y = visit.y + visit.given.astype(visit.y.dtype)
        return y, (visit.x, y, visit.weight)

    @jax.jit
    def run(zeros):
        outputs, records = program.run(parameters, state, inputs, observe, zeros)
        squares = [jnp.sum(jnp.square(y.astype(jnp.float32))) for y in jax.tree.leaves(outputs)]
        return sum(squares), (records, outputs)

    gradients, (records, outputs) = jax.grad(run, has_aux=True)(zeros)
    found = []
    for operation, index in program.rows():
        x, y, weight = tracing.at(records[operation.number], index)
        gradient = gradients[operation.number][index]
        steps = [step for step, own in zip(index, operation.own, strict=True) if own]
        name = operation.parameters[0] + "".join(f"[{step}]" for step in steps)
        found.append(Row(name, *map(np.asarray, (x, y, gradient, weight))))
    return found, outputs


def assert_same(found, expected, forward=1e-6, backward=1e-5):
    """Check every array of every row, relative to the largest entry of the array."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        for field in ("x", "y", "gradient", "weight"):
            got, want = getattr(a, field), getattr(b, field)
            allowed = (backward if field == "gradient" else forward) * max(
                np.abs(want).max(), 1e-30
            )
            np.testing.assert_allclose(got, want, rtol=0, atol=allowed, err_msg=f"{a.name} {field}")
