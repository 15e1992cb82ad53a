"""Compilation of programs that run once or a few times."""

from collections.abc import Callable
from typing import Any

import jax

# LLVM's optimisations take most of the compilation on a CPU: half of a measurement's time, and more
# of a calibration's. Products and convolutions are in libraries, so that without them a program
# runs 1.5 times as long.
_ON_CPU = {"xla_backend_optimization_level": 0}


def for_few_calls(function: Callable[..., Any], static_argnums: int | None = None) -> Any:
    """Return `jax.jit` of a function, compiled quickly where that takes longer than to run it."""
    options = _ON_CPU if jax.default_backend() == "cpu" else None
    return jax.jit(function, static_argnums=static_argnums, compiler_options=options)
