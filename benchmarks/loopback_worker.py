"""A process that `benchmarks.loopback` starts; it prints a line of JSON at its end."""

import functools
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.loopback import WITH, WITHOUT, Samples, name_of
from benchmarks.timing import samples
from benchmarks.training import Case
from prelu_jax import arch, entry
from prelu_jax.runs import processes
from prelu_jax.training import step
from prelu_jax.training.parallel import AXIS, Parallel


def _sum(tree: Any, batch: Any) -> Any:
    del batch
    return jax.lax.pmean(tree, AXIS)


def _alone(now: Any, batch: Any) -> Any:
    return step.train_step(now, batch)


def measure(trees: list[tuple[int, int]], repeats: int, net: str, batch_size: int) -> Samples:
    """Measure sums of trees of given arrays and megabytes, and steps with and without sums.

    For the arguments see `benchmarks.loopback`.
    """
    parallel = Parallel()
    # A mapped axis needs an array that has it; the array is never read.
    nothing = parallel.split({"nothing": np.zeros(1, np.float32)})
    a_sum = parallel.over_batch(_sum)
    summed = {
        name_of(arrays, mb): parallel.replicate([jnp.zeros(mb * 10**6 // 4 // arrays)] * arrays)
        for arrays, mb in trees
    }
    measured = samples(
        {name: functools.partial(a_sum, tree, nothing) for name, tree in summed.items()}, repeats
    )
    case = Case(arch.get(net), batch_size)
    now, batch = parallel.replicate(case.state()), case.batch(jax.process_index())
    alone, split = parallel.over_batch(_alone), parallel.split(batch)
    measured |= samples(
        {
            WITHOUT: lambda: alone(now, split),
            WITH: lambda: parallel.train_step(now, parallel.split(batch)),
        },
        repeats,
    )
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(now.params))
    return measured | {"bytes summed": [float(size)]}


if __name__ == "__main__":
    entry.answer_help()
    address, count, index, asked = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", 1)
    with processes.exit_all_on_failure():
        if int(count) > 1:
            processes.join(address, int(count), int(index))
        print(json.dumps(measure(*json.loads(asked))))
