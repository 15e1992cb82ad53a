"""Which layers of a model are to be calibrated, and why the others are not."""

import dataclasses
import functools
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from prelu_jax import initializers
from prelu_jax.datadep.walk import Layer
from prelu_jax.initializers import Layout
from prelu_jax.signal import batches, calls, checks
from prelu_jax.signal.calls import FlaxModel
from prelu_jax.signal.coverage import percent
from prelu_jax.signal.sites import Visit
from prelu_jax.tracing import models


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A weight that a calibration leaves as it is.

    Attributes:
        parameter: its path.
        why: the reason.
    """

    parameter: str
    why: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """A model made ready to be calibrated.

    Attributes:
        model: as calibration sees it.
        layers: the layers to be calibrated, in the order of execution.
        skipped: the weights that are left as they are.
    """

    model: FlaxModel
    layers: tuple[Layer, ...]
    skipped: tuple[Skipped, ...]


def make(
    model: Any,
    variables: Any,
    batch: Any,
    only: str | None = None,
    except_: str | None = None,
    rngs: Mapping[str, jax.Array] | None = None,
    call_kwargs: Mapping[str, Any] | None = None,
    axis_name: str | None = None,
    batch_size: int | None = None,
) -> Plan:
    """Finds the layers by abstract passes; computes and compiles nothing.

    Args:
        model, variables, batch, rngs, call_kwargs, axis_name, batch_size: as `signal.prepare`.
        only: a regular expression, searched for in the paths of kernels, unseen weights too:
            calibrate those alone.
        except_: one that keeps kernels as they are.

    Raises:
        TypeError, ValueError: as `signal.prepare`; a batch of one example; a pattern that is no
            string or no regular expression, or matches no kernel; no layer left; weights that the
            model uses where no layer is measured (`signal.Coverage`).
    """
    batches.check_keys(rngs)
    shapes = jax.tree.map(_shape, (variables, batches.carried(batch), rngs))
    leaves, structure = jax.tree.flatten(shapes)
    options = tuple(sorted((call_kwargs or {}).items()))
    given = (model, tuple(leaves), structure, only, except_, options, axis_name, batch_size)
    if isinstance(model, nnx.Module) or not checks.is_hashable(given):
        return _make(*given)  # an NNX model is one object, whatever becomes of it
    return _remembered(*given)


def _shape(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "dtype") else leaf


def _make(
    model: Any,
    leaves: tuple[Any, ...],
    structure: Any,
    only: str | None,
    except_: str | None,
    options: tuple[tuple[str, Any], ...],
    axis_name: str | None,
    batch_size: int | None,
) -> Plan:
    variables, batch, rngs = jax.tree.unflatten(structure, leaves)
    seen = calls.see(
        model, variables, batch,
        rngs=rngs, call_kwargs=dict(options), batch_size=batch_size, axis_name=axis_name,
    )  # fmt: skip
    if seen.examples.number < 2 and axis_name is None:
        raise ValueError(
            "the batch is a single example, expected two or more: the spread of an output over "
            "examples is what is set to 1. A few dozen are enough (Krähenbühl et al. 2015). Found: "
            f"{seen.examples.chosen}; batch_size=... sets another."
        )
    _, state = models.of(model, variables)
    parameters = seen.view.parameters(state)
    unseen = {weight.parameter: weight.why for weight in seen.coverage.unseen}
    kernels = [*seen.kernels, *unseen, *seen.coverage.unused]
    excluded = _excluded(list(dict.fromkeys(kernels)), only, except_)
    _check_seen(seen, unseen, excluded)
    layers: dict[str, Layer] = {}
    skipped = {name: f"{excluded[name]}; {why}" for name, why in unseen.items()}
    skipped |= dict.fromkeys(seen.coverage.unused, "not used by the model")

    def observe(visit: Visit) -> jax.Array:
        name = visit.site.parameter
        why = excluded.get(name) or _unfit(visit, parameters)
        if why:
            skipped[name or visit.site.path] = why
        elif name in layers:
            layers[name] = dataclasses.replace(layers[name], calls=layers[name].calls + 1)
        else:
            layers[name] = _layer(visit, parameters)
        return visit.y

    def run(state: Any, batch: Any, rngs: Any) -> None:
        layers.clear()
        args, kwargs = batches.arguments(batch, seen.call_kwargs)
        seen.view.run(state, args, kwargs, rngs, observe)

    checks.traced(run, axis_name, state, batch, rngs, bound=seen.bound_axes)
    if not layers:
        reasons = "; ".join(f"{name}: {why}" for name, why in skipped.items())
        raise ValueError(f"no layer is left to be calibrated. {reasons}.")
    return Plan(seen, tuple(layers.values()), tuple(Skipped(*item) for item in skipped.items()))


# Like a compiled program: to calibrate an equal model again traces nothing.
_remembered = functools.lru_cache(maxsize=32)(_make)


def _check_seen(model: FlaxModel, unseen: Mapping[str, str], excluded: Mapping[str, str]) -> None:
    """Check that every weight that the model uses is seen, or left out by the user."""
    left = [name for name in unseen if name not in excluded]
    if not left:
        return
    reasons = "; ".join(f"{name}: {unseen[name]}" for name in left)
    raise ValueError(
        f"{', '.join(left)}: called inside scan, remat, vmap, jit or cond, multiplied by hand, or "
        "complex, where an output cannot be corrected before the next layer sees it "
        f"({percent(1 - model.coverage.share)} of the weights). Calibrate the model without "
        "that transformation and put the parameters back, or leave these as they are with "
        f"except_={'|'.join(re.escape(name) for name in left)!r}. Where they are: {reasons}."
    )


def _excluded(kernels: Collection[str], only: str | None, except_: str | None) -> dict[str, str]:
    """Kernel path -> why a pattern leaves it out."""
    excluded: dict[str, str] = {}
    for option, pattern in (("only", only), ("except_", except_)):
        if pattern is None:
            continue
        if not isinstance(pattern, str):
            raise TypeError(f"{option} is {pattern!r}, expected a regular expression as a str.")
        try:
            found = {name for name in kernels if re.search(pattern, name)}
        except re.error as error:
            raise ValueError(f"{option} is {pattern!r}, no regular expression: {error}.") from error
        if not found:
            raise ValueError(
                f"{option} is {pattern!r}, which matches none of the kernels: {', '.join(kernels)}."
            )
        out = found if option == "except_" else set(kernels) - found
        excluded |= dict.fromkeys(sorted(out), f"left out by {option}={pattern!r}")
    return excluded


def _unfit(visit: Visit, parameters: Mapping[str, jax.Array]) -> str | None:
    """Why a layer cannot be calibrated; None if it can."""
    if visit.site.kind.startswith("Embed"):
        return "a table of embeddings"
    if visit.site.parameter not in parameters:
        return "its kernel is not one of the model's parameters"
    if not jnp.issubdtype(visit.y.dtype, jnp.floating):
        return f"its output is {visit.y.dtype}"
    return None


def _layer(visit: Visit, parameters: Mapping[str, jax.Array]) -> Layer:
    site = visit.site
    bias = f"{site.parameter.rpartition('/')[0]}/bias".removeprefix("/")
    return Layer(
        site=site,
        calls=1,
        bias=bias if bias in parameters else None,
        channels=tuple(visit.y.shape[axis] for axis in site.channel_axes),
        dtype=visit.y.dtype.name,
        layout=_layout(visit, parameters[site.parameter].ndim),
    )


def _layout(visit: Visit, ndim: int) -> Layout:
    try:
        return initializers.for_layer(visit.layer)
    except TypeError:
        outputs = visit.site.kernel_axes
        inputs: Sequence[int] = [i - ndim for i in range(ndim) if i - ndim not in outputs]
        if isinstance(visit.layer, nn.ConvLocal):  # a kernel of its own at every position
            return Layout(batch_axis=tuple(inputs[:-1]))
        return Layout(in_axis=tuple(inputs), out_axis=outputs)
