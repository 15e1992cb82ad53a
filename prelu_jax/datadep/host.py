"""A call of NumPy code from inside a compiled program that cannot deadlock.

`jax.pure_callback` copies the arguments to a CPU device before it calls. For more than 100 KiB
that copy waits for a thread of the CPU client, and where every thread runs the program that made
the call (`jax.pmap` over the CPU's devices, or one core) it waits for ever: jax-ml/jax#24255 and
#25861. XLA itself hands the callback plain NumPy arrays; here the function is given just those.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import mlir

_call_p = Primitive("numpy_call")


def call(
    function: Callable[..., np.ndarray], result: jax.ShapeDtypeStruct, *args: jax.Array
) -> jax.Array:
    """``function(*args)`` on NumPy arrays, as part of a jitted or pmapped program.

    It runs once on each device, and once for each entry under `jax.vmap`. It may not call JAX,
    nor write to its arguments.

    Args:
        function: pure; it gets NumPy arrays and returns one.
        result: shape and dtype of what it returns; a dtype of at most 32 bits.
        args: its arguments.

    Returns:
        its result.

    Raises:
        RuntimeError: on running, the function returned another shape or dtype, or it failed.
    """

    @jax.custom_batching.sequential_vmap
    def bound(*args: jax.Array) -> jax.Array:
        return _call_p.bind(*args, function=function, result=result)

    return bound(*args)


@_call_p.def_abstract_eval
def _abstract(*args: Any, function: Any, result: jax.ShapeDtypeStruct) -> Any:
    return jax.core.ShapedArray(result.shape, result.dtype)


@_call_p.def_impl
def _outside_of_jit(*args: jax.Array, function: Any, result: jax.ShapeDtypeStruct) -> jax.Array:
    with jax.disable_jit(False):  # else this would call itself
        return jax.jit(lambda *args: _call_p.bind(*args, function=function, result=result))(*args)


def _lower(context: Any, *args: Any, function: Any, result: jax.ShapeDtypeStruct) -> Any:
    values, _, _ = mlir.emit_python_callback(
        context,
        lambda *arrays: (function(*arrays),),
        None,
        list(args),
        context.avals_in,
        context.avals_out,
        has_side_effect=False,
        returns_token=False,
    )
    return values


mlir.register_lowering(_call_p, _lower, cacheable=False)
