"""A finished run, read back from its folder: to test it, or to take parameters over from it."""

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
from prelu_jax.training.checkpoint import Checkpoints
from prelu_jax.training.config import TrainConfig
from prelu_jax.training.run_folder import DONE, RunFolder


class Finished(NamedTuple):
    """The end of a finished run.

    Attributes:
        config: of the run.
        params: its parameters, float32.
        pixels: what they were trained to see.
        data: `identity.data_facts` of the data; empty in runs of earlier versions.
    """

    config: TrainConfig
    params: Any
    pixels: PixelStatistics
    data: Mapping[str, Any] = MappingProxyType({})


class Network(struct.PyTreeNode):
    """What the tests of `evaluation` read of a state: a network and its parameters."""

    params: Any
    pixels: PixelStatistics
    model: models.RectifierNet = struct.field(pytree_node=False)


def config(folder: Path, what: str = "run") -> TrainConfig:
    """The configuration of a finished run.

    Args:
        folder: of the run.
        what: named it, for the error.

    Raises:
        ValueError: there is no finished run, or one of another version of this package.
    """
    folder = files.local_path(folder, what)
    run = RunFolder(folder)
    status = run.status()
    if status["status"] != DONE:
        there = (folder / "status.json").exists()
        found = f"one that is {status['status']!r}" if there else "none"
        raise ValueError(
            f"{what} is {folder}, expected the folder of a finished run, found {found}."
        )
    return run.config(what)


def load(folder: Path, what: str = "run") -> Finished:
    """The last checkpoint of a finished run.

    Args:
        folder: of the run.
        what: named it, for the error.

    Raises:
        ValueError: there is no finished run, or one of another version of this package.
        OSError: its checkpoint cannot be read.
    """
    of = config(folder, what)
    checkpoints = Checkpoints(files.local_path(folder, what) / "checkpoints", owned=False)
    try:
        arrays = checkpoints.arrays()
        data = checkpoints.newest_notes().get("data", {})
    finally:
        checkpoints.close()
    return Finished(of, arrays["params"], PixelStatistics(**arrays["pixels"]), data)


def network(run: Finished, model: models.RectifierNet) -> Network:
    """A network with the run's parameters.

    Raises:
        ValueError: they are those of another network; the error names what differs.
    """
    if misfits := differing(by_path(shapes(model)), by_path(run.params)):
        raise ValueError(
            f"The checkpoint does not hold the parameters of {model.arch.name} with "
            f"{model.rectifier} and {model.num_classes} classes ({'; '.join(misfits)})."
        )
    return Network(run.params, run.pixels, model.uninitialized())


def shapes(net: models.RectifierNet) -> Any:
    """The shape of every parameter; the network is traced, nothing compiles."""
    size = net.arch.image_size
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(net.init, jax.random.key(0), image)["params"]


def differing(asked: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Parameters, by path, found of another shape than is asked for, or not at all; for people."""
    ours, theirs = ({path: np.shape(leaf) for path, leaf in of.items()} for of in (asked, found))
    return [
        f"{path}: {theirs.get(path, 'nothing')} there, {ours.get(path, 'nothing')} asked"
        for path in sorted({*ours, *theirs})
        if theirs.get(path) != ours.get(path)
    ]


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of nested dicts, 'conv2_1/kernel' and the like."""
    return traverse_util.flatten_dict(tree, sep="/")
