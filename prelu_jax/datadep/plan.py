"""The choice of the layers of a model that are calibrated, and why the others are not."""

import collections
import dataclasses
import functools
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from prelu_jax.datadep import places as places_lib
from prelu_jax.datadep.layers import Layer, Skipped
from prelu_jax.datadep.places import Places
from prelu_jax.initializers import Layout
from prelu_jax.signal import batches, checks, preparation, rows
from prelu_jax.signal.coverage import Coverage, percent
from prelu_jax.signal.preparation import Prepared
from prelu_jax.tracing import Operation, Program, arrangement


@dataclasses.dataclass(frozen=True)
class Plan:
    """A model made ready to be calibrated.

    Attributes:
        model: the model.
        layers: the layers to be calibrated, in the order of execution.
        places: the place of each of them among the parameters, by its number; none of a layer
            whose output does not follow its parameters.
        skipped: the weights that are left as they are.
    """

    model: Prepared
    layers: tuple[Layer, ...]
    places: Mapping[int, Places]
    skipped: tuple[Skipped, ...]


def make(
    model: Any,
    variables: Any,
    batch: Any,
    only: str | None = None,
    except_: str | None = None,
    rngs: Mapping[str, jax.Array] | None = None,
    call_kwargs: Mapping[str, Any] | None = None,
    axis_name: str | None = None,
    batch_size: int | None = None,
) -> Plan:
    """Find the layers by an abstract pass.

    The model is not run: only the operations that make weights of its parameters are.

    Args:
        model, variables, batch, rngs, call_kwargs, axis_name, batch_size: as `signal.prepare`.
        only: a regular expression, searched for in the paths of kernels, measured or not:
            calibrate those alone.
        except_: one that keeps kernels as they are.

    Raises:
        TypeError, ValueError: as `signal.prepare`; a batch of one example; a pattern that is no
            string or no regular expression, or matches no kernel; no layer left; weights that the
            model uses where no layer is measured (`signal.Coverage`).
    """
    batches.check_keys(rngs)
    shapes = jax.tree.map(_shape, (variables, batches.carried(batch), rngs))
    leaves, structure = jax.tree.flatten(shapes)
    options = tuple(sorted((call_kwargs or {}).items()))
    given = (model, tuple(leaves), structure, only, except_, options, axis_name, batch_size)
    if isinstance(model, nnx.Module) or not checks.is_hashable(given):
        return _make(*given)  # an NNX model is one object, whatever becomes of it
    return _remembered(*given)


def _shape(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "dtype") else leaf


def _make(
    model: Any,
    leaves: tuple[Any, ...],
    structure: Any,
    only: str | None,
    except_: str | None,
    options: tuple[tuple[str, Any], ...],
    axis_name: str | None,
    batch_size: int | None,
) -> Plan:
    variables, batch, rngs = jax.tree.unflatten(structure, leaves)
    prepared, program, state = preparation.prepare(
        model, variables, batch,
        loss=None, rngs=rngs, call_kwargs=dict(options), batch_size=batch_size, axis_name=axis_name,
        without_rules=True,
    )  # fmt: skip
    if prepared.examples.number < 2 and axis_name is None:
        raise ValueError(
            "the batch is a single example, expected two or more: the spread of an output over "
            "examples is set to 1. A few dozen are enough (Krähenbühl et al. 2015). Found: "
            f"{prepared.examples.chosen}; batch_size=... sets another."
        )
    coverage, inputs = prepared.coverage, (prepared.model.parameters(state), (state, rngs), batch)
    not_seen = {weight.parameter: weight.why for weight in coverage.not_measured}
    kernels = [name for operation in program.operations for name in operation.parameters]
    kernels += [*not_seen, *coverage.unused]
    excluded = _excluded(list(dict.fromkeys(kernels)), only, except_)
    _check_seen(coverage, not_seen, excluded)
    choice = _Choice(program, inputs, excluded)
    choice.skipped |= {name: f"{excluded[name]}; {why}" for name, why in not_seen.items()}
    choice.skipped |= dict.fromkeys(coverage.unused, "not used by the model")
    layers = choice.layers()
    if not layers:
        reasons = "; ".join(f"{name}: {why}" for name, why in choice.skipped.items())
        raise ValueError(f"no layer is left to be calibrated. {reasons}.")
    places = {
        layer.number: places_lib.of(layer.first, choice.arranged[layer.number])
        for layer in layers
        if layer.follows
    }
    skipped = tuple(Skipped(*item) for item in choice.skipped.items())
    return Plan(prepared, layers, places, skipped)


# Like a compiled program: to calibrate an equal model again traces nothing.
_remembered = functools.lru_cache(maxsize=32)(_make)


def _check_seen(
    coverage: Coverage, not_seen: Mapping[str, str], excluded: Mapping[str, str]
) -> None:
    """Check that every weight that the model uses is seen, or left out by the user."""
    left = [name for name in not_seen if name not in excluded]
    if not left:
        return
    reasons = "; ".join(f"{name}: {not_seen[name]}" for name in left)
    raise ValueError(
        f"{', '.join(left)}: used where an output cannot be corrected before the next layer sees "
        f"it ({percent(1 - coverage.share)} of the weights). Leave these as they are with "
        f"except_={'|'.join(re.escape(name) for name in left)!r}. Where they are: {reasons}."
    )


def _excluded(kernels: Collection[str], only: str | None, except_: str | None) -> dict[str, str]:
    """Return the kernels that a pattern leaves out, each with the reason."""
    excluded: dict[str, str] = {}
    for option, pattern in (("only", only), ("except_", except_)):
        if pattern is None:
            continue
        if not isinstance(pattern, str):
            raise TypeError(f"{option} is {pattern!r}, expected a regular expression as a str.")
        try:
            matching = {name for name in kernels if re.search(pattern, name)}
        except re.error as error:
            raise ValueError(f"{option} is {pattern!r}, no regular expression: {error}.") from error
        if not matching:
            raise ValueError(
                f"{option} is {pattern!r}, which matches none of the kernels: {', '.join(kernels)}."
            )
        out = matching if option == "except_" else set(kernels) - matching
        excluded |= dict.fromkeys(sorted(out), f"left out by {option}={pattern!r}")
    return excluded


class _Choice:
    """The operations of a model gathered into layers.

    Attributes:
        arranged: the arrangements of the operations' parameters, by number.
        skipped: why weights are left as they are, by their paths.
    """

    def __init__(
        self, program: Program, inputs: tuple[Any, Any, Any], excluded: Mapping[str, str]
    ) -> None:
        self.program = program
        self.parameters: Mapping[str, Any] = inputs[0]
        self.excluded = excluded
        self.arranged = arrangement.of(program, *inputs)
        self.used_elsewhere = arrangement.used_beside_biases(program, *inputs)
        self.skipped: dict[str, str] = {}

    def layers(self) -> tuple[Layer, ...]:
        """Return the layers in the order of execution."""
        groups: dict[Any, list[Operation]] = {}
        for operation in self.program.operations:
            why = self._unfit(operation)
            if why:
                self.skipped[rows.largest(self.parameters, operation.parameters)] = why
            else:
                groups.setdefault(self._identity(operation), []).append(operation)
        fitting = self._without_conflicts(list(groups.values()))
        biases = [self.arranged[first.number].bias or {} for first, *_ in fitting]
        self.used_elsewhere |= places_lib.overlap(biases)
        order = self._order(fitting)
        names = collections.Counter[str]()
        layers = []
        for group in fitting:
            layer = self._layer(group, order[group[0].number])
            names[layer.name] += 1
            if names[layer.name] > 1:  # parts of one array, taken by hand
                name = f"{layer.name}[{names[layer.name] - 1}]"
                layer = dataclasses.replace(layer, name=name)
            layers.append(layer)
        return tuple(sorted(layers, key=lambda layer: layer.order[0]))

    def _unfit(self, operation: Operation) -> str | None:
        """Return why an operation cannot be calibrated; None if it can."""
        for name in operation.parameters:
            if name in self.excluded:
                return self.excluded[name]
        if self.program.tables & set(operation.parameters):
            return "a table of embeddings"
        if not set(operation.parameters) <= set(self.parameters):
            return "its kernel is not one of the model's parameters"
        for name in operation.parameters:
            if not checks.is_float(self.parameters[name]):
                return f"its kernel holds {self.parameters[name].dtype}"
        if not jnp.issubdtype(operation.dtype, jnp.floating):
            return f"its output is {operation.dtype}"
        return None

    def _identity(self, operation: Operation) -> Any:
        """Return a key that is equal for two operations if they are calls of one layer."""
        weight = self.arranged[operation.number].weight
        if weight is None:
            return operation.number
        places = tuple((name, places.tobytes()) for name, places in sorted(weight.items()))
        return places, operation.bias, operation.channel_order

    def _without_conflicts(self, groups: Sequence[list[Operation]]) -> list[list[Operation]]:
        """Return the groups without those that share weights in other arrangements, as W and Wᵀ."""
        held = [self.arranged[first.number].weight or {} for first, *_ in groups]
        pairs = list(zip(groups, held, strict=True))
        shared = places_lib.overlap(held)
        shared |= {name for group, weights in pairs if not weights for name in group[0].parameters}
        why = "shared by layers of other channels, or used in a computed kernel too"
        for weights in held:
            if shared & set(weights):
                self.skipped |= dict.fromkeys(sorted(weights), why)
        return [group for group, weights in pairs if not shared & set(weights)]

    def _order(self, groups: Sequence[list[Operation]]) -> dict[int, tuple[int, ...]]:
        """Return the places of every stack's layers in the order of execution, by its number."""
        first = {each.number: group[0].number for group in groups for each in group}
        ranks: dict[tuple[int, tuple[int, ...]], int] = {}
        for operation, index in self.program.rows():
            if operation.number in first:
                own = operation.of_own_scans(index)
                ranks.setdefault((first[operation.number], own), len(ranks))
        order: dict[int, tuple[int, ...]] = {}
        for number, own in sorted(ranks):
            order[number] = (*order.get(number, ()), ranks[number, own])
        return order

    def _layer(self, operations: Sequence[Operation], order: tuple[int, ...]) -> Layer:
        first = operations[0]
        layout = first.layout
        outputs = [axis for axis in layout.weight_axes if axis not in layout.stacked_axes]
        return Layer(
            name=rows.path(self.parameters, first.parameters) or rows.KINDS[first.kind],
            parameter=rows.largest(self.parameters, first.parameters),
            operations=tuple(operations),
            order=order,
            layout=Layout(
                in_axis=layout.input_axes,
                out_axis=tuple(outputs),
                batch_axis=layout.stacked_axes,
                feature_group_count=layout.groups if first.kind == "conv" else 1,
                transposed=first.kind == "conv transpose",
            ),
            obstacle=self._obstacle(first),
        )

    def _obstacle(self, operation: Operation) -> str | None:
        """Return why an output does not follow its parameters; None if it does."""
        arranged = self.arranged[operation.number]
        if arranged.weight is None:
            return "its kernel is computed"
        if arranged.bias is None:
            return "its bias is computed, or one number for several channels"
        if operation.bias in self.used_elsewhere:
            return "its bias is used elsewhere too"
        return None
