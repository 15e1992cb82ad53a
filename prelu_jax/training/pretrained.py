"""What a run takes over from a finished one, and what of it."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from prelu_jax import files, models
from prelu_jax.training import finished
from prelu_jax.training.config import TrainConfig
from prelu_jax.training.finished import Finished, by_path
from prelu_jax.training.optimizer import matching


def find(config: TrainConfig, net: models.RectifierNet) -> Finished | None:
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
    shapes = finished.shapes(net)
    _check_patterns(config, shapes)
    if not config.pretrained:
        return None
    source = _load(config, net.arch.image_size)
    _check_fit(config, shapes, source)
    return source


def _load(config: TrainConfig, size: int) -> Finished:
    """The last checkpoint of the finished run, whose inputs must be the new one's."""
    folder = files.local_path(config.pretrained, "config.pretrained")
    source = finished.load(folder, "config.pretrained")
    theirs = source.config.pixel_rms
    if (theirs, len(source.pixels.mean)) != (config.pixel_rms, size):
        raise ValueError(
            f"config.pretrained is {folder}, whose inputs, {len(source.pixels.mean)} pixels wide "
            f"with pixel_rms {theirs}, are taken over; expected {size} pixels and pixel_rms "
            f"{config.pixel_rms}."
        )
    return source


def _check_patterns(config: TrainConfig, shapes: Any) -> None:
    for field in ("fresh", "frozen"):
        pattern = getattr(config, field)
        if pattern and not any(jax.tree.leaves(matching(shapes, pattern))):
            raise ValueError(
                f"config.{field} is {pattern!r}, expected to be found in a parameter's path: "
                f"{', '.join(by_path(shapes))}."
            )
    if all(jax.tree.leaves(matching(shapes, config.frozen))):
        raise ValueError(f"config.frozen is {config.frozen!r}: that leaves nothing to train.")


def _check_fit(config: TrainConfig, shapes: Any, source: Finished) -> None:
    drawn = by_path(matching(shapes, config.fresh))
    ours = {path: leaf for path, leaf in by_path(shapes).items() if not drawn[path]}
    theirs = {path: leaf for path, leaf in by_path(source.params).items() if path in ours}
    misfits = finished.differing(ours, theirs)
    if misfits:
        raise ValueError(
            f"The parameters of config.pretrained, {config.pretrained}, do not fit "
            f"({'; '.join(misfits)}). Name those to be drawn in config.fresh, a regex."
        )


def take_over(params: Any, source: Finished, fresh: str) -> Any:
    """The parameters of the finished run, and of ``params`` those that ``fresh`` is found in."""
    theirs, drawn_anyway = by_path(source.params), by_path(matching(params, fresh))
    taken = {
        path: leaf if drawn_anyway[path] else jnp.asarray(theirs[path])
        for path, leaf in by_path(params).items()
    }
    return traverse_util.unflatten_dict(taken, sep="/")
