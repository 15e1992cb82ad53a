"""What one run is, as a typed record; it stops at `loop.train`."""

import dataclasses
import itertools
import math
import re
from typing import Any

import numpy as np

from prelu_jax import arch, datadep, initializers, models, names
from prelu_jax.data import MAX_PIXELS

DTYPES = ("float32", "bfloat16")
ON_BAD_IMAGE = ("fail", "skip")
_LARGEST = float(np.finfo(np.float32).max)
_WIDEST = 1000.0
_LARGEST_SIDE = 2**15 - 1  # pixels that OpenCV resizes to


@dataclasses.dataclass
class TrainConfig:
    """One run. The defaults are the recipe of He et al. 2015, §3, where it gives a number."""

    dataset: str = "digits"  # or the name of a prepared TFDS dataset
    data_dir: str = ""  # TFDS's folder; empty for its default
    train_split: str = "train"
    test_split: str = "test"
    test_examples: int = 0  # in training, test on so many random examples; 0 for all
    classes: str = ""  # of both splits, '0-4' or '0,2,7', renumbered from 0 on; empty for all
    examples_per_class: int = 0  # train on so many of each class, chosen by the seed; 0 for all
    min_side: int = 32  # training images are resized to a shorter side drawn from
    max_side: int = 32  # [min_side, max_side], then cropped to the network's size
    on_bad_image: str = "fail"  # a record that does not decode; 'skip': it is left out and counted
    max_pixels: int = MAX_PIXELS  # an image with more of them counts as such a record
    flip: bool = True  # mirror half of the training images
    colour: float = 0.0  # std of Krizhevsky's colour altering, 0.1 in the paper; 0 for none
    pixel_rms: float = 0.0  # scale pixels to this after subtracting the mean; 0: leave in 0..255

    arch: str = "small_14"
    width: float = 1.0  # of every layer but the last, in widths of the arch's
    padding: str = "alternating"
    rectifier: str = "relu"
    initializer: str = "he_normal"  # of the convolutions
    mode: str = "fan_out"  # Eq. 14
    datadep: str = "none"  # methods of `datadep`, in turn, on the first batch: 'pca,between_layer'
    datadep_only: str = ""  # regex: the kernels that they calibrate; between_layer has all
    dtype: str = "float32"  # of the computation; parameters are float32
    pretrained: str = ""  # folder of a finished run to take parameters and mean image from
    fresh: str = ""  # regex: parameters that are drawn even so, e.g. 'fc'
    frozen: str = ""  # regex: parameters that are not trained, e.g. 'conv'

    batch_size: int = 128  # over all devices
    # Parts that a device takes one after another, to need less memory. What measures the signal
    # and what calibrates on the first batch take it whole.
    accumulate: int = 1
    num_steps: int = 1000
    stop_error: float = 0.0  # a run ends before, at the first test error below this; 0: it does not
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4  # kernels only
    drop_factor: float = 0.1  # what the learning rate is multiplied with when it drops
    plateau_patience: int = 10  # evaluations without a lower error that make a plateau
    min_learning_rate: float = 1e-4  # on plateaus, the rate drops no further
    drop_epochs: str = ""  # '30,60': the rate drops after these instead, whatever the error does

    log_every: int = 10  # steps
    eval_every: int = 100  # steps; the error on the test split, and the plateau's count
    checkpoint_every: int = 100  # steps
    keep_last: int = 2  # checkpoints; where the newest is damaged, a run goes on from one before
    keep_best: int = 1  # checkpoints of the lowest test error, besides
    signal_every: int = 0  # steps between measurements of the signal, layer by layer; 0 for none
    seed: int = 0


def validate(config: TrainConfig) -> None:
    """Raises a ValueError that names the first field that cannot be, before anything compiles."""
    names.check("arch", config.arch, arch.REGISTRY)
    names.check("padding", config.padding, arch.PADDINGS)
    names.check("rectifier", config.rectifier, models.RECTIFIERS)
    names.check("initializer", config.initializer, initializers.REGISTRY)
    names.check("mode", config.mode, initializers.MODES)
    names.check("dtype", config.dtype, DTYPES)
    names.check("on_bad_image", config.on_bad_image, ON_BAD_IMAGE)
    datadep.resolve(config.datadep)
    counts = ("batch_size", "num_steps", "log_every", "eval_every", "checkpoint_every")
    for field in (*counts, "accumulate", "plateau_patience", "keep_last", "max_pixels"):
        _require(config, field, getattr(config, field) >= 1, "at least 1")
    at_least_0 = ("test_examples", "examples_per_class", "colour", "pixel_rms", "weight_decay")
    for field in (*at_least_0, "signal_every", "keep_best"):
        _require(config, field, getattr(config, field) >= 0, "at least 0")
    _require(config, "seed", 0 <= config.seed < 2**31, "in [0, 2³¹)")
    _require(config, "width", 0 < config.width <= _WIDEST, f"above 0, at most {_WIDEST:g}")
    _require(config, "learning_rate", config.learning_rate > 0, "above 0")
    _require(config, "momentum", 0 <= config.momentum < 1, "in [0, 1)")
    _require(config, "stop_error", 0 <= config.stop_error <= 1, "in [0, 1]")
    _require(config, "drop_factor", 0 < config.drop_factor < 1, "in (0, 1)")
    drop_epochs(config)
    drawn_anyway = not config.fresh or bool(config.pretrained)
    _require(config, "fresh", drawn_anyway, "to be empty without config.pretrained")
    for field in ("fresh", "frozen"):
        _require(config, field, _compiles(getattr(config, field)), "a regular expression")
    size = arch.get(config.arch).image_size
    _require(config, "min_side", config.min_side >= size, f"at least the {size} pixels of the arch")
    for field in ("min_side", "max_side"):
        largest = f"at most {_LARGEST_SIDE} pixels"
        _require(config, field, getattr(config, field) <= _LARGEST_SIDE, largest)
    _require(config, "max_side", config.max_side >= config.min_side, "at least min_side")
    check_values(config)
    for field in ("eval_every", "checkpoint_every"):
        # Then a resumed run logs the same intervals as one that was never interrupted.
        value = getattr(config, field)
        multiple = f"a multiple of config.log_every, {config.log_every}"
        _require(config, field, value % config.log_every == 0, multiple)


def check_values(config: Any) -> None:
    """Raise a ValueError that names the first field of a dataclass whose value cannot be.

    No field means anything below 0; none may be infinite, not a number, or larger than devices
    compute with. Only a tuple that is empty by default may be empty.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == () != field.default:
            _require(config, field.name, False, "at least one")
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, int):
                _require(config, field.name, 0 <= one < 2**31, "in [0, 2³¹)")
            elif isinstance(one, float):
                finite = 0 <= one <= _LARGEST  # False for nan
                _require(config, field.name, finite, "a finite number, at least 0")


def drop_epochs(config: TrainConfig) -> tuple[float, ...]:
    """The epochs after which the rate drops; none if it drops on plateaus."""
    try:
        epochs = tuple(float(e) for e in config.drop_epochs.split(",") if config.drop_epochs)
        rising = all(a < b < math.inf for a, b in itertools.pairwise((0.0, *epochs)))
    except ValueError:
        rising, epochs = False, ()
    _require(config, "drop_epochs", rising, "rising numbers of epochs above 0, as in '30,60'")
    return epochs


def drop_steps(config: TrainConfig, steps_per_epoch: float) -> tuple[int, ...]:
    """The steps after which the rate drops.

    Raises:
        ValueError: it would drop before the first step, or twice at once.
    """
    steps = tuple(round(epoch * steps_per_epoch) for epoch in drop_epochs(config))
    if any(a == b for a, b in itertools.pairwise((0, *steps))):
        raise ValueError(
            f"config.drop_epochs is {config.drop_epochs}, after steps {steps} with "
            f"{steps_per_epoch:g} in an epoch: expected each after a step of its own."
        )
    return steps


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _require(config: Any, field: str, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"config.{field} is {getattr(config, field)}, expected {expected}.")
