"""The state of a calibration that its methods share: variables, batch, compilation."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from prelu_jax import compiling
from prelu_jax.datadep.plan import Plan
from prelu_jax.signal import checks

Function = Callable[[Any, Any], Any]  # of the values on every device, and of its part of the batch


@dataclasses.dataclass(frozen=True)
class Session:
    """One model's calibration.

    Attributes:
        plan: its layers.
        variables: the model's state.
        batch: the data of the calibration.
        part: the part of one device, or its shapes.
        key: for random draws.
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
        """All parameters by their paths."""
        return self.plan.model.model.parameters(self.variables)

    def replace(self, parameters: Mapping[str, jax.Array]) -> "Session":
        """Return it with some of the parameters exchanged, placed where those before were."""
        before = self.parameters
        placed = {
            name: jax.device_put(value, before[name].sharding)
            if isinstance(before[name], jax.Array)
            else value
            for name, value in parameters.items()
        }
        variables = self.plan.model.model.replace(self.variables, placed)
        return dataclasses.replace(self, variables=variables)

    def compute(self, function: Function, **more: Any) -> Any:
        """Run a function of 'variables', 'key', 'rngs', 'places' and more, and of the batch."""
        shared = {"variables": self.variables, "key": self.key, "rngs": self.rngs}
        replicated = {**shared, "places": self.plan.places, **more}
        return self.compiled(function)(replicated, self.batch)


def compiler(compiled: Callable[[Function], Function] | None) -> Callable[[Function], Function]:
    """Return ``compiled`` with a cache: equal functions are compiled once.

    By default it is `compiling.for_few_calls`, whose programs stay with the process: calibrating an
    equal model again compiles nothing.
    """
    made: list[tuple[Function, Function]] = []  # of functions without a hash

    @functools.cache
    def by_hash(function: Function) -> Function:
        if compiled:
            return compiled(function)
        return functools.partial(compiling.for_few_calls(_call, static_argnums=0), function)

    def remembered(function: Function) -> Function:
        if checks.is_hashable(function):
            return by_hash(function)
        for known, program in made:
            if known == function:
                return program
        # A compiler may have a memory of its own, keyed by the function.
        compile_ = compiled or compiling.for_few_calls
        program = compile_(lambda replicated, batch: function(replicated, batch))
        made.append((function, program))
        return program

    return remembered


def _call(function: Function, replicated: Any, batch: Any) -> Any:
    return function(replicated, batch)
