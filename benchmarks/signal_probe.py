"""What a measurement of the signal costs, beside a pass and a training step of the same model."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import Ratio, Result, memory, milliseconds, samples
from prelu_jax import arch, models, signal
from prelu_jax.data.augment import PixelStatistics
from prelu_jax.training import optimizer, signal_log, state, step

NETS = ("small_30_reduced", "model_b_reduced")


def run(nets: tuple[str, ...] = NETS, batch_size: int = 64, repeats: int = 20) -> Result:
    """Time over a forward and backward pass, memory over a training step."""
    return Result.joined(_of_net(arch.get(net), batch_size, repeats) for net in nets)


def _of_net(net: arch.Arch, batch_size: int, repeats: int) -> Result:
    model = models.build(net, 10, "prelu")
    side = net.image_size
    pixels = PixelStatistics(jnp.full((side, side, 3), 127.0), jnp.float32(1 / 64))
    fresh = state.create(model, optimizer.sgd(0.01), pixels, 0)
    rng = np.random.default_rng(0)
    batch: dict[str, Any] = {
        "image": rng.integers(0, 256, (batch_size, side, side, 3)).astype(np.uint8),
        "label": rng.integers(0, 10, batch_size).astype(np.int32),
    }
    variables = {"params": fresh.params}
    images = jnp.asarray(rng.standard_normal((batch_size, side, side, 3), np.float32))

    def loss(scores: Any) -> jax.Array:
        return step.mean_loss(scores, batch["label"])

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
    taken = {row.what: row.median for row in rows}
    return Result(
        rows,
        [
            Ratio("time: probe / forward and backward", where, taken["probe"] / taken["pass"], 2.0),
            Ratio("memory: probe / training step", where, memory(a_probe) / memory(a_step), 1.2),
            Ratio(
                "time: steps with signal_every=100 / without",
                where,
                1 + taken["log"] / taken["step"] / 100,
                1.02,
            ),
        ],
    )
