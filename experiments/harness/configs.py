"""Configurations of experiments: fields that scales share, and checks of an experiment's fields."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from prelu_jax import files
from prelu_jax.training import config as config_lib
from prelu_jax.training.config import TrainConfig

NEVER = 1_000_000  # evaluations that no run has: as plateau_patience, the learning rate is constant

# Inputs of the reduced nets. Eq. 14 keeps the gradient; forward it leaves 2 c_1 / d_L of the second
# moment (by Eq. 9; layer 1 has no rectifier before it): 2 · 3 / 32 in both nets, which inputs of
# this root mean square, √(16/3), undo.
PIXEL_RMS = 2.309

# Fields of the scales: data, and a batch that fits it.
DIGITS: dict[str, Any] = {
    "dataset": "digits",
    "flip": False,  # a mirrored digit is another sign
    "pixel_rms": PIXEL_RMS,
    "batch_size": 64,
}
CIFAR10: dict[str, Any] = {
    "dataset": "cifar10",
    "test_examples": 3000,
    "pixel_rms": PIXEL_RMS,
    "batch_size": 64,
}
FASHION_MNIST: dict[str, Any] = {**CIFAR10, "dataset": "fashion_mnist"}
IMAGENET: dict[str, Any] = {
    "dataset": "imagenet2012",
    "test_split": "validation",
    "min_side": 256,
    "pca_color_std": 0.1,
    "batch_size": 128,
}


def every(log: int, evaluate: int, checkpoint: int) -> dict[str, Any]:
    """Return the fields of the numbers of steps between records, evaluations and checkpoints."""
    return {"log_every": log, "eval_every": evaluate, "checkpoint_every": checkpoint}


def train_config(config: TrainConfig, **fields: Any) -> TrainConfig:
    """Return the configuration of one run: an experiment's without its own fields, some changed."""
    own = {field.name: getattr(config, field.name) for field in dataclasses.fields(TrainConfig)}
    return TrainConfig(**{**own, **fields})


def checked(config: Any) -> Any:
    """Return an experiment's configuration with ``~`` expanded in its folders.

    Raises:
        ValueError: a number is out of range, or a folder is the address of a bucket.
    """
    config_lib.check_values(config)
    # The reader of datasets expands data_dir; config.json keeps it as written.
    paths = {
        field: str(files.local_path(written, f"config.{field}"))
        for field in ("data_dir", "pretrained", "runs")
        if (written := getattr(config, field, ""))
    }
    paths.pop("data_dir", None)
    return dataclasses.replace(config, **paths)


def check_unset(config: Any, fields: Sequence[str], instead: str = "") -> None:
    """Raise a ValueError if a field that an experiment sets for each run is not at its default.

    The error names the fields that the user may set ``instead``.
    """
    for field in fields:
        if getattr(config, field) != getattr(type(config), field):
            see = f" See {instead}." if instead else ""
            raise ValueError(f"config.{field} is set for each run; leave it as it is.{see}")


def check_limits(config: TrainConfig, trained: Sequence[str], stalled: Sequence[str] = ()) -> None:
    """Raise a ValueError unless limits in claims fit the error of a guess among the classes.

    Args:
        config: an experiment's.
        trained: fields of errors at which a run counts as trained: below that of a guess.
        stalled: fields of errors that a run at chance keeps above: at most a fifth below a guess's.
    """
    from prelu_jax.training import recipe  # imports JAX, which a report does without

    check_fractions(config, *trained, *stalled)
    classes = len(recipe.splits(train_config(config))[0].class_names)
    chance = 1 - 1 / classes
    for field in (*trained, *stalled):
        least = round(0.8 * chance, 3) if field in stalled else 0.0
        if not least <= getattr(config, field) < chance:
            raise ValueError(
                f"config.{field} is {getattr(config, field):g}, expected a number from {least:.3g} "
                f"to below {chance:.3g}, the error of a guess among the {classes} classes."
            )


def check_fractions(config: Any, *fields: str) -> None:
    """Raise a ValueError if an error that claims compare with is not from 0 to 1."""
    for field in fields:
        value = getattr(config, field)
        if not all(0 <= one <= 1 for one in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(
                f"config.{field} is {value}, expected fractions from 0 to 1: 0.2 is an error of "
                "20 %."
            )
