"""One forward pass that corrects every affine layer.

While the model runs, each layer's output y is measured, its weights and bias are corrected, and the
next layer receives the corrected output: y is affine in weights and bias, so it is not computed
again. One pass replaces a pass for each layer, also through residual connections and inside scans.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prelu_jax.datadep import channels, places
from prelu_jax.datadep.channels import Correction, Moments
from prelu_jax.datadep.layers import Layer
from prelu_jax.datadep.methods import OnePass
from prelu_jax.signal.preparation import Prepared
from prelu_jax.tracing import Operation, Visit

Parameters = dict[str, jax.Array]


class Control(NamedTuple):
    """The instruction of a pass for a layer.

    Attributes:
        measured: True to correct the layer by its own moments, and to redraw its weights if the
            method does; False to apply ``given`` and keep the weights.
        given: a correction in the shape of `Layer.shape`.
    """

    measured: jax.Array | np.ndarray
    given: Correction


class Outcome(NamedTuple):
    """The result of a pass at a layer, with the axes of the stack first.

    Attributes:
        before: the moments of its output before the correction, over all its calls.
        correction: the one applied to its output; where each call has its own, that of the first
            call that ran.
        enough: whether there were enough patches and directions for its filters; True where none
            are drawn.
        ran: whether it was called: a branch may not run.
    """

    before: Moments
    correction: Correction
    enough: jax.Array
    ran: jax.Array


class _Call(NamedTuple):
    """The result at one call of a layer."""

    moments: Moments
    correction: Correction
    enough: jax.Array
    ran: jax.Array
    weight: jax.Array | None


@dataclasses.dataclass(frozen=True)
class CalibrationPass:
    """The pass of a method through a model; equal passes compile once.

    Attributes:
        model: the model, made ready.
        layers: those to be corrected, in the order of execution.
        method: applied to each of them.
    """

    model: Prepared
    layers: tuple[Layer, ...]
    method: OnePass

    def __call__(self, replicated: Mapping[str, Any], batch: Any) -> Any:
        """Run the pass; pure, to be jitted or, with an axis name, pmapped.

        Args:
            replicated: the same on every device: 'variables', 'rngs', the 'control' and the
                'places' of every layer by its number, and a 'key' for random draws.
            batch: this device's part.

        Returns:
            The parameters that have changed, and the outcomes by layer's number. The same bits on
            every device.
        """
        return self.model.bind(self._pass)(replicated, batch)

    def _pass(self, replicated: Mapping[str, Any], batch: Any) -> Any:
        state, rngs = replicated["variables"], replicated["rngs"]
        program = self.model.program(state, batch, rngs)
        before = self.model.model.parameters(state)
        owner = {operation.number: layer for layer in self.layers for operation in layer.operations}
        # Every layer's key, from its place in the order of execution; one by one compiles longer.
        last = max((place for layer in self.layers for place in layer.order), default=0)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(replicated["key"], jnp.arange(last + 1))
        control: Mapping[int, Control] = replicated["control"]
        given = {
            operation.number: _at_every_step(
                operation, layer, control[layer.number], keys[np.array(layer.order)]
            )
            for layer in self.layers
            for operation in layer.operations
        }

        def observe(visit: Visit) -> tuple[jax.Array, Any]:
            layer = owner.get(visit.operation.number)
            return (visit.y, None) if layer is None else self._at(layer, visit)

        _, records = program.run(before, (state, rngs), batch, observe, given)
        after: Parameters = {}
        outcomes = {}
        for layer in self.layers:
            outcome, weight = _together(layer, records)
            outcomes[layer.number] = outcome
            if not layer.follows:
                continue
            of_layer = replicated["places"][layer.number]
            if weight is not None:
                measured = control[layer.number].measured
                after |= places.drawn({**before, **after}, of_layer, weight, measured)
            after |= places.corrected({**before, **after}, of_layer, outcome.correction)
        return after, outcomes

    def _at(self, layer: Layer, visit: Visit) -> tuple[jax.Array, _Call]:
        """Correct the output of a layer."""
        control, key = visit.given
        axis_name = self.model.axis_name
        y = visit.y
        redrawn = self.method.redraw(layer, visit, key, axis_name) if layer.follows else None
        if redrawn is not None:
            product = visit.product(visit.operand, redrawn.weight.astype(visit.weight.dtype))
            again = visit.after(product, without_bias=True)
            y = jnp.where(control.measured, again, y)
        axes = tuple(sorted(visit.operation.channel_axes))
        moments = channels.of_channels(y, axes, axis_name)
        correction = jax.tree.map(
            lambda own, given: jnp.where(control.measured, own, given),
            self.method.correction(moments, layer.has_bias),
            control.given,
        )
        enough = jnp.array(True) if redrawn is None else redrawn.enough | ~control.measured
        weight = None if redrawn is None else redrawn.weight
        call = _Call(moments, correction, enough, jnp.array(True), weight)
        return correction.of_output(y, axes), call


def _at_every_step(
    operation: Operation, layer: Layer, control: Control, keys: jax.Array
) -> tuple[Control, jax.Array]:
    """Return the control and the key of a layer for every step of the scans around a call.

    Args:
        operation: the call.
        layer: that is called.
        control: of the layer.
        keys: of every layer of the stack.
    """
    measured = jnp.broadcast_to(jnp.asarray(control.measured), layer.own)
    keys = keys.reshape(*layer.own, *keys.shape[1:])

    def spread(leaf: Any) -> Any:
        leaf = jnp.asarray(leaf)
        for i, (length, own) in enumerate(zip(operation.steps, operation.own, strict=True)):
            if not own:
                shape = (*leaf.shape[:i], length, *leaf.shape[i:])
                leaf = jnp.broadcast_to(jnp.expand_dims(leaf, i), shape)
        return leaf

    return Control(*jax.tree.map(spread, (measured, control.given))), spread(keys)


def _by_call(operation: Operation, record: Any) -> Any:
    """Return the record of all steps, every array as ``[calls, *own steps, ...]``."""
    shared = [i for i, own in enumerate(operation.own) if not own]

    def move(leaf: jax.Array) -> jax.Array:
        moved = jnp.moveaxis(leaf, shared, range(len(shared)))
        return moved.reshape(-1, *moved.shape[len(shared) :])

    return jax.tree.map(move, record)


def _together(layer: Layer, records: Mapping[int, Any]) -> tuple[Outcome, jax.Array | None]:
    """Return the outcome over all calls of a layer, and W as it was drawn at the first that ran."""
    calls: list[_Call] = [_by_call(each, records[each.number]) for each in layer.operations]
    size = math.prod(layer.channels)
    counts = jnp.concatenate([
        jnp.full(call.ran.shape, math.prod(operation.shape) // size, jnp.float32)
        for call, operation in zip(calls, layer.operations, strict=True)
    ])  # fmt: skip
    every: _Call = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *calls)
    ran = every.ran.any(axis=0)
    first = jnp.argmax(every.ran, axis=0)

    def of_first(leaf: Any) -> jax.Array:
        index = first.reshape(1, *first.shape, *[1] * (leaf.ndim - 1 - first.ndim))
        return jnp.take_along_axis(leaf, index, axis=0)[0]

    scale, shift = map(of_first, every.correction)
    idle = ~ran.reshape(*ran.shape, *[1] * len(layer.channels))
    correction = Correction(jnp.where(idle, 1, scale), jnp.where(idle, 0, shift))
    weights = jnp.where(every.ran, counts, 0)
    pooled = channels.pooled(every.moments, weights / jnp.maximum(weights.sum(axis=0), 1))
    weight = None if every.weight is None else of_first(every.weight)
    return Outcome(pooled, correction, every.enough.all(axis=0) | ~ran, ran), weight
