"""A small run that training tests share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prelu_jax import arch, models
from prelu_jax.arch import Arch, Conv, Dense, Logits, MaxPool, SpatialPyramid
from prelu_jax.data.augment import PixelStatistics
from prelu_jax.training import optimizer, state
from prelu_jax.training.config import TrainConfig
from prelu_jax.training.parallel import Parallel

TINY = Arch(
    "tiny",
    32,
    (
        Conv("conv1", 4, 3, padding=(1, 1)),
        MaxPool("pool1", 4),
        Conv("conv2", 8, 2, padding=(0, 1)),
        SpatialPyramid("spp", (2, 1)),
        Dense("fc1", 16, stddev=0.2),
        Logits("fc2", stddev=0.1),
    ),
)


@functools.cache
def one_device() -> Parallel:
    """Return one device; no constant, since processes meet before JAX looks for devices."""
    return Parallel(jax.local_devices()[:1])


def interrupt_at(stop):
    """Return a function for ``progress`` of `trainer.train` that ends the run, as Ctrl-C does."""

    def progress(step, error):
        if step == stop:
            raise KeyboardInterrupt

    return progress


@pytest.fixture
def tiny_arch(monkeypatch):
    """The registry with a network that trains in seconds."""
    monkeypatch.setitem(arch.REGISTRY, "tiny", TINY)
    return TINY


def tiny_config(**fields) -> TrainConfig:
    small = {"arch": "tiny", "batch_size": 16, "num_steps": 12, "pixel_rms": 1.0}
    often = {"log_every": 2, "eval_every": 4, "checkpoint_every": 4}
    return TrainConfig(**{**small, **often, **fields})


def make_state(rectifier="prelu", flip=True, seed=0, **recipe):
    """A fresh state of the tiny network; equal arguments give states that compile once."""
    model = models.build(TINY, 10, rectifier)
    mean, colour = jnp.full((32, 32, 3), 127.0, jnp.float32), jnp.eye(3, dtype=jnp.float32) / 10
    pixels = PixelStatistics(mean, jnp.float32(1 / 64), colour)
    sgd = optimizer.sgd(**{"learning_rate": 0.05, **recipe})
    return state.create(model, sgd, pixels, seed, flip)


def make_batch(size=16, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (size, 32, 32, 3)).astype(np.uint8),
        "label": rng.integers(0, 10, size).astype(np.int32),
    }


def assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))
