"""What a run takes over from a finished one, and what of it."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from prelu_jax import models
from prelu_jax.data.augment import PixelStatistics
from prelu_jax.training.checkpoint import Checkpoints
from prelu_jax.training.config import TrainConfig
from prelu_jax.training.optimizer import matching
from prelu_jax.training.run_folder import DONE, RunFolder


class Pretrained(NamedTuple):
    """The end of a finished run.

    Attributes:
        params: its parameters, float32.
        pixels: what they were trained to see; a run that takes over the one takes the other.
    """

    params: Any
    pixels: PixelStatistics


def find(config: TrainConfig, net: models.RectifierNet) -> Pretrained | None:
    """The run that ``config.pretrained`` names, once it is sure to fit; None if it names none.

    Args:
        config: of the new run.
        net: its network; it is traced, nothing compiles.

    Raises:
        ValueError: there is no finished run, or its inputs or parameters are not the new one's; or
            ``fresh`` or ``frozen`` is found in no parameter's path, or everything is frozen.
        OSError: its checkpoint cannot be read.
    """
    if not (config.pretrained or config.frozen):
        return None
    size = net.arch.image_size
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), image)["params"]
    _check_patterns(config, shapes)
    if not config.pretrained:
        return None
    source = _load(config, size)
    _check_fit(config, shapes, source)
    return source


def _load(config: TrainConfig, size: int) -> Pretrained:
    """The last checkpoint of the finished run, whose inputs must be the new one's."""
    folder = Path(config.pretrained)
    status = RunFolder(folder).status()
    if status["status"] != DONE:
        found = f"one that is {status['status']!r}" if (folder / "status.json").exists() else "none"
        raise ValueError(
            f"config.pretrained is {folder}, expected the folder of a finished run, found {found}."
        )
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        arrays = checkpoints.arrays()
    finally:
        checkpoints.close()
    source = Pretrained(arrays["params"], PixelStatistics(**arrays["pixels"]))
    theirs = json.loads((folder / "config.json").read_text())["pixel_rms"]
    if (theirs, len(source.pixels.mean)) != (config.pixel_rms, size):
        raise ValueError(
            f"config.pretrained is {folder}, whose inputs, {len(source.pixels.mean)} pixels wide "
            f"with pixel_rms {theirs}, are taken over; expected {size} pixels and pixel_rms "
            f"{config.pixel_rms}."
        )
    if config.colour and not np.any(source.pixels.colour):
        raise ValueError(
            f"config.colour is {config.colour}, expected config.pretrained to be a run that knows "
            f"how its images' colours vary: that in {folder} is older than colour altering."
        )
    return source


def _check_patterns(config: TrainConfig, shapes: Any) -> None:
    for field in ("fresh", "frozen"):
        pattern = getattr(config, field)
        if pattern and not any(jax.tree.leaves(matching(shapes, pattern))):
            raise ValueError(
                f"config.{field} is {pattern!r}, expected to be found in a parameter's path: "
                f"{', '.join(_flat(shapes))}."
            )
    if all(jax.tree.leaves(matching(shapes, config.frozen))):
        raise ValueError(f"config.frozen is {config.frozen!r}: that leaves nothing to train.")


def _check_fit(config: TrainConfig, shapes: Any, source: Pretrained) -> None:
    ours, fresh = (_flat(tree) for tree in (shapes, matching(shapes, config.fresh)))
    theirs = {path: np.shape(leaf) for path, leaf in _flat(source.params).items()}
    misfits = [
        f"{path}: {theirs.get(path, 'nothing')} there, {leaf.shape} asked"
        for path, leaf in ours.items()
        if not fresh[path] and theirs.get(path) != leaf.shape
    ]
    if misfits:
        raise ValueError(
            f"The parameters of config.pretrained, {config.pretrained}, do not fit "
            f"({'; '.join(misfits)}). Name those to be drawn in config.fresh, a regex."
        )


def take_over(params: Any, source: Pretrained, fresh: str) -> Any:
    """The parameters of the finished run, and of ``params`` those that ``fresh`` is found in."""
    theirs, drawn_anyway = _flat(source.params), _flat(matching(params, fresh))
    taken = {
        path: leaf if drawn_anyway[path] else jnp.asarray(theirs[path])
        for path, leaf in _flat(params).items()
    }
    return traverse_util.unflatten_dict(taken, sep="/")


def _flat(tree: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree, sep="/")
