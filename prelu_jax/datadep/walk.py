"""One forward pass that corrects every affine layer on the way.

While the model runs, a layer's output y is measured, its kernel and bias are corrected, and the
corrected output is what the next layer sees: y is affine in kernel and bias, so it need not be
computed again. One pass therefore does what takes a pass per layer otherwise, in the order of
execution, through residual and dense connections alike.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prelu_jax import axes
from prelu_jax.datadep import moments as moments_lib
from prelu_jax.datadep.moments import Moments
from prelu_jax.initializers import Layout
from prelu_jax.signal import batches
from prelu_jax.signal.sites import Axes, Site, Visit
from prelu_jax.signal.taps import View

Parameters = dict[str, jax.Array]


class Correction(NamedTuple):
    """y ← scale · y + shift, channel by channel, and kernel and bias so that it comes about."""

    scale: jax.Array | np.ndarray
    shift: jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class Layer:
    """An affine layer that is to be corrected.

    Attributes:
        site: its first call.
        calls: how often it is called; more than once if it is shared.
        bias: the path of its bias among the model's parameters; None without one.
        channels: the shape of its channels.
        dtype: the type of its output.
        layout: what the axes of its kernel are.
    """

    site: Site
    calls: int
    bias: str | None
    channels: tuple[int, ...]
    dtype: str
    layout: Layout

    @property
    def parameter(self) -> str:
        """The path of its kernel."""
        return self.site.parameter

    @property
    def name(self) -> str:
        """Its path in the model."""
        return self.site.path or self.site.kind


class Redrawn(NamedTuple):
    """A kernel from the layer's input, and whether that had enough patches and directions."""

    kernel: jax.Array
    enough: jax.Array


class OnePass:
    """What a method does at a layer. Methods are frozen dataclasses of their options."""

    def start(
        self, layers: tuple[Layer, ...], parameters: Mapping[str, jax.Array], key: jax.Array
    ) -> Parameters:
        """Parameters that are drawn anew before the pass."""
        del layers, parameters, key
        return {}

    @property
    def plain(self) -> "OnePass":
        """The same without redrawing anything: what a layer drawn already is corrected by."""
        return self

    def redraw(
        self, layer: Layer, visit: Visit, key: jax.Array, axis_name: str | None
    ) -> Redrawn | None:
        """A kernel from the layer's input; None to keep the one that it has."""
        del layer, visit, key, axis_name
        return None

    def correction(self, moments: Moments, has_bias: bool) -> Correction:
        """What to do with an output of these moments; without a bias the shift is 0."""
        raise NotImplementedError

    def error(self, moments: Moments, has_bias: bool) -> float:
        """How far an output of these moments is from what the method promises."""
        raise NotImplementedError


class Control(NamedTuple):
    """What a pass does at each layer, by kernel path.

    Attributes:
        measured: whether the layer is drawn anew, if the method does so, and takes the correction
            that its own moments ask for ...
        given: ... or else keeps its kernel and takes this one.
    """

    measured: dict[str, jax.Array | np.ndarray]
    given: dict[str, Correction]


@dataclasses.dataclass(frozen=True)
class Walk:
    """The pass of a method through a model; equal walks compile once.

    Attributes:
        view: how the model is seen.
        layers: those to be corrected, in the order of execution.
        method: what is done at each.
        call_kwargs: the keywords of the call, in pairs.
        axis_name: the axis of devices under `pmap`.
        bound_axes: the axis names that the model asks for, bound at size 1.
    """

    view: View
    layers: tuple[Layer, ...]
    method: OnePass
    call_kwargs: tuple[tuple[str, Any], ...]
    axis_name: str | None
    bound_axes: tuple[str, ...] = ()

    def __call__(
        self, replicated: Mapping[str, Any], batch: Any
    ) -> tuple[Parameters, dict[str, Any]]:
        """The pass; pure, to be jitted or, with an axis name, pmapped.

        Args:
            replicated: the same on every device: 'variables', 'rngs', 'control' and a 'key' for
                what is drawn.
            batch: this device's part.

        Returns:
            The corrected parameters, and by kernel path what was found: 'before', the layer's
            `Moments` before its correction, over all its calls, 'correction', and 'enough'. The
            same bits on every device.
        """
        return axes.bind(self._pass, self.bound_axes)(replicated, batch)

    def _pass(self, replicated: Mapping[str, Any], batch: Any) -> tuple[Parameters, dict[str, Any]]:
        step = _Step(self, replicated)
        variables = replicated["variables"]
        args, kwargs = batches.arguments(batch, self.call_kwargs)
        self.view.run(variables, args, kwargs, replicated["rngs"], step.observe)
        return step.parameters(self.view.parameters(variables)), step.found()


class _Step:
    """What a pass gathers while it is traced."""

    def __init__(self, walk: Walk, replicated: Mapping[str, Any]) -> None:
        self.walk = walk
        self.control: Control = replicated["control"]
        self.keys = {
            layer.parameter: jax.random.fold_in(replicated["key"], i)
            for i, layer in enumerate(walk.layers)
        }
        self.layers = {layer.parameter: layer for layer in walk.layers}
        self.redrawn: dict[str, Redrawn] = {}
        self.corrections: dict[str, Correction] = {}
        self.moments: dict[str, list[tuple[Moments, int]]] = {}

    def observe(self, visit: Visit) -> jax.Array:
        """The corrected output of a layer that is to be corrected; of others, the output."""
        layer = self.layers.get(visit.site.parameter)
        if layer is None:
            return visit.y
        y = self._output(layer, visit)
        axes = visit.site.channel_axes
        moments = moments_lib.of_channels(y, axes, self.walk.axis_name)
        calls = self.moments.setdefault(layer.parameter, [])
        if not calls:
            own = self.walk.method.correction(moments, layer.bias is not None)
            given = self.control.given[layer.parameter]
            measured = self.control.measured[layer.parameter]
            self.corrections[layer.parameter] = jax.tree.map(
                lambda own, given: jnp.where(measured, own, given), own, given
            )
        calls.append((moments, y.size // moments.mean.size))
        correction = self.corrections[layer.parameter]
        return _corrected(y, correction.scale, correction.shift, axes)

    def _output(self, layer: Layer, visit: Visit) -> jax.Array:
        name = layer.parameter
        if name not in self.redrawn:
            key, axis_name = self.keys[name], self.walk.axis_name
            redrawn = self.walk.method.redraw(layer, visit, key, axis_name)
            if redrawn is None:
                return visit.y
            self.redrawn[name] = redrawn
        changes = {"kernel": self.redrawn[name].kernel}
        if layer.bias is not None:
            changes["bias"] = jnp.zeros_like(visit.parameters["bias"])
        return jnp.where(self.control.measured[name], visit.again(changes), visit.y)

    def parameters(self, before: Mapping[str, jax.Array]) -> Parameters:
        """The parameters that have changed."""
        after: Parameters = {}
        for name, (scale, shift) in self.corrections.items():
            layer = self.layers[name]
            redrawn, measured = self.redrawn.get(name), self.control.measured[name]
            kernel = before[name]
            if redrawn is not None:
                kernel = jnp.where(measured, redrawn.kernel, kernel)
            after[name] = _corrected(kernel, scale, jnp.zeros_like(shift), layer.site.kernel_axes)
            if layer.bias is not None:
                bias = before[layer.bias]
                if redrawn is not None:
                    bias = jnp.where(measured, jnp.zeros_like(bias), bias)
                after[layer.bias] = _corrected(bias, scale, shift, layer.site.bias_axes)
        return after

    def found(self) -> dict[str, Any]:
        """By kernel path, what a `Walk` returns beside the parameters."""
        return {
            name: {
                "before": moments_lib.pooled(*zip(*calls, strict=True)),
                "correction": self.corrections[name],
                "enough": self._enough(name),
            }
            for name, calls in self.moments.items()
        }

    def _enough(self, name: str) -> jax.Array:
        if name not in self.redrawn:
            return jnp.array(True)
        return self.redrawn[name].enough | ~jnp.asarray(self.control.measured[name])


def _corrected(values: jax.Array, scale: Any, shift: Any, axes: Axes) -> jax.Array:
    """scale · values + shift along the channels' axes, in the values' own type."""
    precise = moments_lib.wide(values)
    scale, shift = (_spread(v.astype(precise.dtype), axes, values.ndim) for v in (scale, shift))
    return (precise * scale + shift).astype(values.dtype)


def _spread(by_channel: jax.Array, axes: Axes, ndim: int) -> jax.Array:
    """Values by channel, with their axes where an array of ``ndim`` axes has the channels."""
    order = sorted(range(len(axes)), key=lambda i: axes[i])
    shape = [1] * ndim
    for i in order:
        shape[axes[i]] = by_channel.shape[i]
    return jnp.transpose(by_channel, order).reshape(shape)
