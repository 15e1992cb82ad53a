"""One forward pass that corrects every affine layer on the way.

While the model runs, a layer's output y is measured, its weights and bias are corrected, and the
next layer sees the corrected output: y is affine in weights and bias, so it need not be computed
again. One pass therefore replaces a pass for each layer, in the order of execution, through
residual and dense connections and inside scans.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prelu_jax.datadep import moments as moments_lib
from prelu_jax.datadep import places as places_lib
from prelu_jax.datadep.layers import Layer
from prelu_jax.datadep.method import OnePass
from prelu_jax.datadep.moments import Moments
from prelu_jax.datadep.places import Correction
from prelu_jax.signal.preparation import Prepared
from prelu_jax.tracing import Operation, Visit

Parameters = dict[str, jax.Array]


class Control(NamedTuple):
    """The instruction of a pass for a layer.

    Attributes:
        measured: whether the layer takes new weights, if the method draws some, and the correction
            that follows from its own moments ...
        given: ... or else keeps its weights and takes this correction, in the shape of
            `Layer.shape`.
    """

    measured: jax.Array | np.ndarray
    given: Correction


class Found(NamedTuple):
    """The findings of a pass at a layer, with the axes of the stack first.

    Attributes:
        before: the moments of its output before the correction, over all its calls.
        correction: as it was applied; at the first call, if each call was measured.
        enough: whether the patches that it is drawn from were enough.
        ran: whether it was called: a branch may not run.
    """

    before: Moments
    correction: Correction
    enough: jax.Array
    ran: jax.Array


class _Call(NamedTuple):
    """The findings at one call of a layer."""

    moments: Moments
    correction: Correction
    enough: jax.Array
    ran: jax.Array
    weight: jax.Array | None


class _Given(NamedTuple):
    """The input of a pass for one call of a layer."""

    control: Control
    key: jax.Array


@dataclasses.dataclass(frozen=True)
class Walk:
    """The pass of a method through a model; equal walks compile once.

    Attributes:
        model: the model, made ready.
        layers: those to be corrected, in the order of execution.
        method: applied to each of them.
    """

    model: Prepared
    layers: tuple[Layer, ...]
    method: OnePass

    def __call__(
        self, replicated: Mapping[str, Any], batch: Any
    ) -> tuple[Parameters, dict[int, Found]]:
        """Run the pass; pure, to be jitted or, with an axis name, pmapped.

        Args:
            replicated: the same on every device: 'variables', 'rngs', the 'control' and the
                'places' of every layer by its number, and a 'key' for random draws.
            batch: this device's part.

        Returns:
            The parameters that have changed, and the findings by layer's number. The same bits on
            every device.
        """
        return self.model.bind(self._pass)(replicated, batch)

    def _pass(self, replicated: Mapping[str, Any], batch: Any) -> Any:
        state, rngs = replicated["variables"], replicated["rngs"]
        program = self.model.program(state, batch, rngs)
        before = self.model.model.parameters(state)
        owner = {operation.number: layer for layer in self.layers for operation in layer.operations}
        given = {}
        for operation in program.operations:
            layer = owner.get(operation.number)
            if layer is not None:
                of_layer = _Given(
                    replicated["control"][layer.number], _keys(replicated["key"], layer)
                )
                given[operation.number] = _at_every_step(of_layer, layer, operation)

        def observe(visit: Visit) -> tuple[jax.Array, Any]:
            layer = owner.get(visit.operation.number)
            return (visit.y, None) if layer is None else self._at(layer, visit)

        _, records = program.run(before, (state, rngs), batch, observe, given)
        after: Parameters = {}
        found = {}
        for layer in self.layers:
            calls = [
                jax.tree.map(lambda leaf, of=each: _by_call(of, leaf), records[each.number])
                for each in layer.operations
            ]
            found[layer.number], weight = _together(layer, calls)
            if not layer.follows:
                continue
            known, places = {**before, **after}, replicated["places"][layer.number]
            if weight is not None:
                measured = replicated["control"][layer.number].measured
                drawn = places_lib.drawn(known, places, weight, measured)
                after |= drawn
                known |= drawn
            after |= places_lib.corrected(known, places, found[layer.number].correction)
        return after, found

    def _at(self, layer: Layer, visit: Visit) -> tuple[jax.Array, _Call]:
        """Correct the output of a layer."""
        control, key = visit.given
        axis_name = self.model.axis_name
        y, has_bias = visit.y, layer.bias is not None
        redrawn = self.method.redraw(layer, visit, key, axis_name) if layer.follows else None
        if redrawn is not None:
            again = visit.again(redrawn.weight.astype(visit.weight.dtype), True)
            y = jnp.where(control.measured, again, y)
        axes = sorted(visit.operation.channel_axes)
        moments = moments_lib.of_channels(y, axes, axis_name)
        correction = jax.tree.map(
            lambda own, given: jnp.where(control.measured, own, given),
            self.method.correction(moments, has_bias),
            control.given,
        )
        enough = jnp.array(True) if redrawn is None else redrawn.enough | ~control.measured
        weight = None if redrawn is None else redrawn.weight
        call = _Call(moments, correction, enough, jnp.array(True), weight)
        return _corrected(y, correction, axes), call


def _keys(key: jax.Array, layer: Layer) -> jax.Array:
    """A key for every layer of a stack, from its place in the order of execution."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.array(layer.order))
    return keys.reshape(*layer.own, *key.shape)


def _at_every_step(given: _Given, layer: Layer, operation: Operation) -> _Given:
    """The same at every step of the scans around a call."""
    control = given.control
    measured = jnp.broadcast_to(jnp.asarray(control.measured), layer.own)
    given = given._replace(control=control._replace(measured=measured))

    def spread(leaf: Any) -> jax.Array:
        leaf = jnp.asarray(leaf)
        for i, (length, own) in enumerate(zip(operation.steps, operation.own, strict=True)):
            if not own:
                shape = (*leaf.shape[:i], length, *leaf.shape[i:])
                leaf = jnp.broadcast_to(jnp.expand_dims(leaf, i), shape)
        return leaf

    return jax.tree.map(spread, given)


def _by_call(operation: Operation, record: jax.Array) -> jax.Array:
    """A record of all steps, ``[calls, *own steps, ...]``."""
    shared = [i for i, own in enumerate(operation.own) if not own]
    moved = jnp.moveaxis(record, shared, range(len(shared)))
    return moved.reshape(-1, *moved.shape[len(shared) :])


def _together(layer: Layer, calls: Sequence[_Call]) -> tuple[Found, jax.Array | None]:
    """The findings at all calls of a layer, and W as it was drawn at the first that ran."""
    channels = math.prod(layer.channels)
    sizes = [math.prod(each.shape) // channels for each in layer.operations]  # values of a channel
    pairs = zip(calls, sizes, strict=True)
    counts = jnp.concatenate([jnp.full(call.ran.shape, size, jnp.float32) for call, size in pairs])
    every: _Call = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *calls)
    ran = every.ran.any(axis=0)
    first = jnp.argmax(every.ran, axis=0)

    def of_first(leaf: jax.Array) -> jax.Array:
        index = first.reshape(1, *first.shape, *[1] * (leaf.ndim - 1 - first.ndim))
        return jnp.take_along_axis(leaf, index, axis=0)[0]

    scale, shift = (of_first(jnp.asarray(leaf)) for leaf in every.correction)
    idle = ~ran.reshape(*ran.shape, *[1] * len(layer.channels))
    correction = Correction(jnp.where(idle, 1, scale), jnp.where(idle, 0, shift))
    weights = jnp.where(every.ran, counts, 0)
    pooled = moments_lib.pooled(every.moments, weights / jnp.maximum(weights.sum(axis=0), 1))
    weight = None if every.weight is None else of_first(every.weight)
    return Found(pooled, correction, every.enough.all(axis=0) | ~ran, ran), weight


def _corrected(y: jax.Array, correction: Correction, axes: Sequence[int]) -> jax.Array:
    """scale · y + shift along the channels' axes, in y's own type."""
    precise = moments_lib.wide(y)
    shape = [1] * y.ndim
    for axis in axes:
        shape[axis] = y.shape[axis]
    scale, shift = (jnp.asarray(v, precise.dtype).reshape(shape) for v in correction)
    return (precise * scale + shift).astype(y.dtype)
