"""A model read once: what a measurement and a calibration have to know before they compute."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from prelu_jax import axes, tracing
from prelu_jax.signal import batches, checks, coverage, modules
from prelu_jax.signal.batches import Examples
from prelu_jax.signal.coverage import Coverage
from prelu_jax.tracing import Program, models


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A model as a program of its parameters; those of equal models are equal.

    Attributes:
        model: as a function of its state.
        kinds: the names of the classes of its modules, for messages; () where it has none.
        coverage: the weights that its operations multiply with data, and the others.
        examples: the number of examples on one device, and how it was found.
        call_kwargs: the keywords of the call, in pairs.
        axis_name: the axis of devices over which it is mapped.
        bound_axes: the axis names that it asks for, bound at size 1.
        without_rules: whether its program is without custom derivatives, and sees into them.
    """

    model: models.Model
    kinds: tuple[str, ...]
    coverage: Coverage
    examples: Examples
    call_kwargs: tuple[tuple[str, Any], ...]
    axis_name: str | None
    bound_axes: tuple[str, ...]
    without_rules: bool = False

    def program(self, state: Any, batch: Any, rngs: Any) -> Program:
        """Return the model traced where this is called, with the axes of devices bound there.

        Its inputs are the model's parameters, ``(state, rngs)`` and the batch.
        """
        options = self.call_kwargs, self.without_rules
        return _program(self.model, *options, state, batch, rngs)

    def bind(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with the axes bound that the model asks for."""
        return axes.bind(function, self.bound_axes)

    def outputs(self, state: Any, parameters: Mapping[str, Any], batch: Any, rngs: Any) -> Any:
        """Return the model's outputs with some of its parameters exchanged."""
        return _outputs(self.model, self.call_kwargs, parameters, state, batch, rngs)


def prepare(
    model: Any,
    variables: Any,
    batch: Any,
    *,
    loss: Callable[[Any], jax.Array] | None,
    rngs: Mapping[str, jax.Array] | None,
    call_kwargs: Mapping[str, Any] | None,
    batch_size: int | None,
    axis_name: str | None,
    without_rules: bool = False,
) -> tuple[Prepared, Program, Any]:
    """Read a model by an abstract call; compute and compile nothing.

    Args:
        model, variables, batch, loss, rngs, call_kwargs, batch_size, axis_name: as
            `probe.prepare`.
        without_rules: see into functions with a derivative of their own; the program is not to be
            differentiated.

    Returns:
        The model made ready, its program, and its state.

    Raises:
        TypeError, ValueError: as `probe.prepare`.
    """
    batches.check_keys(rngs)
    batch, kwargs = batches.carried(batch), batches.carried(dict(call_kwargs or {}))
    batches.check(batch)
    function, state = models.of(model, variables)
    parameters = function.parameters(state)
    options = tuple(sorted(kwargs.items()))
    examples = batches.examples(batch, given=batch_size)
    kinds = modules.check(model, state, batch, options, rngs, examples.number, axis_name)

    def read(names: tuple[str, ...]) -> tuple[Program, tuple[str, ...]]:
        bound = names if axis_name is None else (axis_name,)
        return _program(function, options, without_rules, state, batch, rngs, bound), names

    program, bound = checks.with_axes(read, axis_name)
    checks.check_objective(program.shapes, loss, axis_name, bound)
    named = {
        name: leaf
        for name, leaf in zip(function.others(state), jax.tree.leaves(state), strict=True)
        if name and coverage.may_be_kernel(leaf)
    }
    given = batches.parameters([*batches.positional(batch), dict(options)])
    covered = coverage.of(program, parameters, named).with_arguments(given)
    if not program.operations:
        raise ValueError(checks.nothing_to_measure(kinds, covered))
    examples = batches.examples(batch, program.shapes, batch_size)
    prepared = Prepared(
        function, tuple(sorted(kinds)), covered, examples, options, axis_name, bound, without_rules
    )
    return prepared, program, state


def _outputs(
    model: models.Model,
    call_kwargs: Sequence[tuple[str, Any]],
    parameters: Mapping[str, Any],
    state: Any,
    batch: Any,
    rngs: Any,
) -> Any:
    args, kwargs = batches.arguments(batch, call_kwargs)
    outputs = model.call(model.replace(state, parameters), args, kwargs, rngs)
    return checks.arrays(outputs)


def _program(
    model: models.Model,
    call_kwargs: Sequence[tuple[str, Any]],
    without_rules: bool,
    state: Any,
    batch: Any,
    rngs: Any,
    bound: Sequence[str] = (),
) -> Program:
    def call(parameters: Mapping[str, Any], others: Any, batch: Any) -> Any:
        state, rngs = others
        return _outputs(model, call_kwargs, parameters, state, batch, rngs)

    names = [
        name if name and coverage.may_be_kernel(leaf) else None
        for name, leaf in zip(model.others(state), jax.tree.leaves(state), strict=True)
    ]
    names += [None] * len(jax.tree.leaves(rngs))
    sizes = [(name, 1) for name in bound]
    parameters = model.parameters(state)
    return tracing.trace(call, parameters, (state, rngs), batch, names, sizes, without_rules)
