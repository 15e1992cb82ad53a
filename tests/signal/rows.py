"""Measurements written by hand: a healthy net of five layers, changed where a test needs it."""

import dataclasses
import itertools
from types import SimpleNamespace

from prelu_jax.signal import Coverage, LayerStatistics, Measurement, split

HEALTHY = LayerStatistics(
    path="",
    call=0,
    kind="Conv",
    input_shape=(16, 8, 8, 100),
    input_channels=100,
    shape=(16, 8, 8, 100),
    channels=100,
    window=(3, 3),
    positions=(8, 8),
    kernel_shape=(3, 3, 100, 100),
    mean=0.0,
    var=2.0,
    second_moment=2.0,
    minimum=-5.0,
    channel_spread=0.1,
    input_mean=0.5,
    input_var=0.75,
    input_second_moment=1.0,
    input_minimum=0.0,
    input_channel_spread=0.2,
    input_zero_fraction=0.0,
    input_cosine=0.4,
    gradient_second_moment=1e-3,
    gradient_channel_spread=0.2,
    kernel_rms=(2 / 900) ** 0.5,
    kernel_gradient_rms=0.1,
    change_rate=0.1 / (2 / 900) ** 0.5,
    dead_fraction=0.0,
    cosine=0.5,
    gradient_to_decay=1000.0,
    kernel_factor=2.0,
    expected_kernel_factor=2.0,
    gradient_kernel_factor=2.0,
    expected_gradient_kernel_factor=2.0,
)
NAMES = ("a", "b", "c", "d", "e")


def measurement(changes=None, unseen=(), loss=None, kinds=("Conv",)):
    """Return five healthy layers, with ``changes``, {name: {field: value}}."""
    changes = changes or {}
    assert not set(changes) - set(NAMES)
    previous = {after: name for name, after in itertools.pairwise(NAMES)}
    layers = split.linked(
        [
            dataclasses.replace(
                HEALTHY, **{"path": n, "previous": previous.get(n)} | changes.get(n, {})
            )
            for n in NAMES
        ]
    )
    coverage = Coverage(NAMES, (180,) * len(NAMES), tuple(unseen))
    return Measurement(layers, kinds, coverage, loss)


def moments(forward, backward, cosine=None):
    """A prediction."""
    return SimpleNamespace(forward=forward, backward=backward, cosine=cosine)


def each(field, values):
    """One value of a field for every layer."""
    return {name: {field: value} for name, value in zip(NAMES, values, strict=True)}
