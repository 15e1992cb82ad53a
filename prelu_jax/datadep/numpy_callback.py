"""A call of NumPy code from inside a compiled program that cannot deadlock.

`jax.pure_callback` copies the arguments to a CPU device before it calls. For more than 100 KiB
that copy waits for a thread of the CPU client, and where every thread runs the program that made
the call (`jax.pmap` over the CPU's devices, or one core) it waits for ever: jax-ml/jax#24255 and
#25861. XLA itself passes plain NumPy arrays to the callback; here the function gets those.
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
    """Return ``function(*args)``, computed by NumPy inside a jitted or pmapped program.

    It runs once on each device, and once for each entry under `jax.vmap`. It may not call JAX,
    nor write to its arguments. If it fails, the program raises a RuntimeError.

    Args:
        function: pure, from NumPy arrays to one.
        result: shape and dtype of its result; a dtype of at most 32 bits.
        args: its arguments.
    """

    def bound(*args: jax.Array) -> Any:
        return _call_p.bind(*args, function=function, result=result)

    called: jax.Array = jax.custom_batching.sequential_vmap(bound)(*args)
    return called


def _abstract(*args: Any, function: Any, result: jax.ShapeDtypeStruct) -> Any:
    return jax.core.ShapedArray(result.shape, result.dtype)


def _outside_of_jit(*args: jax.Array, function: Any, result: jax.ShapeDtypeStruct) -> Any:
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


_call_p.def_abstract_eval(_abstract)
_call_p.def_impl(_outside_of_jit)
mlir.register_lowering(_call_p, _lower, cacheable=False)
