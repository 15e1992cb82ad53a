"""What the methods share while a model is calibrated: variables, batch and how to compute."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from prelu_jax.datadep.plan import Plan

Function = Callable[[Any, Any], Any]  # of what every device has, and of its part of the batch


@dataclasses.dataclass(frozen=True)
class Session:
    """One model's calibration.

    Attributes:
        plan: its layers.
        variables: a Linen model's variables, an NNX model's state.
        batch: what it is calibrated on.
        part: what one device has of it, or its shapes.
        key: draws what is random.
        rngs: keys of the model's random streams.
        compiled: compiles a function; `compiler` makes one that does not do it twice.
    """

    plan: Plan
    variables: Any
    batch: Any
    part: Any
    key: jax.Array
    rngs: Mapping[str, jax.Array] | None
    compiled: Callable[[Function], Function]

    @property
    def parameters(self) -> dict[str, jax.Array]:
        """Every parameter by its path."""
        return self.plan.probe.view.parameters(self.variables)

    def replace(self, parameters: Mapping[str, jax.Array]) -> "Session":
        """The session with some of the parameters exchanged, placed where those before were."""
        before = self.parameters
        placed = {
            name: jax.device_put(value, before[name].sharding)
            if isinstance(before[name], jax.Array)
            else value
            for name, value in parameters.items()
        }
        variables = self.plan.probe.view.replace(self.variables, placed)
        return dataclasses.replace(self, variables=variables)

    def compute(self, function: Function, **more: Any) -> Any:
        """The function of 'variables', 'key', 'rngs' and more, and of the batch."""
        replicated = {"variables": self.variables, "key": self.key, "rngs": self.rngs, **more}
        return self.compiled(function)(replicated, self.batch)


def compiler(compiled: Callable[[Function], Function] | None) -> Callable[[Function], Function]:
    """``compiled`` with a memory for functions that are equal; by default `jax.jit`.

    By default the memory is the process's: to calibrate an equal model again compiles nothing.
    """
    made: list[tuple[Function, Function]] = []

    def remembered(function: Function) -> Function:
        hashable = _is_hashable(function)
        if compiled is None and hashable:
            return functools.partial(_call, function)
        for known, program in made:
            if known == function:
                return program
        # What compiles may have a memory of its own, keyed by the function.
        keyed = function if hashable else lambda replicated, batch: function(replicated, batch)
        program = (compiled or jax.jit)(keyed)
        made.append((function, program))
        return program

    return remembered


def _is_hashable(function: Function) -> bool:
    try:
        hash(function)
    except TypeError:  # a field of the model, or a keyword, that cannot key a cache
        return False
    return True


@functools.partial(jax.jit, static_argnums=0)
def _call(function: Function, replicated: Any, batch: Any) -> Any:
    return function(replicated, batch)
