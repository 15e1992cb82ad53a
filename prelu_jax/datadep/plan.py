"""Which layers of a model are to be calibrated, and why the others are not."""

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
from prelu_jax.datadep.layers import Layer
from prelu_jax.datadep.places import Places
from prelu_jax.initializers import Layout
from prelu_jax.signal import batches, checks, preparation, rows
from prelu_jax.signal.coverage import Coverage, percent
from prelu_jax.signal.preparation import Prepared
from prelu_jax.tracing import Operation, Program, arrangement
from prelu_jax.tracing.arrangement import Arrangement


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A weight that a calibration leaves as it is.

    Attributes:
        parameter: its path.
        why: the reason.
    """

    parameter: str
    why: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """A model made ready to be calibrated.

    Attributes:
        model: the model.
        layers: the layers to be calibrated, in the order of execution.
        places: where each of them is among the parameters, by its number; none of a layer whose
            weights are computed.
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
    """Find the layers by an abstract pass; run and compile nothing of the model.

    Args:
        model, variables, batch, rngs, call_kwargs, axis_name, batch_size: as `signal.prepare`.
        only: a regular expression, searched for in the paths of kernels, unseen weights too:
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
            "examples is what is set to 1. A few dozen are enough (Krähenbühl et al. 2015). Found: "
            f"{prepared.examples.chosen}; batch_size=... sets another."
        )
    parameters = prepared.model.parameters(state)
    unseen = {weight.parameter: weight.why for weight in prepared.coverage.unseen}
    kernels = [name for operation in program.operations for name in operation.parameters]
    kernels += [*unseen, *prepared.coverage.unused]
    excluded = _excluded(list(dict.fromkeys(kernels)), only, except_)
    _check_seen(prepared.coverage, unseen, excluded)
    others = (state, rngs)
    elsewhere = arrangement.used_beside_biases(program, parameters, others, batch)
    chosen = _Choice(program, parameters, excluded, elsewhere)
    chosen.skipped |= {name: f"{excluded[name]}; {why}" for name, why in unseen.items()}
    chosen.skipped |= dict.fromkeys(prepared.coverage.unused, "not used by the model")
    layers, places = chosen.layers(arrangement.of(program, parameters, others, batch))
    if not layers:
        reasons = "; ".join(f"{name}: {why}" for name, why in chosen.skipped.items())
        raise ValueError(f"no layer is left to be calibrated. {reasons}.")
    skipped = tuple(Skipped(*item) for item in chosen.skipped.items())
    return Plan(prepared, layers, places, skipped)


# Like a compiled program: to calibrate an equal model again traces nothing.
_remembered = functools.lru_cache(maxsize=32)(_make)


def _check_seen(coverage: Coverage, unseen: Mapping[str, str], excluded: Mapping[str, str]) -> None:
    """Check that every weight that the model uses is seen, or left out by the user."""
    left = [name for name in unseen if name not in excluded]
    if not left:
        return
    reasons = "; ".join(f"{name}: {unseen[name]}" for name in left)
    raise ValueError(
        f"{', '.join(left)}: used where an output cannot be corrected before the next layer sees "
        f"it ({percent(1 - coverage.share)} of the weights). Leave these as they are with "
        f"except_={'|'.join(re.escape(name) for name in left)!r}. Where they are: {reasons}."
    )


def _excluded(kernels: Collection[str], only: str | None, except_: str | None) -> dict[str, str]:
    """Kernel path -> why a pattern leaves it out."""
    excluded: dict[str, str] = {}
    for option, pattern in (("only", only), ("except_", except_)):
        if pattern is None:
            continue
        if not isinstance(pattern, str):
            raise TypeError(f"{option} is {pattern!r}, expected a regular expression as a str.")
        try:
            found = {name for name in kernels if re.search(pattern, name)}
        except re.error as error:
            raise ValueError(f"{option} is {pattern!r}, no regular expression: {error}.") from error
        if not found:
            raise ValueError(
                f"{option} is {pattern!r}, which matches none of the kernels: {', '.join(kernels)}."
            )
        out = found if option == "except_" else set(kernels) - found
        excluded |= dict.fromkeys(sorted(out), f"left out by {option}={pattern!r}")
    return excluded


class _Choice:
    """The operations of a model gathered into layers.

    Attributes:
        skipped: why weights are left as they are, by their paths.
    """

    def __init__(
        self,
        program: Program,
        parameters: Mapping[str, Any],
        excluded: Mapping[str, str],
        elsewhere: Collection[str],
    ) -> None:
        self.program = program
        self.parameters = parameters
        self.excluded = excluded
        self.elsewhere = elsewhere
        self.skipped: dict[str, str] = {}
        self.tables = {
            name
            for operation in program.operations
            if operation.kind == "look-up"
            for name in operation.parameters
        }

    def layers(
        self, arranged: Mapping[int, Arrangement]
    ) -> tuple[tuple[Layer, ...], dict[int, Places]]:
        """Return the layers in the order of execution, and their places by number."""
        groups: dict[Any, list[Operation]] = {}
        for operation in self.program.operations:
            why = self._unfit(operation)
            if why:
                self.skipped[rows.largest(self.parameters, operation.parameters)] = why
            else:
                groups.setdefault(_identity(operation, arranged), []).append(operation)
        groups = self._without_conflicts(groups, arranged)
        self._note_shared_biases(groups, arranged)
        order = self._order(groups.values())
        layers, places = [], {}
        names = collections.Counter[str]()
        for operations in groups.values():
            held = arranged[operations[0].number]
            layer = self._layer(operations, held, order[operations[0].number])
            if names[layer.name]:  # parts of one array, taken by hand
                layer = dataclasses.replace(layer, name=f"{layer.name}[{names[layer.name]}]")
            names[rows.path(self.parameters, layer.parameters)] += 1
            layers.append(layer)
            if layer.follows:
                places[layer.number] = places_lib.of(operations[0], held)
        return tuple(sorted(layers, key=lambda layer: layer.order[0])), places

    def _unfit(self, operation: Operation) -> str | None:
        """Why an operation cannot be calibrated; None if it can."""
        for name in operation.parameters:
            if name in self.excluded:
                return self.excluded[name]
        if self.tables & set(operation.parameters):
            return "a table of embeddings"
        if not set(operation.parameters) <= set(self.parameters):
            return "its kernel is not one of the model's parameters"
        for name in operation.parameters:
            if not checks.is_float(self.parameters[name]):
                return f"its kernel holds {self.parameters[name].dtype}"
        if not jnp.issubdtype(operation.dtype, jnp.floating):
            return f"its output is {operation.dtype}"
        return None

    def _without_conflicts(
        self, groups: dict[Any, list[Operation]], arranged: Mapping[int, Arrangement]
    ) -> dict[Any, list[Operation]]:
        """The layers without those that share weights in another arrangement, as W and Wᵀ do."""
        held = {key: arranged[group[0].number].weight or {} for key, group in groups.items()}
        shared = places_lib.overlap(list(held.values()))
        why = "shared by layers of other channels, or used in a computed kernel too"
        computed = {
            name for key, group in groups.items() if not held[key] for name in group[0].parameters
        }
        kept = {}
        for key, group in groups.items():
            if set(held[key]) & (shared | computed):
                self.skipped |= dict.fromkeys(sorted(held[key]), why)
            else:
                kept[key] = group
        return kept

    def _note_shared_biases(
        self, groups: Mapping[Any, list[Operation]], arranged: Mapping[int, Arrangement]
    ) -> None:
        biases = [arranged[group[0].number].bias or {} for group in groups.values()]
        self.elsewhere = {*self.elsewhere, *places_lib.overlap(biases)}

    def _order(self, groups: Collection[Sequence[Operation]]) -> dict[int, tuple[int, ...]]:
        """The places of the layers of every stack in the order of execution, by their number."""
        first = {each.number: group[0].number for group in groups for each in group}
        ranks: dict[tuple[int, tuple[int, ...]], int] = {}
        for operation, index in self.program.rows():
            if operation.number in first:
                own = tuple(i for i, is_own in zip(index, operation.own, strict=True) if is_own)
                ranks.setdefault((first[operation.number], own), len(ranks))
        order: dict[int, list[int]] = {}
        for number, own in sorted(ranks):
            order.setdefault(number, []).append(ranks[number, own])
        return {number: tuple(places) for number, places in order.items()}

    def _layer(
        self, operations: Sequence[Operation], held: Arrangement, order: tuple[int, ...]
    ) -> Layer:
        first = operations[0]
        layout = first.layout
        outputs = [axis for axis in layout.weight_axes if axis not in layout.stacked_axes]
        return Layer(
            name=rows.path(self.parameters, first.parameters) or rows.KINDS[first.kind],
            parameter=rows.largest(self.parameters, first.parameters),
            parameters=first.parameters,
            bias=first.bias,
            operations=tuple(operations),
            own=places_lib.own_steps(first),
            order=order,
            channels=tuple(first.shape[axis] for axis in sorted(first.channel_axes)),
            layout=Layout(
                in_axis=layout.input_axes,
                out_axis=tuple(outputs),
                batch_axis=layout.stacked_axes,
                feature_group_count=layout.groups if first.kind == "conv" else 1,
                transposed=first.kind == "conv transpose",
            ),
            obstacle=self._obstacle(first, held),
        )

    def _obstacle(self, operation: Operation, held: Arrangement) -> str | None:
        """Why an output does not follow its parameters; None if it does."""
        if held.weight is None:
            return "its kernel is computed"
        if held.bias is None:
            return "its bias is computed, or one number for several channels"
        if operation.bias in self.elsewhere:
            return "its bias is used elsewhere too"
        return None


def _identity(operation: Operation, arranged: Mapping[int, Arrangement]) -> Any:
    """A key that is equal for two operations if they are calls of one layer."""
    weight = arranged[operation.number].weight
    if weight is None:
        return operation.number
    places = tuple((name, places.tobytes()) for name, places in sorted(weight.items()))
    return places, operation.bias, operation.channel_order
