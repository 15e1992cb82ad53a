"""Data-dependent initialisation of a run on its own first batch."""

from typing import Any

import jax
import numpy as np

from prelu_jax import datadep
from prelu_jax.data import augment
from prelu_jax.datadep import BetweenLayer, CalibrationReport
from prelu_jax.training.parallel import AXIS, Parallel
from prelu_jax.training.recipe import Recipe
from prelu_jax.training.state import TrainState, stream


def calibrate(
    recipe: Recipe, state: TrainState, batch: dict[str, np.ndarray], parallel: Parallel
) -> tuple[TrainState, list[CalibrationReport]]:
    """Calibrate the parameters by each method of the recipe in turn, with dropout off.

    ``config.datadep_only`` chooses the kernels of every method but `between_layer`, which keeps
    the network's function and may therefore rescale pretrained layers.

    Args:
        recipe: of the run.
        state: at step 0.
        batch: of training images, over all devices.
        parallel: the devices.

    Returns:
        The calibrated state, and the report of each method.
    """
    config = recipe.config
    images = parallel.split({"image": jax.jit(augment.normalize)(batch["image"], state.pixels)})
    variables: Any = {"params": state.params}
    reports = []
    for i, method in enumerate(recipe.calibration):
        everywhere = isinstance(method, BetweenLayer) or not config.datadep_only
        variables, report = datadep.calibrate(
            state.model,
            variables,
            images["image"],
            method=method,
            only=None if everywhere else config.datadep_only,
            key=stream(config.seed, "datadep", i),
            axis_name=AXIS,
            compiled=parallel.over_batch,
        )
        reports.append(report)
    return state.replace(params=variables["params"]), reports
