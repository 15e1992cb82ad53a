"""The configuration of a run, and the ranges of its numbers."""

import dataclasses
import inspect
import re
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
    """Configuration of one run: the recipe of He et al. 2015, §3, where it gives a number.

    Attributes:
        dataset: 'digits', or the name of a prepared TFDS dataset.
        data_dir: folder of TFDS; empty for its default.
        train_split: the split to train on, in TFDS's syntax: 'train', 'train[:90%]'.
        test_split: the split to test on.
        test_examples: test on this many random examples during training; 0 for all.
        classes: labels of both splits, '0-4' or '0,2,7', renumbered from 0; empty for all.
        examples_per_class: train on this many examples of each class, chosen by the seed; 0 for
            all.
        min_side: least shorter side in pixels to which a training image is resized before the crop.
        max_side: greatest shorter side; each image draws its own from min_side to max_side.
        on_bad_image: what to do with a record that does not decode: 'fail', or 'skip' it.
        max_pixels: an image with more pixels counts as one that does not decode.
        flip: mirror half of the training images.
        pca_color_std: standard deviation of Krizhevsky's colour altering, 0.1 in the paper; 0 for
            none.
        pixel_rms: root mean square of the pixels after subtracting the mean; 0 leaves them in
            0..255.
        arch: name of the network, such as 'small_30'; an unknown one lists all.
        width: factor on the width of every layer but the last.
        padding: padding of the convolutions: 'same', 'alternating' or 'circular'.
        rectifier: 'relu', 'leaky_relu', 'prelu', 'prelu_shared', 'tailored' or 'tailored_prelu'.
        initializer: name of the initialiser of the convolutions, such as 'he_normal' or
            'orthogonal'.
        mode: the fan in the initialiser's variance: 'fan_in', 'fan_out' (Eq. 14) or 'fan_avg'.
        datadep: calibration methods on the first batch, in order: 'pca,between_layer'; 'none' for
            none.
        datadep_only: regular expression of the kernels that they calibrate; between_layer takes
            all.
        dtype: type of the computation, 'float32' or 'bfloat16'; parameters are float32.
        pretrained: folder of a finished run whose parameters and mean image are taken; empty for
            none.
        reinit: regular expression of parameters that are drawn nevertheless, e.g. 'fc'.
        frozen: regular expression of parameters that are not trained, e.g. 'conv'.
        batch_size: examples of a step, over all devices.
        accumulate: parts of a batch that a device takes one after another, to need less memory;
            measurements of the signal and calibration take it whole.
        num_steps: steps of the run.
        stop_error: the run ends early at the first test error below this; 0 for never.
        learning_rate: initial rate of stochastic gradient descent.
        momentum: momentum of stochastic gradient descent, from 0 to below 1.
        weight_decay: factor of the L2 penalty's gradient on kernels; slopes and biases do not
            decay.
        drop_factor: factor on the learning rate when it drops.
        plateau_patience: evaluations without a lower test error that make a plateau, where the rate
            drops.
        min_learning_rate: plateaus drop the rate no further.
        drop_epochs: '30,60': drop the rate after these epochs and not on plateaus.
        log_every: steps between records in metrics.jsonl.
        eval_every: steps between tests, a multiple of log_every.
        checkpoint_every: steps between checkpoints, a multiple of log_every.
        keep_last: number of newest checkpoints to keep; an older one replaces a damaged one.
        keep_best: number of checkpoints of the lowest test error to keep too.
        signal_every: steps between measurements of the signal, layer by layer; 0 for none.
        seed: decides the parameters, the batches and all other randomness.
    """

    dataset: str = "digits"
    data_dir: str = ""
    train_split: str = "train"
    test_split: str = "test"
    test_examples: int = 0
    classes: str = ""
    examples_per_class: int = 0
    min_side: int = 32
    max_side: int = 32
    on_bad_image: str = "fail"
    max_pixels: int = MAX_PIXELS
    flip: bool = True
    pca_color_std: float = 0.0
    pixel_rms: float = 0.0

    arch: str = "small_14"
    width: float = 1.0
    padding: str = "alternating"
    rectifier: str = "relu"
    initializer: str = "he_normal"
    mode: str = "fan_out"
    datadep: str = "none"
    datadep_only: str = ""
    dtype: str = "float32"
    pretrained: str = ""
    reinit: str = ""
    frozen: str = ""

    batch_size: int = 128
    accumulate: int = 1
    num_steps: int = 1000
    stop_error: float = 0.0
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    drop_factor: float = 0.1
    plateau_patience: int = 10
    min_learning_rate: float = 1e-4
    drop_epochs: str = ""

    log_every: int = 10
    eval_every: int = 100
    checkpoint_every: int = 100
    keep_last: int = 2
    keep_best: int = 1
    signal_every: int = 0
    seed: int = 0


def field_texts(cls: type) -> dict[str, str]:
    """Return the description of each field from the docstrings of a dataclass and its bases.

    A class's own text comes before those of its bases.
    """
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, attributes = inspect.cleandoc(base.__dict__.get("__doc__") or "").partition(
            "\nAttributes:\n"
        )
        for entry in re.split(r"\n(?=    \w)", f"\n{attributes}")[1:]:
            name, _, text = entry.partition(": ")
            texts[name.strip()] = " ".join(text.split())
    return texts


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
    tuple that is empty by default may be empty; the values of others have the types of the default.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == () != field.default:
            require(config, field.name, False, "at least one")
        default: Any = field.default if isinstance(field.default, tuple) else ()
        types = {type(item) for item in default}
        types |= {int} if float in types else set()
        for number in value if isinstance(value, tuple) else (value,):
            is_alike = not types or type(number) in types
            require(config, field.name, is_alike, f"values such as those of {default}")
            if isinstance(number, int):
                require(config, field.name, 0 <= number < 2**31, "in [0, 2³¹)")
            elif isinstance(number, float):
                is_finite = 0 <= number <= _LARGEST  # False for nan
                require(config, field.name, is_finite, "a finite number, at least 0")


def require(config: Any, field: str, holds: bool, expected: str) -> None:
    """Raise a ValueError that names a field, its value and the expectation, unless it holds."""
    if not holds:
        raise ValueError(f"config.{field} is {getattr(config, field)}, expected {expected}.")
