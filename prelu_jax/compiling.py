"""Compilation of programs that run once or a few times."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

# On a CPU, LLVM's optimisations take half of a measurement's time, and more of a calibration's.
# Most of the work is in library calls (products, convolutions), so without them a program runs only
# 1.5 times as long.
_ON_CPU = {"xla_backend_optimization_level": 0}


def for_few_calls(
    function: Callable[..., Any], static_argnums: int | Sequence[int] | None = None
) -> Any:
    """Return `jax.jit` of a function; on a CPU without optimisations that take more than they save.

    The default backend decides.
    """
    options = _ON_CPU if jax.default_backend() == "cpu" else None
    return jax.jit(function, static_argnums=static_argnums, compiler_options=options)
