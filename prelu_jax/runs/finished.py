"""Finished runs, read from their folders: to test them, or to take parameters from them."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct, traverse_util

from prelu_jax import files, models
from prelu_jax.data.augment import PixelStatistics
from prelu_jax.runs.checkpoint import Checkpoints
from prelu_jax.runs.folder import DONE, RunFolder
from prelu_jax.training.config import TrainConfig
from prelu_jax.training.optimizer import matching
from prelu_jax.training.recipe import Recipe


class Finished(NamedTuple):
    """The end of a finished run.

    Attributes:
        config: of the run.
        params: its parameters, float32.
        pixels: statistics that normalised its images.
        data: `identity.data_facts` of its data; empty in runs of earlier versions.
    """

    config: TrainConfig
    params: Any
    pixels: PixelStatistics
    data: Mapping[str, Any] = MappingProxyType({})


class InferenceState(struct.PyTreeNode):
    """A network with its parameters: the part of a `TrainState` that `evaluation` reads."""

    params: Any
    pixels: PixelStatistics
    model: models.RectifierNet = struct.field(pytree_node=False)


def config(folder: Path, field: str = "run") -> TrainConfig:
    """Return the configuration of a finished run.

    Args:
        folder: of the run.
        field: that gave the folder, for the error.

    Raises:
        ValueError: there is no finished run, or one of another version of this package.
    """
    folder = files.local_path(folder, field)
    run = RunFolder(folder)
    status = run.status()
    if status["status"] != DONE:
        there = (folder / "status.json").exists()
        actual = f"one that is {status['status']!r}" if there else "none"
        raise ValueError(
            f"{field} is {folder}, expected the folder of a finished run, found {actual}."
        )
    return run.config(field)


def load(folder: Path, field: str = "run") -> Finished:
    """Load the last checkpoint of a finished run.

    Args:
        folder: of the run.
        field: that gave the folder, for the error.

    Raises:
        ValueError: there is no finished run, or one of another version of this package.
        OSError: its checkpoint cannot be read.
    """
    run_config = config(folder, field)
    checkpoints = Checkpoints(files.local_path(folder, field) / "checkpoints", owned=False)
    try:
        arrays = checkpoints.arrays()
        data = checkpoints.newest_notes().get("data", {})
    finally:
        checkpoints.close()
    return Finished(run_config, arrays["params"], PixelStatistics(**arrays["pixels"]), data)


def inference_state(run: Finished, model: models.RectifierNet) -> InferenceState:
    """Return a network with the run's parameters.

    Raises:
        ValueError: the parameters do not fit the network; the error names those that differ.
    """
    if misfits := _misfits(_by_path(_shapes(model)), _by_path(run.params)):
        raise ValueError(
            f"The checkpoint does not hold the parameters of {model.arch.name} with "
            f"{model.rectifier} and {model.num_classes} classes ({'; '.join(misfits)})."
        )
    return InferenceState(run.params, run.pixels, model.uninitialized())


def pretrained(recipe: Recipe) -> Finished | None:
    """Load the run that ``config.pretrained`` names and check that it fits; None if it names none.

    Args:
        recipe: of the new run; its network is traced, nothing compiles.

    Raises:
        ValueError: there is no finished run, or its inputs or parameters do not fit the new one's;
            or ``reinit`` or ``frozen`` matches no parameter's path, or everything is frozen.
        OSError: its checkpoint cannot be read.
    """
    config = recipe.config
    if not (config.pretrained or config.frozen):
        return None
    shapes = _shapes(recipe.net)
    _check_patterns(config, shapes)
    if not config.pretrained:
        return None
    source = _load_pretrained(config, recipe.net.arch.image_size)
    _check_fit(config, shapes, source)
    return source


def merge_pretrained(params: Any, source: Finished, reinit: str) -> Any:
    """Return ``params`` with the finished run's values, except where a path matches ``reinit``."""
    theirs, is_fresh = _by_path(source.params), _by_path(matching(params, reinit))
    merged = {
        path: leaf if is_fresh[path] else jnp.asarray(theirs[path])
        for path, leaf in _by_path(params).items()
    }
    return traverse_util.unflatten_dict(merged, sep="/")


def _load_pretrained(config: TrainConfig, size: int) -> Finished:
    """Load the finished run, whose inputs must be the new one's."""
    folder = files.local_path(config.pretrained, "config.pretrained")
    source = load(folder, "config.pretrained")
    theirs = source.config.pixel_rms
    if (theirs, len(source.pixels.mean)) != (config.pixel_rms, size):
        raise ValueError(
            f"config.pretrained is {folder}, whose inputs are {len(source.pixels.mean)} pixels "
            f"wide with pixel_rms {theirs}; expected {size} pixels and pixel_rms "
            f"{config.pixel_rms}."
        )
    return source


def _check_patterns(config: TrainConfig, shapes: Any) -> None:
    for field in ("reinit", "frozen"):
        pattern = getattr(config, field)
        if pattern and not any(jax.tree.leaves(matching(shapes, pattern))):
            raise ValueError(
                f"config.{field} is {pattern!r}, expected to match a parameter's path: "
                f"{', '.join(_by_path(shapes))}."
            )
    if all(jax.tree.leaves(matching(shapes, config.frozen))):
        raise ValueError(f"config.frozen is {config.frozen!r}: that leaves nothing to train.")


def _check_fit(config: TrainConfig, shapes: Any, source: Finished) -> None:
    is_fresh = _by_path(matching(shapes, config.reinit))
    ours = {path: leaf for path, leaf in _by_path(shapes).items() if not is_fresh[path]}
    theirs = {path: leaf for path, leaf in _by_path(source.params).items() if path in ours}
    if misfits := _misfits(ours, theirs):
        raise ValueError(
            f"The parameters of config.pretrained, {config.pretrained}, do not fit "
            f"({'; '.join(misfits)}). Name those to be drawn in config.reinit, a regex."
        )


def _shapes(net: models.RectifierNet) -> Any:
    """Return the shape of every parameter; the network is traced, nothing compiles."""
    size = net.arch.image_size
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(net.init, jax.random.key(0), image)["params"]


def _misfits(expected: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Return a text for every parameter that is missing or has another shape."""
    ours, theirs = ({path: np.shape(x) for path, x in tree.items()} for tree in (expected, given))
    return [
        f"{path}: {theirs.get(path, 'nothing')} there, {ours.get(path, 'nothing')} asked"
        for path in sorted({*ours, *theirs})
        if theirs.get(path) != ours.get(path)
    ]


def _by_path(tree: Any) -> dict[str, Any]:
    """Return the leaves of nested dicts by path, as 'conv2_1/kernel'."""
    leaves: dict[str, Any] = traverse_util.flatten_dict(tree, sep="/")
    return leaves
