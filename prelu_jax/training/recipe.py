"""The recipe of a run: its configuration with every name looked up.

`resolve` is the only reader of names. It refuses a configuration that is impossible, before
anything compiles; training takes the objects.
"""

import dataclasses
import itertools
import math
import re
from pathlib import Path

from prelu_jax import arch, datadep, initializers, models, names
from prelu_jax.data import moments, pipeline, sources
from prelu_jax.datadep import Method
from prelu_jax.training import optimizer as optimizer_lib
from prelu_jax.training.config import DTYPES, ON_BAD_IMAGE, TrainConfig, check_ranges, require
from prelu_jax.training.optimizer import Optimizer

_SMALL = 100_000  # images that a run measures at its start; for more there is a command


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """All that training needs, as objects.

    Attributes:
        config: for the numbers: steps, intervals, sizes, the seed.
        net: the network.
        optimizer: SGD with its schedule.
        train, test: the splits.
        crop: size and scale of training images.
        calibration: methods that calibrate the parameters on the first batch, in order.
        moments: file of the mean image and the colours; None if the run measures them.
    """

    config: TrainConfig
    net: models.RectifierNet
    optimizer: Optimizer
    train: sources.Split
    test: sources.Split
    crop: pipeline.Crop
    calibration: tuple[Method, ...]
    moments: Path | None

    @property
    def steps_per_epoch(self) -> float:
        """The number of steps in which every training example is seen once."""
        return len(self.train) / self.config.batch_size


def resolve(config: TrainConfig) -> Recipe:
    """Look up every name of a configuration.

    Raises:
        ValueError: a field is impossible, or the dataset is missing; the error names the field,
            the expectation, and the nearest valid name.
    """
    for field, valid in (
        ("arch", arch.REGISTRY),
        ("padding", arch.PADDINGS),
        ("rectifier", models.RECTIFIERS),
        ("initializer", initializers.REGISTRY),
        ("mode", initializers.MODES),
        ("dtype", DTYPES),
        ("on_bad_image", ON_BAD_IMAGE),
    ):
        names.check(field, getattr(config, field), valid)
    calibration = tuple(datadep.resolve(config.datadep))
    check_ranges(config)
    epochs = _drop_epochs(config)
    _check_patterns(config)
    size = arch.get(config.arch).image_size
    require(config, "min_side", config.min_side >= size, f"at least the {size} pixels of the arch")
    train, test = splits(config)
    return Recipe(
        config=config,
        net=network(config, len(train.class_names)),
        optimizer=_optimizer(config, epochs, len(train) / config.batch_size),
        train=train,
        test=test,
        crop=pipeline.Crop(size, config.min_side, config.max_side),
        calibration=calibration,
        moments=_moments(config, size, len(train)),
    )


def splits(config: TrainConfig) -> tuple[sources.Split, sources.Split]:
    """Load the training and the test split, with the classes that the configuration chooses."""
    train, test = (
        sources.load(config.dataset, split, config.data_dir)
        for split in (config.train_split, config.test_split)
    )
    train = sources.subset(train, config.classes, config.examples_per_class, config.seed)
    if len(train.class_names) < 2:
        raise ValueError(
            f"{config.dataset} with config.classes {config.classes or 'all'} has one class, "
            f"{train.class_names[0]}: expected two or more to tell apart."
        )
    return train, sources.subset(test, config.classes)


def network(config: TrainConfig, num_classes: int) -> models.RectifierNet:
    """Build the network of a run."""
    layers = arch.with_width(
        arch.with_padding(arch.get(config.arch), config.padding), config.width
    )  # fmt: skip
    return models.build(
        layers, num_classes, config.rectifier, config.initializer, config.mode, config.dtype
    )


def _optimizer(
    config: TrainConfig, drop_epochs: tuple[float, ...], steps_per_epoch: float
) -> Optimizer:
    """Build the optimiser, with epochs as steps."""
    drop_steps = tuple(round(epoch * steps_per_epoch) for epoch in drop_epochs)
    if any(a == b for a, b in itertools.pairwise((0, *drop_steps))):
        raise ValueError(
            f"config.drop_epochs is {config.drop_epochs}, after steps {drop_steps} with "
            f"{steps_per_epoch:g} in an epoch: expected each after a step of its own."
        )
    return optimizer_lib.sgd(
        config.learning_rate,
        config.momentum,
        config.weight_decay,
        config.drop_factor,
        config.plateau_patience,
        config.min_learning_rate,
        config.frozen,
        drop_steps,
    )


def _drop_epochs(config: TrainConfig) -> tuple[float, ...]:
    """Parse the epochs after which the learning rate drops; none if it drops on plateaus."""
    try:
        epochs = tuple(float(e) for e in config.drop_epochs.split(",") if config.drop_epochs)
        rising = all(a < b < math.inf for a, b in itertools.pairwise((0.0, *epochs)))
    except ValueError:
        rising, epochs = False, ()
    require(config, "drop_epochs", rising, "rising numbers of epochs above 0, as in '30,60'")
    return epochs


def _check_patterns(config: TrainConfig) -> None:
    """Raise a ValueError unless ``reinit`` and ``frozen`` are regular expressions that apply."""
    is_used = not config.reinit or bool(config.pretrained)
    require(config, "reinit", is_used, "to be empty without config.pretrained")
    for field in ("reinit", "frozen"):
        try:
            re.compile(getattr(config, field))
        except re.error:
            require(config, field, False, "a regular expression")


def _moments(config: TrainConfig, size: int, images: int) -> Path | None:
    """Return the file of a dataset's mean image and colours; None if the run measures them.

    Raises:
        ValueError: there is none, and too many images to measure; the error gives the command.
    """
    c = config
    if c.dataset == sources.DIGITS or c.classes or c.examples_per_class:
        return None
    file = moments.path(
        sources.version_folder(c.dataset, c.data_dir), c.train_split, size, c.min_side
    )
    if file.exists():
        return file
    if images > _SMALL and not c.pretrained:  # a pretrained run has the mean image of its source
        raise ValueError(
            f"{c.dataset}/{c.train_split} has {images} images, whose mean image and colours are "
            f"not yet measured: {file} is missing. Measure them once: "
            f"`{moments.command(c.dataset, c.train_split, size, c.min_side, c.data_dir)}`."
        )
    return None
