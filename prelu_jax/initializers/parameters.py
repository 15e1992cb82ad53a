"""Role and fans of every parameter of a model, read from one abstract call."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import flax
import jax
from jax.extend.core import Var

from prelu_jax import axes, tracing
from prelu_jax.initializers.fans import PLAIN, Layout
from prelu_jax.tracing import models, residual
from prelu_jax.tracing.operations import Body, Watched
from prelu_jax.tracing.outputs import Graph
from prelu_jax.tracing.values import shape_of

Role = Literal["kernel", "look-up", "bias", "scale", "slope", "other", "unused"]
_KEPT = ("convert_element_type", "copy", "name", "rev", "slice", "dynamic_slice")
Branch = Literal["", "inside", "last"]
_WHERE: dict[bool | None, Branch] = {None: "", False: "inside", True: "last"}
_BY_NAME: dict[str, Role] = {
    "kernel": "kernel",
    "embedding": "look-up",
    "bias": "bias",
    "scale": "scale",
    "negative_slope": "slope",
}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter of a model.

    Attributes:
        name: its path.
        shape: its shape.
        role: 'kernel', 'look-up', 'bias', 'scale' (usually of a norm), 'slope' (of a rectifier),
            'other', or 'unused'.
        fan_in, fan_out: numbers of weights that enter one output and that leave one input; None if
            it is not a kernel.
        stacked: number of separate kernels that it holds, e.g. of scan steps or of experts.
        groups: groups of a convolution.
        in_axes, out_axes: its axes of input and of output features; () if the kernel is more than a
            rearrangement of the parameter.
        stack_axes: its axes that count separate kernels.
        branch: its place in the branch of a residual sum: 'last' if its output is added to the
            residual stream, 'inside' if it comes before, '' outside of branches.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    fan_in: float | None = None
    fan_out: float | None = None
    stacked: int = 1
    groups: int = 1
    in_axes: tuple[int, ...] = ()
    out_axes: tuple[int, ...] = ()
    stack_axes: tuple[int, ...] = ()
    branch: Branch = ""


def read(
    model: models.Model, state: Any, inputs: tuple[Any, ...], call_kwargs: Mapping[str, Any]
) -> dict[str, Parameter]:
    """Return every parameter, described by a call of the model that computes nothing.

    Args:
        model, state: as `models.of` returns them; arrays or `jax.ShapeDtypeStruct`.
        inputs: positional arguments of the call, arrays or `jax.ShapeDtypeStruct`.
        call_kwargs: keyword arguments of the call.

    Raises:
        ValueError: the model cannot be called with these variables and inputs.
    """
    parameters = model.parameters(state)
    program = _program(model, state, inputs, call_kwargs)
    branches = residual.branches(program.reading.body)
    described: dict[str, Parameter] = {}
    for body, watched in _watched(program.reading.body):
        operation = watched.operation
        for name in operation.parameters:
            if name not in parameters:  # a variable of another collection
                continue
            branch = _WHERE[branches.get(operation.number)]
            if name in described and branch == "last":
                described[name] = dataclasses.replace(described[name], branch=branch)
            if name not in described or described[name].role == "look-up":
                described[name] = _kernel(name, parameters[name].shape, body, watched, branch)
    biases = {operation.bias for operation in program.operations}
    for name, leaf in parameters.items():
        if name not in described:
            role = _role(name, program.reading, name in biases)
            described[name] = Parameter(name, tuple(leaf.shape), role)
    return {name: described[name] for name in parameters}


def guess(parameters: Mapping[str, Any], layouts: Mapping[str, Layout]) -> dict[str, Parameter]:
    """Return every parameter, described only by its name and shape.

    Args:
        parameters: arrays or abstract arrays by path.
        layouts: layouts of kernels by path; others count as ``[*window, in_features,
            out_features]``.
    """
    described = {}
    for name, leaf in parameters.items():
        shape = tuple(leaf.shape)
        role = _BY_NAME.get(name.rpartition("/")[2], "other")
        is_kernel = role == "kernel" and len(shape) > 1
        fans = (
            layouts.get(name, PLAIN).fans(shape) if is_kernel and 0 not in shape else (None, None)
        )
        described[name] = Parameter(name, shape, role, *fans)
    return described


def _program(
    model: models.Model, state: Any, inputs: tuple[Any, ...], call_kwargs: Mapping[str, Any]
) -> tracing.Program:
    keys = {name: jax.random.key(0) for name in ("params", "dropout")}
    rngs = keys if isinstance(model, models.Linen | models.Haiku) else None

    def call(parameters: Mapping[str, Any], state: Any, inputs: Any) -> Any:
        outputs = model.call(model.replace(state, parameters), inputs, call_kwargs, rngs)
        return [leaf for leaf in jax.tree.leaves(outputs) if isinstance(leaf, jax.Array)]

    def trace(names: tuple[str, ...]) -> tracing.Program:
        sizes = [(name, 1) for name in names]
        given = model.parameters(state)
        return tracing.trace(call, given, state, inputs, axes=sizes, without_rules=True)

    try:
        return axes.trace(trace)
    except jax.errors.ConcretizationTypeError as error:
        raise ValueError(
            "table: the model branches on the value of an argument. Pass flags, such as "
            "train=True, as keywords."
        ) from error
    except (flax.errors.FlaxError, KeyError, TypeError, ValueError, AttributeError) as error:
        first = str(error).strip().split("\n")[0].partition(" (https://")[0]
        raise ValueError(
            "table: the model cannot be called with these variables and inputs; expected the "
            f"variables and inputs of this model. {type(error).__name__}: {first}"
        ) from error


def _watched(body: Body) -> Iterator[tuple[Body, Watched]]:
    """Yield every operation with the body that contains it."""
    for place in sorted({*body.watched, *body.inner}):
        for inner in body.inner.get(place, ()):
            yield from _watched(inner)
        if place in body.watched:
            yield body, body.watched[place]


def _kernel(
    name: str, shape: tuple[int, ...], body: Body, watched: Watched, branch: Branch
) -> Parameter:
    operation = watched.operation
    layout = operation.layout
    if len(operation.parameters) > 1 and len(shape) < 2:  # usually of weight normalisation
        return Parameter(name, tuple(shape), "scale")
    look_up = operation.kind == "look-up"
    alone = len(operation.parameters) == 1
    fan_in, fan_out = operation.fans if alone and not look_up else (None, None)
    is_view = alone and operation.is_view
    stored = _stored(body, watched, len(shape)) if is_view else ((), (), ())
    # Kernels of the steps of scans and of slices; then of experts.
    stacked = math.prod(shape) // math.prod(operation.weight_shape) if is_view else 1
    stacked *= math.prod(operation.weight_shape[axis] for axis in layout.stacked_axes)
    return Parameter(
        name,
        tuple(shape),
        "look-up" if look_up else "kernel",
        fan_in,
        fan_out,
        stacked,
        layout.groups if not layout.stacked_axes else 1,
        *stored,
        branch,
    )


def _stored(
    body: Body, watched: Watched, rank: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return a parameter's axes of inputs, outputs and stacked kernels; () if not known."""
    layout = watched.operation.layout
    graph, atom = Graph(body.jaxpr), watched.weight
    order = list(range(len(watched.operation.weight_shape)))  # axis of W -> axis of the parameter
    while isinstance(atom, Var) and atom in graph.maker:
        equation = graph.equations[graph.maker[atom]]
        if equation.primitive.name == "transpose":
            order = [equation.params["permutation"][axis] for axis in order]
        elif equation.primitive.name == "squeeze":
            taken = equation.params["dimensions"]
            left = [i for i in range(len(shape_of(equation.invars[0]))) if i not in taken]
            order = [left[axis] for axis in order]
        elif equation.primitive.name not in _KEPT:
            return (), (), ()
        atom = equation.invars[0]
    ahead = rank - len(shape_of(atom))  # the axes of the steps of scans
    if ahead != len([own for own in watched.operation.own if own]):
        return (), (), ()

    def stored(axes: Iterable[int]) -> tuple[int, ...]:
        return tuple(order[axis] + ahead for axis in axes)

    free = [axis for axis in layout.weight_axes if axis not in layout.stacked_axes]
    within = {*stored(range(len(order)))} - {*stored(layout.stacked_axes)}
    stack = tuple(axis for axis in range(rank) if axis not in within)
    return stored(layout.input_axes), stored(free), stack


def _role(name: str, reading: tracing.Reading, is_bias: bool) -> Role:
    effects = reading.effects.get(name, frozenset())
    if is_bias or effects == {"add"}:
        return "bias"
    if "look up" in effects:
        return "look-up"
    if effects >= {"multiply", "rectify"}:
        return "slope"
    if "multiply" in effects:
        return "scale"
    return "other" if name in reading.used else "unused"
