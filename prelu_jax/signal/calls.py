"""The calls of affine layers that a Flax model makes, which calibration corrects."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr

from prelu_jax.signal import batches, checks, coverage, modules
from prelu_jax.signal.batches import Examples
from prelu_jax.signal.coverage import Coverage
from prelu_jax.signal.sites import Site, Visit
from prelu_jax.signal.taps import View, view
from prelu_jax.tracing import models


@dataclasses.dataclass(frozen=True)
class FlaxModel:
    """A Flax model as calibration sees it.

    Attributes:
        view: runs the model with an observer of its layers.
        kernels: the paths of the kernels of those layers, in execution order, once for each call.
        coverage: the weights that those layers have, and the others.
        examples: the number of examples on one device, and how it was found.
        call_kwargs: the keywords of the call, in pairs.
        axis_name: the axis of devices over which the model is mapped.
        bound_axes: the axis names that the model asks for, bound at size 1.
    """

    view: View
    kernels: tuple[str, ...]
    coverage: Coverage
    examples: Examples
    call_kwargs: tuple[tuple[str, Any], ...]
    axis_name: str | None
    bound_axes: tuple[str, ...]


def see(
    model: Any,
    variables: Any,
    batch: Any,
    *,
    rngs: Mapping[str, jax.Array] | None,
    call_kwargs: Mapping[str, Any],
    batch_size: int | None,
    axis_name: str | None,
) -> FlaxModel:
    """Return a model as calibration sees it, by abstract passes; nothing is computed.

    Args:
        model, variables, batch, rngs, call_kwargs, batch_size, axis_name: as `signal.prepare`.

    Raises:
        TypeError, ValueError: as `signal.prepare`.
    """
    batches.check_keys(rngs)
    batch, kwargs = batches.carried(batch), batches.carried(dict(call_kwargs))
    batches.check(batch)
    seen = view(model)
    _, state = models.of(model, variables)
    options = tuple(sorted(kwargs.items()))
    calls = _Calls(seen, state, batch, options, batches.examples(batch, given=batch_size))
    held = list(calls.parameters.values())
    traced = checks.traced(calls.run, axis_name, held, state, batch, rngs)
    checks.check_objective(traced.outputs, None, axis_name, traced.axes)
    covered = calls.coverage(traced.jaxpr, len(traced.axes) + (axis_name is not None))
    if not calls.sites:
        kinds = modules.kinds(seen, state, batch, options, rngs, axis_name)
        raise ValueError(checks.nothing_to_measure(kinds, covered))
    examples = batches.examples(batch, traced.outputs, batch_size)
    kernels = tuple(
        site.parameter
        for site in calls.sites
        if checks.is_float(calls.parameters.get(site.parameter))
    )
    return FlaxModel(seen, kernels, covered, examples, options, axis_name, traced.axes)


class _Calls:
    """The calls of affine layers that one abstract call of a model meets."""

    def __init__(
        self, seen: View, state: Any, batch: Any, options: Any, examples: Examples
    ) -> None:
        self.seen = seen
        self.batch = batch
        self.options = options
        self.examples = examples  # as far as they are known before the outputs are
        self.parameters = seen.parameters(state)
        leaves = jax.tree.leaves(state)
        self.start = len(self.parameters) + len(leaves)  # of the batch in the jaxpr's inputs
        names = seen.others(state)
        self.others = {
            i: (name, leaf)
            for i, (name, leaf) in enumerate(
                zip(names, leaves, strict=True), start=len(self.parameters)
            )
            if name is not None and coverage.may_be_kernel(leaf)
        }
        self.sites: list[Site] = []

    def run(self, parameters: Any, state: Any, batch: Any, rngs: Any) -> Any:
        """Call the model, and gather its calls of affine layers."""
        self.sites.clear()
        state = self.seen.replace(state, dict(zip(self.parameters, parameters, strict=True)))
        args, kwargs = batches.arguments(batch, self.options)
        return self.seen.run(state, args, kwargs, rngs, self._observe)

    def _observe(self, visit: Visit) -> jax.Array:
        checks.check_batch_axis(visit.site, visit.x, self.batch, self.examples.number)
        self.sites.append(visit.site)
        return visit.y

    def coverage(self, jaxpr: ClosedJaxpr, bound: int) -> Coverage:
        """Return the weights that the calls measure, from the jaxpr of `run`."""
        batch = range(self.start, self.start + len(jax.tree.leaves(self.batch)))
        seen = coverage.read(jaxpr, self.parameters, batch, self.sites, bound, self.others)
        given = batches.parameters([*batches.positional(self.batch), dict(self.options)])
        return seen.with_arguments(given)
