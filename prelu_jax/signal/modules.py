"""The modules of a Flax model: their kinds, and inputs that a layer would misread."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from flax import nnx

from prelu_jax.signal import batches, checks
from prelu_jax.signal.sites import Visit
from prelu_jax.signal.taps import View, view


def check(
    model: Any,
    state: Any,
    batch: Any,
    call_kwargs: Any,
    rngs: Mapping[str, Any] | None,
    examples: int,
    axis_name: str | None,
) -> set[str]:
    """Return the names of the classes of a Flax model's modules; of another model none.

    Raises:
        TypeError, ValueError: a layer is given integers, no array, or an array without an axis of
            examples.
    """
    if not isinstance(model, nn.Module | nnx.Module):
        return set()
    seen = view(model)

    def observe(visit: Visit) -> jax.Array:
        checks.check_batch_axis(visit.site, visit.x, batch, examples)
        return visit.y

    def run(state: Any, batch: Any, rngs: Any) -> None:
        seen.run(state, *batches.arguments(batch, call_kwargs), rngs, observe)

    checks.traced(run, axis_name, state, batch, rngs)
    return kinds(seen, state, batch, call_kwargs, rngs, axis_name)


def kinds(
    seen: View, state: Any, batch: Any, call_kwargs: Any, rngs: Any, axis_name: str | None
) -> set[str]:
    """Return the names of the classes of all modules that a Flax model holds or calls."""
    names: set[str] = set()

    def collect(state: Any, batch: Any, rngs: Any) -> None:
        names.update(seen.kinds(state, *batches.arguments(batch, call_kwargs), rngs))

    checks.traced(collect, axis_name, state, batch, rngs)
    return names
