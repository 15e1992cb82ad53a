"""python -m benchmarks.first_step: a first training step, of the laptop run's net.

What `experiments` do before theirs, without what only they import. Used by `benchmarks.start_up`.
"""

import jax

from benchmarks.training import Case
from experiments.harness import machine
from prelu_jax import arch, entry


def main(net: arch.Arch = arch.SMALL_30_REDUCED, batch_size: int = 64) -> None:
    """Compiles the step, or finds it among the programs that are kept, and takes it."""
    machine.cache_compilations()
    jax.block_until_ready(Case(net, batch_size, "relu").program()())


if __name__ == "__main__":
    entry.answer_help()
    main()
