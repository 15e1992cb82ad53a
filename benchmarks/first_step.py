"""python -m benchmarks.first_step CACHE: a first training step, of the laptop run's net.

What `experiments` do before theirs, without what only they import. Used by `benchmarks.start_up`.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from prelu_jax import arch, models
from prelu_jax.data.augment import PixelStatistics
from prelu_jax.training import optimizer, state, step


def main(cache: str, net: str = "small_30_reduced", batch_size: int = 64) -> None:
    """Takes the step; programs are kept in the folder ``cache``."""
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    described = arch.get(net)
    side = described.image_size
    pixels = PixelStatistics(jnp.full((side, side, 3), 127.0), jnp.float32(1 / 64))
    model = models.build(described, 10, "relu")
    now = state.create(model, optimizer.sgd(0.002), pixels, 0)
    batch = {
        "image": np.zeros((batch_size, side, side, 3), np.uint8),
        "label": np.zeros(batch_size, np.int32),
    }
    jax.block_until_ready(jax.jit(step.train_step)(now, batch))


if __name__ == "__main__":
    main(sys.argv[1])
