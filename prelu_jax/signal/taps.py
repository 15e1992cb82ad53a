"""Seeing into unmodified Flax models: every call of an affine layer, in Linen and in NNX."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
from flax import linen as nn
from flax import nnx

from prelu_jax.signal.linen_view import LinenView
from prelu_jax.signal.nnx_view import NnxView
from prelu_jax.signal.sites import Observe


class View(Protocol):
    """What the probe asks of a model, be it Linen or NNX."""

    def parameters(self, variables: Any) -> dict[str, jax.Array]:
        """Every parameter by its path."""

    def replace(self, variables: Any, parameters: Mapping[str, jax.Array]) -> Any:
        """The variables with some of the parameters exchanged."""

    def like(self, variables: Any, parameters: Mapping[str, jax.Array]) -> Any:
        """The same, boxed and frozen where the variables are."""

    def call(
        self,
        variables: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        rngs: Any,
        observe: Observe,
        hidden: set[str] | None = None,
    ) -> Any:
        """The model's outputs, every affine layer's as ``observe(visit)`` hands it back.

        What the model changes of its variables is dropped. A call inside another transformation
        (`scan`, `remat`, `vmap`, `jit`, `cond`) is not shown: its arrays may not leave there. Its
        kernel's path is added to ``hidden``.
        """

    def kinds(self, variables: Any, args: tuple[Any, ...], kwargs: Any, rngs: Any) -> set[str]:
        """The names of the classes of all modules that the model holds or calls."""


def view(model: Any) -> View:
    """The view of a Linen or an NNX model.

    Raises:
        TypeError: the model is neither.
    """
    if isinstance(model, nn.Module):
        return LinenView(model)
    if isinstance(model, nnx.Module):
        return NnxView(nnx.graphdef(model))
    raise TypeError(f"model is a {type(model).__name__}, expected a Linen or NNX module.")
