"""Time of a signal measurement, compared with a pass and a training step of the same model."""

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.timing import Ratio, Result, memory, milliseconds, samples
from benchmarks.training import Case
from prelu_jax import arch, signal
from prelu_jax.training import signal_log, step

NETS = ("small_30_reduced", "model_b_reduced")


def run(nets: tuple[str, ...] = NETS, batch_size: int = 64, repeats: int = 20) -> Result:
    """Measure its time over a forward and backward pass, and its memory over a training step."""
    return Result.joined(_of_net(arch.get(net), batch_size, repeats) for net in nets)


def _of_net(net: arch.Arch, batch_size: int, repeats: int) -> Result:
    case = Case(net, batch_size)
    model, fresh, batch = case.model(), case.state(), case.batch()
    variables = {"params": fresh.params}
    images = jax.random.normal(jax.random.key(1), batch["image"].shape)

    def loss(scores: Any) -> jax.Array:
        return step.mean_loss(scores, jnp.asarray(batch["label"]))

    def forward_and_backward(variables: Any, images: jax.Array) -> Any:
        return jax.value_and_grad(lambda v: loss(model.apply(v, images)))(variables)

    probe = signal.prepare(model, variables, images, loss=loss)
    a_probe = jax.jit(probe.statistics).lower(variables, images).compile()
    a_pass = jax.jit(forward_and_backward).lower(variables, images).compile()
    a_step = jax.jit(step.train_step).lower(fresh, batch).compile()
    a_log = jax.jit(signal_log.statistics).lower(fresh, batch).compile()
    where = f"{net.name}, batch {batch_size}"
    rows = milliseconds(
        where,
        samples(
            {
                "probe": lambda: a_probe(variables, images),
                "pass": lambda: a_pass(variables, images),
                "step": lambda: a_step(fresh, batch),
                "log": lambda: a_log(fresh, batch),
            },
            repeats,
        ),
    )
    taken = {row.what: row.values for row in rows}
    with_log = [step + log / 100 for step, log in zip(taken["step"], taken["log"], strict=True)]
    return Result(
        rows,
        [
            Ratio.of(
                "time: probe / forward and backward", where, taken["probe"], taken["pass"], 1.3
            ),
            Ratio("memory: probe / training step", where, memory(a_probe) / memory(a_step), 0.75),
            Ratio.of(
                "time: steps with signal_every=100 / without", where, with_log, taken["step"], 1.02
            ),
        ],
    )
