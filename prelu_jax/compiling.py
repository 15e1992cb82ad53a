"""Tracing and compilation of programs that run once or a few times."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax

_Function = TypeVar("_Function", bound=Callable[..., Any])

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


def share_trace(*static: str) -> Callable[[_Function], _Function]:
    """Return a decorator of functions that are called once for every layer of a model.

    Calls with equal shapes share one trace, which halves the time to trace a measurement or a
    calibration of a deep model (docs/findings/compilation.md). XLA inlines the calls.

    Args:
        static: names of the arguments that are no arrays; they have to hash.
    """
    return functools.partial(jax.jit, static_argnames=static)  # type: ignore[return-value]
