"""Seeing into unmodified Flax models: every call of an affine layer, in Linen and in NNX."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
from flax import linen as nn
from flax import nnx

from prelu_jax.signal.linen_view import LinenView
from prelu_jax.signal.nnx_view import NnxView
from prelu_jax.signal.sites import Observe
from prelu_jax.tracing.models import Model


class View(Model, Protocol):
    """A Flax model whose layers can be observed."""

    def like(self, variables: Any, parameters: Mapping[str, jax.Array]) -> Any:
        """Return `replace`, boxed and frozen where the variables are."""

    def run(
        self,
        variables: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        rngs: Any,
        observe: Observe,
    ) -> Any:
        """Return the model's outputs, with ``observe(visit)`` in place of every affine layer's.

        What the model changes of its variables is dropped. A call inside another transformation
        (`scan`, `remat`, `vmap`, `jit`, `cond`) is not shown: its arrays may not leave there.
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
