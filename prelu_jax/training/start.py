"""The state that a run starts from, drawn or taken over, and what is said of it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from prelu_jax import arch, initializers, models
from prelu_jax.data.augment import PixelStatistics
from prelu_jax.training import optimizer as optimizer_lib
from prelu_jax.training import pretrained
from prelu_jax.training import state as state_lib
from prelu_jax.training.config import TrainConfig, drop_steps
from prelu_jax.training.finished import Finished


def model(config: TrainConfig, num_classes: int) -> models.RectifierNet:
    """The network of a run."""
    net = arch.with_padding(arch.get(config.arch), config.padding)
    return models.build(
        arch.with_width(net, config.width),
        num_classes,
        config.rectifier,
        config.initializer,
        config.mode,
        config.dtype,
    )


def state(
    config: TrainConfig,
    net: models.RectifierNet,
    source: Finished | None,
    pixels: PixelStatistics,
    steps_per_epoch: float,
) -> state_lib.TrainState:
    """The state of step 0, before it is calibrated.

    Args:
        config: of the run.
        net: its network (`model`).
        source: the finished run that it takes parameters from, if any (`pretrained.find`).
        pixels: what its inputs are normalised with.
        steps_per_epoch: by which the epochs of the configuration are steps.
    """
    optimizer = optimizer_lib.sgd(
        config.learning_rate,
        config.momentum,
        config.weight_decay,
        config.drop_factor,
        config.plateau_patience,
        config.min_learning_rate,
        config.frozen,
        drop_steps(config, steps_per_epoch),
    )
    create = _compiled_in_a_hurry(jax.default_backend())
    fresh = create(
        net, optimizer, pixels, config.seed, config.flip, config.colour, config.accumulate
    )
    if source:
        fresh = fresh.replace(params=pretrained.take_over(fresh.params, source, config.fresh))
    return fresh.replace(model=net.uninitialized())


@functools.cache
def _compiled_in_a_hurry(backend: str) -> Callable[..., state_lib.TrainState]:
    """`state.create` for a program that runs once, which LLVM takes seconds to make fast on CPUs.

    The numbers are the same. That other backends know the option is not tried.
    """
    return jax.jit(
        state_lib.create,
        static_argnames=("model", "optimizer", "flip", "colour", "accumulate"),
        compiler_options={"xla_backend_optimization_level": 1} if backend == "cpu" else None,
    )


def init_report(config: TrainConfig, net: models.RectifierNet, params: Any) -> list[dict[str, Any]]:
    """A record of every parameter; see `run_folder`."""
    decays, drawn, frozen = (
        traverse_util.flatten_dict(mask, sep="/")
        for mask in (
            optimizer_lib.decays(params),
            optimizer_lib.matching(params, config.fresh),
            optimizer_lib.matching(params, config.frozen),
        )
    )
    size = net.arch.image_size
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    return [
        {
            **dataclasses.asdict(row),
            "pretrained": bool(config.pretrained) and not drawn[row.parameter],
            "frozen": frozen[row.parameter],
            "decays": decays[row.parameter] and not frozen[row.parameter],
        }
        for row in initializers.table(net, {"params": params}, image)
    ]
