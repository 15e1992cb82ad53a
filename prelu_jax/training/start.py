"""The state at step 0 and the report on its parameters."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from prelu_jax import initializers
from prelu_jax.data.augment import PixelStatistics
from prelu_jax.decay import decay_mask
from prelu_jax.training import optimizer as optimizer_lib
from prelu_jax.training import state as state_lib
from prelu_jax.training.recipe import Recipe


def initial_state(recipe: Recipe, pixels: PixelStatistics) -> state_lib.TrainState:
    """Return the state at step 0, before it is calibrated.

    Args:
        recipe: of the run.
        pixels: statistics that normalise the images.
    """
    create = _quickly_compiled_create(jax.default_backend())
    c = recipe.config
    state = create(
        recipe.net, recipe.optimizer, pixels, c.seed, c.flip, c.pca_color_std, c.accumulate
    )
    return state.replace(model=recipe.net.uninitialized())


@functools.cache
def _quickly_compiled_create(backend: str) -> Callable[..., state_lib.TrainState]:
    """Return `state.create`, compiled with few optimisations: it runs once.

    LLVM takes seconds to optimise it on CPUs. The numbers are the same. Other backends may not
    know the option.
    """
    return jax.jit(
        state_lib.create,
        static_argnames=("model", "optimizer", "flip", "colour", "accumulate"),
        compiler_options={"xla_backend_optimization_level": 1} if backend == "cpu" else None,
    )


def init_report(recipe: Recipe, params: Any) -> list[dict[str, Any]]:
    """Return a record of every parameter; see `runs.folder`."""
    c = recipe.config
    decays, redrawn, frozen = (
        traverse_util.flatten_dict(mask, sep="/")
        for mask in (
            decay_mask(params),
            optimizer_lib.matching(params, c.reinit),
            optimizer_lib.matching(params, c.frozen),
        )
    )
    size = recipe.crop.size
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    return [
        {
            **dataclasses.asdict(row),
            "pretrained": bool(c.pretrained) and not redrawn[row.parameter],
            "frozen": frozen[row.parameter],
            "decays": decays[row.parameter] and not frozen[row.parameter],
        }
        for row in initializers.table(recipe.net, {"params": params}, image)
    ]
