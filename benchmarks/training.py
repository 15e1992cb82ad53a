"""A training step to be measured: the state, a batch and the program, without an input pipeline."""

import dataclasses
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prelu_jax import arch, models
from prelu_jax.data.augment import PixelStatistics
from prelu_jax.training import optimizer, state, step
from prelu_jax.training.parallel import Parallel
from prelu_jax.training.state import TrainState

RATE, MOMENTUM, WEIGHT_DECAY = 1e-5, 0.9, 5e-4  # a rate at which nothing diverges in a benchmark
MEAN = 127.0


@dataclasses.dataclass(frozen=True)
class Case:
    """A network and what it is trained on.

    Attributes:
        net: its layers.
        batch_size: images.
        rectifier: see `models.build`.
        dtype: of the computation.
        num_classes: of the last layer.
    """

    net: arch.Arch
    batch_size: int
    rectifier: str = "prelu"
    dtype: str = "float32"
    num_classes: int = 10

    @property
    def side(self) -> int:
        """Of the images, pixels."""
        return self.net.image_size

    @property
    def scale(self) -> float:
        """What pixels are multiplied with once their mean is subtracted."""
        return 1.0 if self.side > 32 else 1 / 64

    def model(self, initializer: str = "he_normal") -> models.RectifierNet:
        """The network."""
        return models.build(
            self.net, self.num_classes, self.rectifier, initializer, dtype=self.dtype
        )

    def state(self, seed: int = 0, initializer: str = "he_normal") -> TrainState:
        """Of step 0."""
        mean = jnp.full((self.side, self.side, 3), MEAN, jnp.float32)
        pixels = PixelStatistics(mean, jnp.float32(self.scale))
        sgd = optimizer.sgd(RATE, MOMENTUM, WEIGHT_DECAY)
        initial: TrainState = state.create(self.model(initializer), sgd, pixels, seed)
        return initial

    def batch(self, seed: int = 0) -> dict[str, np.ndarray]:
        """Random images and labels, on the host."""
        rng = np.random.default_rng(seed)
        shape = (self.batch_size, self.side, self.side, 3)
        return {
            "image": rng.integers(0, 256, shape).astype(np.uint8),
            "label": rng.integers(0, self.num_classes, self.batch_size).astype(np.int32),
        }

    def compiled(self) -> tuple[jax.stages.Compiled, TrainState, Any]:
        """The step for one device, with its state, which it takes over, and its batch there."""
        now, batch = self.state(), jax.device_put(self.batch())
        return jax.jit(step.train_step, donate_argnums=0).lower(now, batch).compile(), now, batch

    def program(self) -> Callable[[], jax.Array]:
        """Takes a step; returns its loss."""
        return taking(*self.compiled())

    def program_on_every_device(self) -> Callable[[], jax.Array]:
        """The same as experiments take it: of a batch that is on the host, on all devices."""
        parallel = Parallel()
        batch = parallel.split(self.batch())
        return taking(parallel.train_step, parallel.replicate(self.state()), batch)


def in_new_process(measure: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives where nothing was computed yet, and it can choose the devices."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def taking(train_step: Callable[[Any, Any], Any], now: Any, batch: Any) -> Callable[[], jax.Array]:
    """Takes a step from where the last call left off; returns the loss before it."""

    def program() -> jax.Array:
        nonlocal now
        now, metrics = train_step(now, batch)
        loss: jax.Array = metrics["loss"]
        return loss

    return program
