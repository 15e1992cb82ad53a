"""Rules that a model declares: initialisers in its modules, or named by the user."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn

from prelu_jax import axes, flax_layers
from prelu_jax.initializers import foreign
from prelu_jax.initializers.layers import for_layer
from prelu_jax.initializers.parameters import Parameter
from prelu_jax.tracing import adapters


@dataclasses.dataclass(frozen=True)
class Declared:
    """The rule that a parameter is declared to be drawn by.

    Attributes:
        initializer: the initialiser, a callable.
        shape: the shape that it is called with: that of one kernel if kernels are stacked, and
            flattened by Flax in `DenseGeneral`.
    """

    initializer: Any
    shape: tuple[int, ...]

    def describe(self) -> str:
        """Return the rule in words."""
        return foreign.describe(self.initializer)

    @property
    def rule(self) -> foreign.Rule | None:
        """Rule of the initialiser; None if it is not known."""
        return foreign.known(self.initializer)

    @property
    def std(self) -> float | None:
        """Standard deviation by the rule; None if it is not known."""
        if self.rule is None:
            return None
        try:
            return math.sqrt(self.rule.variance(self.shape))
        except ValueError:  # `flax.linen.Embed` gives one axis both meanings
            return None


def by_user(rules: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> dict[str, Declared]:
    """Return the rules that the user declares.

    Args:
        rules: dict from a regular expression for whole paths to an initialiser.
        parameters: the model's parameters by path.

    Raises:
        ValueError: an expression matches no parameter, or an initialiser is not known.
    """
    rules_by_path: dict[str, Declared] = {}
    if not isinstance(rules, Mapping):
        raise TypeError(
            f"table: declared is a {type(rules).__name__}, expected a dict from regular "
            "expressions for paths to initialisers."
        )
    for pattern, initializer in rules.items():
        names = [name for name in parameters if matches("declared", pattern, name)]
        if not names:
            raise ValueError(
                f"table: {pattern!r} in declared matches no parameter; expected a regular "
                f"expression for some of {', '.join(parameters)}."
            )
        if foreign.known(initializer) is None:
            raise ValueError(
                f"table: the rule declared for {pattern!r} is {foreign.describe(initializer)}; "
                "expected an initialiser of this package, of JAX or of Flax, or a number."
            )
        rules_by_path |= {name: Declared(initializer, parameters[name].shape) for name in names}
    return rules_by_path


def matches(argument: str, pattern: str, name: str) -> bool:
    """Return whether a regular expression matches a whole path.

    Raises:
        ValueError: the pattern is not a regular expression; the error names ``argument``.
    """
    try:
        return re.fullmatch(pattern, name) is not None
    except (re.error, TypeError) as error:
        raise ValueError(
            f"table: {argument} is {pattern!r}, expected a regular expression: {error}."
        ) from error


def by_modules(
    model: nn.Module, variables: Any, inputs: tuple[Any, ...], call_kwargs: Mapping[str, Any]
) -> dict[str, Declared]:
    """Return the rules in the modules that a call of a Linen model runs.

    NNX layers do not keep their initialisers.
    """
    rules_by_path: dict[str, Declared] = {}
    normed: set[tuple[str, ...]] = set()  # layers whose kernels are normalised before use

    def record(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        result = call(*args, **kwargs)
        module = context.module
        if isinstance(module, flax_layers.NORMED):
            normed.add(module.layer_instance.path)
        for name, value in module.variables.get("params", {}).items():
            initializer = getattr(module, f"{name}_init", None)
            if initializer is not None and hasattr(value, "shape"):
                shape = _as_drawn(module, name, tuple(value.shape))
                rules_by_path["/".join((*module.path, name))] = Declared(initializer, shape)
        return result

    def apply(variables: Any, *inputs: Any) -> Any:
        keys = {name: jax.random.key(0) for name in ("params", "dropout")}
        with nn.intercept_methods(record):
            return model.apply(variables, *inputs, rngs=keys, mutable=True, **call_kwargs)

    def trace(names: tuple[str, ...]) -> None:
        jax.eval_shape(axes.bind(apply, names), adapters.unboxed(variables), *inputs)

    axes.trace(trace)
    inside = tuple("/".join((*path, "")) for path in normed)
    return {
        name: rule
        for name, rule in rules_by_path.items()
        if not inside or not name.startswith(inside)
    }


def _as_drawn(layer: Any, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that ``kernel_init`` is called with: `DenseGeneral` flattens its kernel."""
    if isinstance(layer, flax_layers.DENSE_GENERAL) and name == "kernel":
        batch, inputs, outputs, _ = for_layer(layer).axes(shape)
        return math.prod(shape[i] for i in batch + inputs), math.prod(shape[i] for i in outputs)
    return shape
