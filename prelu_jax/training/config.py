"""The configuration of a run, and the ranges of its numbers."""

import dataclasses
from typing import Any

import numpy as np

from prelu_jax.data import MAX_PIXELS

DTYPES = ("float32", "bfloat16")
ON_BAD_IMAGE = ("fail", "skip")
_LARGEST = float(np.finfo(np.float32).max)
_WIDEST = 1000.0
_LARGEST_SIDE = 2**15 - 1  # pixels that OpenCV resizes to


@dataclasses.dataclass
class TrainConfig:
    """Configuration of one run: the recipe of He et al. 2015, §3, where it gives a number."""

    dataset: str = "digits"  # or the name of a prepared TFDS dataset
    data_dir: str = ""  # folder of TFDS; empty for its default
    train_split: str = "train"
    test_split: str = "test"
    test_examples: int = 0  # during training, test on this many random examples; 0 for all
    classes: str = ""  # of both splits, '0-4' or '0,2,7', renumbered from 0; empty for all
    examples_per_class: int = 0  # train on this many of each class, chosen by the seed; 0 for all
    min_side: int = 32  # training images are resized to a shorter side drawn from
    max_side: int = 32  # [min_side, max_side], then cropped to the size that the network takes
    on_bad_image: str = "fail"  # for a record that does not decode; 'skip' leaves it out
    max_pixels: int = MAX_PIXELS  # an image with more of them is treated like such a record
    flip: bool = True  # mirror half of the training images
    pca_color_std: float = 0.0  # of Krizhevsky's colour altering, 0.1 in the paper; 0 for none
    pixel_rms: float = 0.0  # scale pixels to this after subtracting the mean; 0: leave in 0..255

    arch: str = "small_14"
    width: float = 1.0  # factor on the width of every layer but the last
    padding: str = "alternating"
    rectifier: str = "relu"
    initializer: str = "he_normal"  # of the convolutions
    mode: str = "fan_out"  # Eq. 14
    datadep: str = "none"  # calibration methods, in order, on the first batch: 'pca,between_layer'
    datadep_only: str = ""  # regex: the kernels that they calibrate; between_layer takes all
    dtype: str = "float32"  # of the computation; parameters are float32
    pretrained: str = ""  # folder of a finished run to take parameters and mean image from
    reinit: str = ""  # regex: parameters that are drawn nevertheless, e.g. 'fc'
    frozen: str = ""  # regex: parameters that are not trained, e.g. 'conv'

    batch_size: int = 128  # over all devices
    # Parts that a device takes one after another, to need less memory. Measurements of the signal
    # and calibration on the first batch take it whole.
    accumulate: int = 1
    num_steps: int = 1000
    stop_error: float = 0.0  # the run ends early at the first test error below this; 0: never
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4  # kernels only
    drop_factor: float = 0.1  # factor on the learning rate when it drops
    plateau_patience: int = 10  # evaluations without a lower error that make a plateau
    min_learning_rate: float = 1e-4  # plateaus drop the rate no further
    drop_epochs: str = ""  # '30,60': drop the rate after these epochs and not on plateaus

    log_every: int = 10  # steps
    eval_every: int = 100  # steps between tests; the plateau counts them
    checkpoint_every: int = 100  # steps
    keep_last: int = 2  # newest checkpoints; an older one replaces a damaged one
    keep_best: int = 1  # checkpoints of the lowest test error, also kept
    signal_every: int = 0  # steps between measurements of the signal, layer by layer; 0 for none
    seed: int = 0


# Former names of fields, in flags and in folders of runs -> the present ones.
RENAMED = {"fresh": "reinit", "colour": "pca_color_std"}

_AT_LEAST_1 = (
    *("batch_size", "num_steps", "log_every", "eval_every", "checkpoint_every", "accumulate"),
    *("plateau_patience", "keep_last", "max_pixels"),
)
_AT_LEAST_0 = (
    *("test_examples", "examples_per_class", "pca_color_std", "pixel_rms", "weight_decay"),
    *("signal_every", "keep_best"),
)


def check_ranges(config: TrainConfig) -> None:
    """Raise a ValueError that names the first field whose number is out of range."""
    for field in _AT_LEAST_1:
        require(config, field, getattr(config, field) >= 1, "at least 1")
    for field in _AT_LEAST_0:
        require(config, field, getattr(config, field) >= 0, "at least 0")
    require(config, "seed", 0 <= config.seed < 2**31, "in [0, 2³¹)")
    require(config, "width", 0 < config.width <= _WIDEST, f"above 0, at most {_WIDEST:g}")
    require(config, "learning_rate", config.learning_rate > 0, "above 0")
    require(config, "momentum", 0 <= config.momentum < 1, "in [0, 1)")
    require(config, "stop_error", 0 <= config.stop_error <= 1, "in [0, 1]")
    require(config, "drop_factor", 0 < config.drop_factor < 1, "in (0, 1)")
    for field in ("min_side", "max_side"):
        largest = f"at most {_LARGEST_SIDE} pixels"
        require(config, field, getattr(config, field) <= _LARGEST_SIDE, largest)
    require(config, "max_side", config.max_side >= config.min_side, "at least min_side")
    check_values(config)
    for field in ("eval_every", "checkpoint_every"):
        # Then a resumed run logs the same intervals as one that was never interrupted.
        is_multiple = getattr(config, field) % config.log_every == 0
        require(config, field, is_multiple, f"a multiple of config.log_every, {config.log_every}")


def check_values(config: Any) -> None:
    """Raise a ValueError that names the first field of a dataclass whose value is impossible.

    No field may be negative, infinite, not a number, or larger than devices compute with. Only a
    tuple that is empty by default may be empty.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == () != field.default:
            require(config, field.name, False, "at least one")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int):
                require(config, field.name, 0 <= number < 2**31, "in [0, 2³¹)")
            elif isinstance(number, float):
                is_finite = 0 <= number <= _LARGEST  # False for nan
                require(config, field.name, is_finite, "a finite number, at least 0")


def require(config: Any, field: str, holds: bool, expected: str) -> None:
    """Raise a ValueError that names a field, its value and the expectation, unless it holds."""
    if not holds:
        raise ValueError(f"config.{field} is {getattr(config, field)}, expected {expected}.")
