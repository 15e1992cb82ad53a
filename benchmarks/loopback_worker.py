"""One of the processes that `benchmarks.loopback` starts; it prints a line of JSON at its end."""

import functools
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.loopback import WITH, WITHOUT, Samples, name_of
from benchmarks.timing import samples
from prelu_jax import arch, models
from prelu_jax.data.augment import PixelStatistics
from prelu_jax.training import optimizer, processes, state, step
from prelu_jax.training.parallel import AXIS, Parallel


def _sum(tree: Any, batch: Any) -> Any:
    del batch
    return jax.lax.pmean(tree, AXIS)


def _alone(now: Any, batch: Any) -> Any:
    return step.train_step(now, batch)


def measure(trees: list[tuple[int, int]], repeats: int, net: str, batch_size: int) -> Samples:
    """Seconds of sums of trees of some arrays and megabytes, and of steps with and without theirs.

    For the arguments see `benchmarks.loopback`.
    """
    parallel = Parallel()
    # The mapped axis has to be that of something; it is never read.
    nothing = parallel.split({"nothing": np.zeros(1, np.float32)})
    a_sum = parallel.over_batch(_sum)
    summed = {
        name_of(arrays, mb): parallel.replicate([jnp.zeros(mb * 10**6 // 4 // arrays)] * arrays)
        for arrays, mb in trees
    }
    found = samples(
        {name: functools.partial(a_sum, tree, nothing) for name, tree in summed.items()}, repeats
    )
    chosen = arch.get(net)
    side = chosen.image_size
    pixels = PixelStatistics(jnp.full((side, side, 3), 127.0), jnp.float32(1 / 64))
    model = models.build(chosen, 10, "prelu")
    now = parallel.replicate(state.create(model, optimizer.sgd(0.001), pixels, 0))
    rng = np.random.default_rng(jax.process_index())
    batch: dict[str, np.ndarray] = {
        "image": rng.integers(0, 256, (batch_size, side, side, 3)).astype(np.uint8),
        "label": rng.integers(0, 10, batch_size).astype(np.int32),
    }
    alone, split = parallel.over_batch(_alone), parallel.split(batch)
    found |= samples(
        {
            WITHOUT: lambda: alone(now, split),
            WITH: lambda: parallel.train_step(now, batch),
        },
        repeats,
    )
    gradients = jax.tree.leaves(now.params)
    summed_by_step = [len(gradients) + 2, sum(leaf.nbytes for leaf in gradients)]  # loss, error
    return found | {"arrays and bytes summed": [float(x) for x in summed_by_step]}


if __name__ == "__main__":
    address, count, index, asked = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", 1)
    with processes.all_or_none():
        if int(count) > 1:
            processes.join(address, int(count), int(index))
        print(json.dumps(measure(*json.loads(asked))))
