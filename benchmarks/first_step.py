"""Command that runs a first training step of the laptop run's net.

    python -m benchmarks.first_step

It does the same work as an experiment, without the imports that only experiments need.
`benchmarks.start_up` uses it.
"""

import jax

from benchmarks.training import Case
from experiments.harness import machine
from prelu_jax import arch, entry


def main(net: arch.Arch = arch.SMALL_30_REDUCED, batch_size: int = 64) -> None:
    """Compile the step, or load it from the cache, and run it."""
    machine.cache_compilations()
    jax.block_until_ready(Case(net, batch_size, "relu").program()())


if __name__ == "__main__":
    entry.answer_help()
    main()
