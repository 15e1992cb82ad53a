"""A training step to measure: state, batch and program, without an input pipeline."""

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
    """A network and its training batch.

    Attributes:
        net: the network.
        batch_size: images per batch.
        rectifier: see `models.build`.
        dtype: type of the computation.
        num_classes: outputs of the last layer.
    """

    net: arch.Arch
    batch_size: int
    rectifier: str = "prelu"
    dtype: str = "float32"
    num_classes: int = 10

    @property
    def side(self) -> int:
        """Side of the images, pixels."""
        return self.net.image_size

    @property
    def scale(self) -> float:
        """Factor of the pixels after their mean is subtracted."""
        return 1.0 if self.side > 32 else 1 / 64

    def model(self, initializer: str = "he_normal") -> models.RectifierNet:
        """Return the network."""
        return models.build(
            self.net, self.num_classes, self.rectifier, initializer, dtype=self.dtype
        )

    def state(self, seed: int = 0, initializer: str = "he_normal") -> TrainState:
        """Return the state of step 0."""
        mean = jnp.full((self.side, self.side, 3), MEAN, jnp.float32)
        pixels = PixelStatistics(mean, jnp.float32(self.scale))
        sgd = optimizer.sgd(RATE, MOMENTUM, WEIGHT_DECAY)
        created: TrainState = state.create(self.model(initializer), sgd, pixels, seed)
        return created

    def batch(self, seed: int = 0) -> dict[str, np.ndarray]:
        """Return random images and labels, on the host."""
        rng = np.random.default_rng(seed)
        shape = (self.batch_size, self.side, self.side, 3)
        return {
            "image": rng.integers(0, 256, shape).astype(np.uint8),
            "label": rng.integers(0, self.num_classes, self.batch_size).astype(np.int32),
        }

    def compiled(self) -> tuple[jax.stages.Compiled, TrainState, Any]:
        """Return the compiled step for one device, with the state that it donates and a batch."""
        now, batch = self.state(), jax.device_put(self.batch())
        return jax.jit(step.train_step, donate_argnums=0).lower(now, batch).compile(), now, batch

    def program(self) -> Callable[[], jax.Array]:
        """Return a function that takes a step and returns its loss."""
        return taking(*self.compiled())

    def program_on_every_device(self) -> Callable[[], jax.Array]:
        """Return `program` for all devices, with a batch on the host, as experiments."""
        parallel = Parallel()
        batch = parallel.split(self.batch())
        return taking(parallel.train_step, parallel.replicate(self.state()), batch)


def in_new_process(measure: Callable[..., Any], *arguments: Any) -> Any:
    """Return a function's result from a new process, which can choose its devices."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def taking(train_step: Callable[[Any, Any], Any], now: Any, batch: Any) -> Callable[[], jax.Array]:
    """Return a function that takes the next step at each call and returns the loss before it."""

    def program() -> jax.Array:
        nonlocal now
        now, metrics = train_step(now, batch)
        loss: jax.Array = metrics["loss"]
        return loss

    return program
