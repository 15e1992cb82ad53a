"""A command with one more network, `tiny`, which compiles in seconds.

    python -m tests.experiments.command experiments.convergence_30 --config.arch=tiny ...

The arguments are those of Python after its option -m.
"""

import runpy
import sys

from prelu_jax import arch
from tests.training.conftest import TINY


def main(module: str, *arguments: str) -> None:
    """Run a module as Python's option -m does."""
    arch.REGISTRY["tiny"] = TINY
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
