"""The places of a layer's weights and bias among the entries of the parameters."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from prelu_jax.datadep.channels import Correction, affine
from prelu_jax.tracing import Operation
from prelu_jax.tracing.arrangement import Arrangement


class Places(NamedTuple):
    """The places of a layer's weights and bias; -1 for an entry that is of another layer.

    Attributes:
        weights: of every parameter in W, the flat place of each entry in W; None if they are equal.
        channels: of every parameter in W, the number of each entry's channel, with axes of size 1
            where it does not change along them.
        bias: the same for the bias; {} without one.
        steps: of every parameter, weights and bias, the number of each entry's layer in a stack of
            layers, with axes of size 1 in the same way.
    """

    weights: Mapping[str, NDArray[np.int32] | None]
    channels: Mapping[str, NDArray[np.int32]]
    bias: Mapping[str, NDArray[np.int32]]
    steps: Mapping[str, NDArray[np.int32]]

    def axes(self, name: str) -> tuple[int, ...] | None:
        """Return the axes of a parameter along which the layers of a stack are, each once.

        () for one layer; None if its layers are elsewhere than along axes.
        """
        steps = self.steps[name]
        axes = tuple(i for i, size in enumerate(steps.shape) if size > 1)
        return axes if _is_counting(np.sort(steps, axis=None)) else None


def of(operation: Operation, arrangement: Arrangement) -> Places:
    """Return the places of a layer; scans with weights of their own for each step come first.

    Args:
        operation: of the layer.
        arrangement: of its parameters, none of them computed.
    """
    weight, bias = arrangement.weight or {}, arrangement.bias or {}
    channels = _channels_of_weights(operation).ravel()
    layers = math.prod(operation.of_own_scans(operation.steps))
    size = channels.size // layers
    of_layer = math.prod(operation.channels)
    steps = {name: _short(places // size) for name, places in weight.items()}
    return Places(
        {name: None if _is_counting(places) else places for name, places in weight.items()},
        {name: _short(_picked(channels, places)) for name, places in weight.items()},
        {name: _short(places) for name, places in bias.items()},
        steps | {name: _short(places // of_layer) for name, places in bias.items()},
    )


def _channels_of_weights(operation: Operation) -> NDArray[np.int32]:
    """Return the channel number of every entry of W, at every step with weights of its own."""
    layout, shape = operation.layout, operation.weight_shape
    pairs = sorted(zip(layout.channel_axes, layout.weight_axes, strict=True))
    axes = [axis for _, axis in pairs]
    sizes = [shape[axis] for axis in axes]
    count = math.prod(sizes)
    numbers = np.arange(count)
    if operation.channel_order is not None:
        numbers = np.argsort(operation.channel_order)
    order = np.argsort(axes)
    spread = [shape[i] if i in axes else 1 for i in range(len(shape))]
    of_step = numbers.reshape(sizes).transpose(order).reshape(spread)
    steps = operation.of_own_scans(operation.steps)
    first = np.arange(math.prod(steps)).reshape(*steps, *[1] * len(shape)) * count
    return np.broadcast_to(first + of_step, (*steps, *shape)).astype(np.int32)


def _picked(numbers: NDArray[np.int32], places: NDArray[np.int32]) -> NDArray[np.int32]:
    return np.where(places < 0, np.int32(-1), numbers[places])


def _short(numbers: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the numbers with every axis cut to its first entry along which they are constant."""
    for axis in range(numbers.ndim):
        first = numbers.take([0], axis)
        if (numbers == first).all():
            numbers = first
    return numbers


def _is_counting(places: NDArray[np.int32]) -> bool:
    return bool((places.ravel() == np.arange(places.size)).all())


def drawn(
    before: Mapping[str, jax.Array], places: Places, weights: jax.Array, chosen: Any = True
) -> dict[str, jax.Array]:
    """Return a layer's parameters with other weights and biases of 0, where that is chosen.

    Args:
        before: all parameters, by path.
        places: of the layer.
        weights: W, ``[*own steps, *shape of W]``.
        chosen: a bool, which may be traced.
    """
    after = {}
    for name, at in places.weights.items():
        leaf, flat = before[name], weights.ravel()
        if at is None:
            drawn = flat.reshape(leaf.shape)
        else:
            drawn = jnp.where(at < 0, leaf, flat[jnp.maximum(at, 0)].astype(leaf.dtype))
        after[name] = jnp.where(chosen, drawn.astype(leaf.dtype), leaf)
    for name, at in places.bias.items():
        leaf = before[name]
        after[name] = jnp.where(chosen & (jnp.asarray(at) >= 0), jnp.zeros_like(leaf), leaf)
    return after


def corrected(
    before: Mapping[str, jax.Array], places: Places, correction: Correction
) -> dict[str, jax.Array]:
    """Return a layer's parameters with its output corrected.

    Args:
        before: all parameters, by path.
        places: of the layer.
        correction: ``[*own steps, *channels]``.
    """
    scales = jnp.append(correction.scale, 1)  # the last, at place -1, of other layers' entries
    shifts = jnp.append(correction.shift, 0)
    after = {name: affine(before[name], scales[at], 0) for name, at in places.channels.items()}
    return after | {
        name: affine(before[name], scales[at], shifts[at]) for name, at in places.bias.items()
    }


def overlap(layers: Sequence[Mapping[str, NDArray[np.int32]]]) -> set[str]:
    """Return the parameters of which an entry is in more than one of several layers."""
    times: dict[str, NDArray[np.int64]] = {}
    for layer in layers:
        for name, places in layer.items():
            times[name] = times.get(name, 0) + (places >= 0)
    return {name for name, count in times.items() if (count > 1).any()}
