"""What a Flax layer's parameters are: their layout, and the rule that drew them."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax
import jax
import numpy as np
from flax import linen as nn
from flax import nnx

from prelu_jax import axes, flax_layers, tracing
from prelu_jax.initializers.fans import Layout
from prelu_jax.initializers.foreign import Rule, describe, known
from prelu_jax.tracing import models

Path = tuple[str, ...]


def for_layer(layer: Any, *, count_strides: bool = False) -> Layout:
    """The layout of a Linen or NNX layer's kernel.

    Args:
        layer: a Dense, Linear, DenseGeneral, LinearGeneral, Conv or ConvTranspose, bound or not.
        count_strides: divide the window by the strides (`Layout.strides`), which the papers do
            not. Worth it for a transposed convolution that enlarges maps.

    Raises:
        TypeError: another kind of layer.

    Flax flattens the kernel of a `DenseGeneral` before it calls ``kernel_init``: there an
    initialiser needs the default layout, which is right unless the layer has batch axes
    (docs/findings.md). This layout is for a kernel drawn in the parameter's own shape.
    """
    if isinstance(layer, flax_layers.DENSE):
        return Layout()
    if isinstance(layer, flax_layers.CONV):
        groups = layer.feature_group_count
        return Layout(feature_group_count=groups, strides=_strides(layer) if count_strides else 1)
    if isinstance(layer, flax_layers.CONV_TRANSPOSE):
        in_axis, out_axis = (-1, -2) if layer.transpose_kernel else (-2, -1)
        strides = _strides(layer) if count_strides else 1
        return Layout(in_axis, out_axis, strides=strides, transposed=True)
    if isinstance(layer, flax_layers.DENSE_GENERAL):
        if isinstance(layer, nn.DenseGeneral):
            n_batch, n_in, n_out = map(_count, (layer.batch_dims, layer.axis, layer.features))
        else:
            n_batch, n_in, n_out = map(_count, (layer.batch_axis, layer.axis, layer.out_features))
        return Layout(
            in_axis=tuple(range(n_batch, n_batch + n_in)),
            out_axis=tuple(range(n_batch + n_in, n_batch + n_in + n_out)),
            batch_axis=tuple(range(n_batch)),
        )
    raise TypeError(
        f"for_layer: {type(layer).__name__} has no kernel that it knows; expected a Dense, Linear, "
        "DenseGeneral, LinearGeneral, Conv or ConvTranspose. Pass a Layout of your own instead."
    )


def _strides(layer: Any) -> int:
    """The product of the strides over the axes of the window."""
    return int(np.prod(np.broadcast_to(layer.strides or 1, np.size(layer.kernel_size))))


def _count(axes: Any) -> int:
    return 1 if isinstance(axes, int) else len(axes)


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter of a model.

    Attributes:
        parameter: its path, e.g. 'conv2_1/kernel'.
        shape: its shape.
        rule: how it is drawn, in words; '?' where the model does not say.
        fan_in: how many weights meet in one output; None for what is no kernel.
        fan_out: how many weights start from one input; None for what is no kernel.
        std: its standard deviation by the rule; None if the rule is not known.
        measured_std: its standard deviation as it is; None if the variables are abstract.
    """

    parameter: str
    shape: tuple[int, ...]
    rule: str
    fan_in: float | None
    fan_out: float | None
    std: float | None
    measured_std: float | None


class Table(tuple[Row, ...]):
    """The rows of `table`; `str` lays them out in columns."""

    def __str__(self) -> str:
        header = [field.name for field in dataclasses.fields(Row)]
        cells = [header] + [[_cell(getattr(row, name)) for name in header] for row in self]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)
        return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(model: Any, variables: Any = None, *inputs: Any, **call_kwargs: Any) -> Table:
    """Every parameter of a model: its rule, its fans, its standard deviation.

    Args:
        model: a Linen or NNX model, unmodified.
        variables: a Linen model's variables, arrays or `jax.ShapeDtypeStruct`; none for NNX.
        *inputs: what the model is called with, arrays or shapes; for NNX after None in place of
            variables. Fans are then those of the products in the call, in scans and einsums too. A
            Linen model's layers exist only in a call: without it the rules are not known, and
            kernels count as ``[*window, in_features, out_features]``. NNX layers do not keep their
            initialisers.
        **call_kwargs: keywords of that call.

    Raises:
        TypeError: the model is neither.
        ValueError: a Linen model's variables hold no parameters.
    """
    if isinstance(model, nn.Module):
        params = (variables or {}).get("params")
        if not params:
            raise ValueError(
                "table: the variables hold no parameters; expected what model.init returns."
            )
        layers = _linen_layers(model, variables, inputs, call_kwargs) if inputs else {}
    elif isinstance(model, nnx.Module):
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        layers = {tuple(map(str, path)): (layer, {}) for path, layer in nnx.iter_modules(model)}
    else:
        raise TypeError(
            f"table: model is a {type(model).__name__}, expected a Linen or NNX module."
        )
    fans = _fans_in_call(model, variables, inputs, call_kwargs) if inputs else {}
    return Table(_rows(params, layers, fans))


def _linen_layers(
    model: nn.Module, variables: Any, inputs: tuple[Any, ...], call_kwargs: Mapping[str, Any]
) -> dict[Path, tuple[Any, dict[str, tuple[int, ...]]]]:
    """Every module that a call of the model meets, and its own parameters' shapes there."""
    layers: dict[Path, tuple[Any, dict[str, tuple[int, ...]]]] = {}

    def meet(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        result = call(*args, **kwargs)
        module = context.module
        own = module.variables.get("params", {})
        shapes = {name: value.shape for name, value in own.items() if hasattr(value, "shape")}
        layers[module.path] = (module, shapes)
        return result

    def apply(variables: Any, *inputs: Any) -> Any:
        keys = {name: jax.random.key(0) for name in ("params", "dropout")}
        with nn.intercept_methods(meet):
            return model.apply(variables, *inputs, rngs=keys, mutable=True, **call_kwargs)

    def trace(names: tuple[str, ...]) -> None:
        jax.eval_shape(axes.bind(apply, names), _unboxed(variables), *inputs)

    axes.trace(trace)
    return layers


def _fans_in_call(
    model: Any, variables: Any, inputs: tuple[Any, ...], call_kwargs: Mapping[str, Any]
) -> dict[str, tuple[float, float]]:
    """The fans of every parameter that a product of the model's has for its W."""
    function, state = models.of(model, variables and _unboxed(variables))
    keys = {name: jax.random.key(0) for name in ("params", "dropout")}
    rngs = keys if isinstance(model, nn.Module) else None

    def call(parameters: Mapping[str, Any], state: Any, inputs: Any) -> Any:
        outputs = function.call(function.replace(state, parameters), inputs, call_kwargs, rngs)
        return [leaf for leaf in jax.tree.leaves(outputs) if isinstance(leaf, jax.Array)]

    def trace(names: tuple[str, ...]) -> tracing.Program:
        sizes = [(name, 1) for name in names]
        return tracing.trace(call, function.parameters(state), state, inputs, axes=sizes)

    program = axes.trace(trace)
    fans: dict[str, tuple[float, float]] = {}
    for operation in program.operations:
        if operation.kind != "look-up" and len(operation.parameters) == 1:
            fans.setdefault(operation.parameters[0], operation.fans)
    return fans


def _unboxed(tree: Any) -> Any:
    """Return the values in boxes of partitioning metadata.

    `flax.core.meta.unbox` applies the sharding too, which needs the mesh, and arrays.
    """

    def unbox(leaf: Any) -> Any:
        return _unboxed(leaf.value) if _is_box(leaf) else leaf

    return jax.tree.map(unbox, tree, is_leaf=_is_box)


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, nn.meta.AxisMetadata) and hasattr(leaf, "value")


def _rows(
    params: Any,
    layers: Mapping[Path, tuple[Any, dict[str, Any]]],
    fans: Mapping[str, tuple[float, float]],
) -> Iterator[Row]:
    for path, value in flax.traverse_util.flatten_dict(_unboxed(params)).items():
        *owner, name = map(str, path)
        layer, shapes = layers.get(tuple(owner), (None, {}))
        shape = shapes.get(name, value.shape)  # without axes that `nn.scan` stacks
        drawn_by = getattr(layer, f"{name}_init", None)
        rule = known(drawn_by)
        parameter = "/".join((*owner, name))
        fan_in, fan_out = fans.get(parameter) or _fans(layer, name, shape)
        yield Row(
            parameter=parameter,
            shape=tuple(value.shape),
            rule="?" if drawn_by is None else describe(drawn_by),
            fan_in=fan_in,
            fan_out=fan_out,
            std=_std(rule, _as_drawn(layer, name, shape)) if rule else None,
            measured_std=None if isinstance(value, jax.ShapeDtypeStruct) else float(np.std(value)),
        )


def _fans(layer: Any, name: str, shape: tuple[int, ...]) -> tuple[float | None, float | None]:
    if name != "kernel" or len(shape) < 2:
        return None, None
    try:
        layout = for_layer(layer)
    except TypeError:
        layout = Layout()
    return layout.fans(shape)


def _as_drawn(layer: Any, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that ``kernel_init`` is called with: `DenseGeneral` flattens its kernel."""
    if isinstance(layer, flax_layers.DENSE_GENERAL) and name == "kernel":
        batch, inputs, outputs, _ = for_layer(layer).axes(shape)
        return math.prod(shape[i] for i in batch + inputs), math.prod(shape[i] for i in outputs)
    return shape


def _std(rule: Rule, shape: tuple[int, ...]) -> float | None:
    try:
        return math.sqrt(rule.variance(shape))
    except ValueError:  # `flax.linen.Embed` gives one axis both meanings
        return None
