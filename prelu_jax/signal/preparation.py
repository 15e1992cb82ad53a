"""A model that is read once, before a measurement or a calibration computes anything."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from prelu_jax import axes, tracing
from prelu_jax.signal import batches, checks, coverage, modules
from prelu_jax.signal.batches import Examples
from prelu_jax.signal.coverage import Coverage
from prelu_jax.tracing import Program, models


@dataclasses.dataclass(frozen=True)
class ModelCall:
    """A model as a function of its state, and the options of its call.

    Attributes:
        model: as a function of its state.
        call_kwargs: the keywords of the call, in pairs.
        without_rules: whether its program is without custom derivatives, and sees into them.
    """

    model: models.Model
    call_kwargs: tuple[tuple[str, Any], ...]
    without_rules: bool

    def outputs(self, state: Any, parameters: Mapping[str, Any], batch: Any, rngs: Any) -> Any:
        """Return the model's outputs with some of its parameters exchanged."""
        args, kwargs = batches.arguments(batch, self.call_kwargs)
        outputs = self.model.call(self.model.replace(state, parameters), args, kwargs, rngs)
        return checks.arrays(outputs)

    def program(self, state: Any, batch: Any, rngs: Any, bound: Sequence[str] = ()) -> Program:
        """Return the model traced where this is called, with the axes of devices bound there.

        Its inputs are the model's parameters, ``(state, rngs)`` and the batch.

        Args:
            state, batch, rngs: arrays or shapes.
            bound: the axes that are not bound where this is called.
        """

        def call(parameters: Mapping[str, Any], others: Any, batch: Any) -> Any:
            state, rngs = others
            return self.outputs(state, parameters, batch, rngs)

        names = [name for name, _ in self.others(state)] + [None] * len(jax.tree.leaves(rngs))
        sizes = [(name, 1) for name in bound]
        parameters = self.model.parameters(state)
        return tracing.trace(
            call, parameters, (state, rngs), batch, names, sizes, self.without_rules
        )

    def others(self, state: Any) -> list[tuple[str | None, Any]]:
        """Return every leaf of the state, with a name if it is no parameter and may be a kernel."""
        pairs = zip(self.model.others(state), jax.tree.leaves(state), strict=True)
        return [(name if coverage.may_be_kernel(leaf) else None, leaf) for name, leaf in pairs]


@dataclasses.dataclass(frozen=True)
class Prepared(ModelCall):
    """A model that was read; those of equal models are equal.

    Attributes:
        kinds: the names of the classes of its modules, for messages; () where it has none.
        coverage: the weights that its operations multiply with data, and the others.
        examples: the number of examples on one device, and how it was found.
        axis_name: the axis of devices over which it is mapped.
        bound_axes: the axis names that it asks for, bound at size 1.
    """

    kinds: tuple[str, ...]
    coverage: Coverage
    examples: Examples
    axis_name: str | None
    bound_axes: tuple[str, ...]

    def bind(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with the axes bound that the model asks for."""
        return axes.bind(function, self.bound_axes)


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
    call = ModelCall(function, tuple(sorted(kwargs.items())), without_rules)
    examples = batches.examples(batch, given=batch_size)

    def read(names: tuple[str, ...]) -> tuple[Program, tuple[str, ...]]:
        bound = names if axis_name is None else (axis_name,)
        return call.program(state, batch, rngs, bound), names

    with _naming(batch):
        kinds = modules.check(
            model, state, batch, call.call_kwargs, rngs, examples.number, axis_name
        )
        program, bound = checks.with_axes(read, axis_name)
    checks.check_objective(program.shapes, loss, axis_name, bound)
    named = {name: leaf for name, leaf in call.others(state) if name}
    given = batches.parameters([*batches.positional(batch), kwargs])
    covered = coverage.of(program, parameters, named).with_arguments(given)
    if not program.operations:
        raise ValueError(checks.nothing_to_measure(kinds, covered))
    prepared = Prepared(
        *(function, call.call_kwargs, without_rules),
        kinds=tuple(sorted(kinds)),
        coverage=covered,
        examples=batches.examples(batch, program.shapes, batch_size),
        axis_name=axis_name,
        bound_axes=bound,
    )
    return prepared, program, state


@contextlib.contextmanager
def _naming(batch: Any) -> Iterator[None]:
    """Add the model's input to an error raised in its call, as a note."""
    try:
        yield
    except Exception as error:
        error.add_note(f"The model was called with {batches.described(batch)}.")
        raise
