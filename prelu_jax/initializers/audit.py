"""Audit of a model's parameters: their roles, their rules, and mistakes in them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from numpy.typing import NDArray

from prelu_jax import flax_layers
from prelu_jax.initializers import candidates, comparisons, findings, fit, parameters, statistics
from prelu_jax.initializers.audited import Audited, Finding
from prelu_jax.initializers.declared import Declared, by_modules, by_user
from prelu_jax.initializers.fans import Layout
from prelu_jax.initializers.fit import Fit
from prelu_jax.initializers.layers import for_layer
from prelu_jax.initializers.listing import Row, Table
from prelu_jax.initializers.parameters import Parameter
from prelu_jax.initializers.statistics import Statistics
from prelu_jax.tracing import adapters, models

Values = Callable[[str], Any] | Mapping[str, Any] | Iterable[tuple[str, Any]]


def table(
    model: Any,
    *variables_and_inputs: Any,
    declared: Mapping[str, Any] | None = None,
    decays: Any = None,
    values: Values | None = None,
    **call_kwargs: Any,
) -> Table:
    """Audit a model's parameters: their roles and fans, the rules that drew them, mistakes.

        print(pj.initializers.table(model, variables, batch))
        pj.initializers.table(model, variables, batch).assert_as_declared()

    The variables should be freshly drawn: training moves weights away from their rule, which would
    be reported, too.

    Args:
        model: a Linen or NNX module, Haiku's ``Transformed``, a callable pytree such as an Equinox
            module, or a function ``f(variables, *inputs)``.
        *variables_and_inputs: the model's variables, then the positional arguments of its call;
            arrays or `jax.ShapeDtypeStruct`. For models that hold their variables, the arguments
            alone, or None before them. Without arguments, roles and fans are guessed from names and
            shapes, ``[*window, in_features, out_features]``, and no rules are known.
        declared: the intended rules: a dict from a regular expression for whole paths to an
            initialiser. Linen's modules store theirs, which an entry replaces; other models do not.
            The initialiser counts
            as called with the parameter's whole shape, so give it ``batch_axis=0`` for kernels
            stacked by `jax.vmap`.
        decays: the mask of the weight decay, as for `optax.masked`: a pytree of bools like the
            parameters, or a function from the parameters to one.
        values: the parameters' numbers if the variables are abstract: a function from a path to an
            array, or pairs of both. Only one array at a time is requested and held.
        **call_kwargs: keyword arguments of the model's call.

    Returns:
        A row for every parameter, and the findings.

    Raises:
        TypeError: the model is of no supported kind.
        ValueError: the variables hold no parameters or belong to another model; a name in
            ``declared`` or ``values`` is not a parameter's path, or an array there has another
            shape; the mask has another structure.
    """
    own = models.holds_variables(model)
    first, *inputs = variables_and_inputs or (None,)
    if own and first is not None:
        first, inputs = None, list(variables_and_inputs)
    variables = adapters.unboxed(first) if isinstance(model, nn.Module) else first
    if isinstance(model, nn.Module) and not _holds_params(variables):
        raise ValueError(
            "table: the variables hold no parameters; expected the result of model.init, before "
            "the inputs."
        )
    function, state = models.of(model, variables)
    leaves = function.parameters(state)
    rules: dict[str, Declared] = {}
    if inputs:
        described = parameters.read(function, state, tuple(inputs), call_kwargs)
        if isinstance(model, nn.Module):
            rules = by_modules(model, variables, tuple(inputs), call_kwargs)
    else:
        described = parameters.guess(leaves, _layouts(model))
    rules |= by_user(declared or {}, described)
    audited, mistakes = _audited(described, rules, _numbers(leaves, values))
    mistakes += comparisons.depth_scaling(list(audited.values()))
    if decays is not None:
        mistakes += findings.wrong_decay(described, _mask(model, function, state, decays))
    result = Table(
        _row(parameter, rules.get(name), audited.get(name)) for name, parameter in described.items()
    )
    result.findings = tuple(mistakes)
    return result


def _holds_params(variables: Any) -> bool:
    return isinstance(variables, Mapping) and bool(variables.get("params"))


def _layouts(model: Any) -> dict[str, Layout]:
    """Return the layouts of an NNX model's kernels."""
    if not isinstance(model, nnx.Module):
        return {}
    known = (
        *(*flax_layers.DENSE, *flax_layers.DENSE_GENERAL),
        *(*flax_layers.CONV, *flax_layers.CONV_TRANSPOSE),
    )
    return {
        "/".join((*map(str, path), "kernel")): for_layer(layer)
        for path, layer in nnx.iter_modules(model)
        if isinstance(layer, known)
    }


def _numbers(leaves: Mapping[str, Any], values: Values | None) -> Iterator[tuple[str, Any]]:
    """Yield the parameters' paths and numbers, one at a time."""
    if values is None:
        held = [name for name, leaf in leaves.items() if not isinstance(leaf, _ABSTRACT)]
        yield from ((name, leaves[name]) for name in held)
        return
    if isinstance(values, Mapping):
        values = values.items()
    if not callable(values) and not isinstance(values, Iterable):
        raise TypeError(
            f"table: values is a {type(values).__name__}, expected a function from a path to an "
            "array, a dict, or pairs of both."
        )
    pairs = ((name, values(name)) for name in leaves) if callable(values) else iter(values)
    missing = dict.fromkeys(leaves)
    for name, array in pairs:
        if name not in leaves:
            raise ValueError(
                f"table: values hold {name!r}, which is not a parameter's path; expected some of "
                f"{', '.join(leaves)}."
            )
        if tuple(np.shape(array)) != tuple(leaves[name].shape):
            raise ValueError(
                f"table: the values of {name!r} have shape {np.shape(array)}, expected "
                f"{tuple(leaves[name].shape)}, as in the variables."
            )
        missing.pop(name, None)
        yield name, array if hasattr(array, "dtype") else np.asarray(array)
    if missing:
        raise ValueError(f"table: values lack {', '.join(missing)}; expected every parameter.")


_ABSTRACT = (jax.ShapeDtypeStruct, jax.core.Tracer)


def _audited(
    described: Mapping[str, Parameter],
    rules: Mapping[str, Declared],
    numbers: Iterable[tuple[str, Any]],
) -> tuple[dict[str, Audited], list[Finding]]:
    """Return every parameter with its statistics, and the findings about single parameters."""
    depth = sum(p.stacked for p in described.values() if p.branch == "last")
    has_slopes = any(p.role == "slope" for p in described.values())
    draws = comparisons.Draws()
    audited: dict[str, Audited] = {}
    mistakes: list[Finding] = []
    for name, leaf in numbers:
        parameter = described[name]
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or not leaf.size:
            mistakes += findings.wrong_type(parameter, str(leaf.dtype)) if leaf.size else ()
            continue
        array = np.asarray(leaf)
        measured = statistics.measure(array)
        fitted = _fit(array, measured, parameter, depth, has_slopes)
        audited[name] = Audited(parameter, rules.get(name), measured, fitted)
        mistakes += findings.about_one(audited[name], array)
        if not measured.nonfinite:
            mistakes += draws.add(parameter, array)
    return audited, mistakes


def _fit(
    array: NDArray[Any],
    measured: Statistics,
    parameter: Parameter,
    depth: int,
    has_slopes: bool,
) -> Fit:
    if parameter.role == "kernel" and not measured.nonfinite and not measured.is_constant:
        gain = fit.orthogonal(array, parameter.out_axes, parameter.stack_axes)
        if gain is not None:
            return Fit(f"orthogonal, gain {gain:.4g}", 1.0)
    return fit.best(measured, candidates.possible(parameter, depth, has_slopes))


def _mask(model: Any, function: models.Model, state: Any, decays: Any) -> dict[str, bool]:
    """Return which parameters decay, by path.

    A mask may be a prefix of the parameters' tree, as for `optax.masked`.
    """
    flags = jax.tree.leaves(decays)
    if not flags or not all(isinstance(flag, bool | np.bool_) for flag in flags):
        if not callable(decays):
            kinds = ", ".join(sorted({type(flag).__name__ for flag in flags})) or "nothing"
            raise ValueError(f"table: the mask in decays holds {kinds}, expected bools.")
        return _mask(model, function, state, decays(_tree(model, function, state)))
    paths = jax.tree_util.tree_leaves_with_path(decays)
    given = {
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"): bool(flag)
        for path, flag in paths
    }
    names = list(function.parameters(state))
    mask = {name: flag for name in names for prefix, flag in given.items() if _under(name, prefix)}
    strange = [prefix for prefix in given if not any(_under(name, prefix) for name in names)]
    missing = [name for name in names if name not in mask]
    if strange or missing:
        difference = f"names {', '.join(strange)}" if strange else f"lacks {', '.join(missing)}"
        raise ValueError(
            "table: the mask in decays has another structure than the parameters: it "
            f"{difference}; expected a bool for each of {', '.join(names)}."
        )
    return mask


def _under(name: str, prefix: str) -> bool:
    return not prefix or name == prefix or name.startswith(f"{prefix}/")


def _tree(model: Any, function: models.Model, state: Any) -> Any:
    """Return the parameters in the form that an optimiser receives."""
    if isinstance(model, nnx.Module):
        return nnx.state(model, nnx.Param)
    if isinstance(function, models.Linen):
        return state["params"]
    if isinstance(function, models.Haiku):
        return state[0] if function.has_state else state
    return function.tree(state) if isinstance(function, models.Pytree) else state


def _row(parameter: Parameter, rule: Declared | None, audited: Audited | None) -> Row:
    measured, fitted = (audited.measured, audited.fit) if audited else (None, None)
    return Row(
        parameter=parameter.name,
        shape=parameter.shape,
        role=parameter.role,
        rule=rule.describe() if rule else "?",
        fan_in=parameter.fan_in,
        fan_out=parameter.fan_out,
        std=rule.std if rule else None,
        measured_std=measured.std if measured else None,
        mean=measured.mean if measured else None,
        largest=measured.largest / measured.std if measured and measured.std else None,
        fits=str(fitted) if fitted else None,
        confidence=fitted.confidence if fitted and fitted.decided else None,
    )
