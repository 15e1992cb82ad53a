"""The methods that need one forward pass: their part at a single layer."""

from collections.abc import Sequence
from typing import NamedTuple

import jax

from prelu_jax.datadep.layers import Layer
from prelu_jax.datadep.moments import Moments
from prelu_jax.datadep.places import Correction
from prelu_jax.tracing import Visit


class Redrawn(NamedTuple):
    """W from the layer's input, and whether that had enough patches and directions."""

    weight: jax.Array
    enough: jax.Array


class OnePass:
    """A method with one forward pass. Methods are frozen dataclasses of their options."""

    def draw(self, layer: Layer, shape: Sequence[int], key: jax.Array) -> jax.Array | None:
        """Return a new W, drawn before the pass, with a bias of 0; None to keep both."""
        del layer, shape, key
        return None

    @property
    def plain(self) -> "OnePass":
        """The method without drawing: it corrects layers that are drawn already."""
        return self

    def redraw(
        self, layer: Layer, visit: Visit, key: jax.Array, axis_name: str | None
    ) -> Redrawn | None:
        """Return a new W, made of the layer's input, with a bias of 0; None to keep both."""
        del layer, visit, key, axis_name
        return None

    def correction(self, moments: Moments, has_bias: bool) -> Correction:
        """Return the correction of an output of these moments; without a bias the shift is 0."""
        raise NotImplementedError

    def error(self, moments: Moments, has_bias: bool) -> float:
        """Return the distance of an output of these moments from the target."""
        raise NotImplementedError
