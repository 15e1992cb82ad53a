"""What is measured in a model: one forward and one backward pass, reduced on the device.

At every call of an affine layer y = W x + b, in execution order: moments of x, of y and of the
gradient Δy = ∂objective/∂y (He et al. 2015, §2.2), and the rate at which W would change
(Krähenbühl et al. 2015). No activation is kept for it beyond what the backward pass keeps anyway.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from prelu_jax.signal import checks, measurement, moments
from prelu_jax.signal.measurement import Call, Measurement
from prelu_jax.signal.sites import Site, Visit
from prelu_jax.signal.taps import View, view

Loss = Callable[[Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class Probe:
    """A measurement made ready by `prepare`: `statistics` on the device, `read` on the host.

    To measure again and again, keep the probe and one ``jax.jit(probe.statistics)``.

    Probes of equal models, shapes and options are equal, and hash if the model and options do.

    Attributes:
        view: how it sees the model.
        calls: the calls of affine layers, in execution order.
        kinds, unseen: as those of a `Measurement`.
        hidden: kernels of layers that are called inside `scan`, `remat`, `vmap`, `jit` or `cond`.
        batch_size: the number of examples on one device.
        loss, weight_decay, axis_name: as given to `prepare`.
        call_kwargs: the keywords of the call, in pairs.
    """

    view: View
    calls: tuple[Call, ...]
    kinds: tuple[str, ...]
    unseen: tuple[str, ...]
    hidden: tuple[str, ...]
    batch_size: int
    loss: Loss | None
    weight_decay: float
    call_kwargs: tuple[tuple[str, Any], ...]
    axis_name: str | None

    def statistics(
        self,
        variables: Any,
        batch: Any,
        key: jax.Array | None = None,
        rngs: Mapping[str, jax.Array] | None = None,
    ) -> Any:
        """One forward and one backward pass; pure, to be jitted or, with an axis name, pmapped.

        Args:
            variables: a Linen model's variables; `nnx.state` of an NNX model.
            batch: in the shapes that `prepare` saw.
            key: draws the noise; `jax.random.key(0)` by default. The same on every device.
            rngs: keys of the model's random streams.

        Returns:
            A pytree of small float32 arrays for `read`, the same on every device.

        Raises:
            ValueError: another batch size than the one prepared for.
        """
        if checks.batch_size_of(batch) != self.batch_size:
            raise ValueError(
                f"the batch has {checks.batch_size_of(batch)} examples, but the probe was prepared "
                f"for {self.batch_size}; prepare another probe for other shapes."
            )
        parameters = self.view.parameters(variables)
        used = {call.site.parameter for call in self.calls if call.kernel_shape is not None}
        kernels = {name: parameters[name] for name in sorted(used)}
        sinks = [moments.sink(call.shape, call.site.channel_axes) for call in self.calls]
        noise_key = jax.random.key(0) if key is None else key

        def objective(kernels: Any, sinks: Any) -> tuple[jax.Array, Any]:
            forward: list[dict[str, jax.Array]] = []

            def observe(visit: Visit) -> jax.Array:
                x, y = jax.lax.stop_gradient((visit.x, visit.y))
                forward.append(self._forward(visit.site, x, y))
                return moments.tap(visit.y, sinks[len(forward) - 1], visit.site.channel_axes)

            exchanged = self.view.replace(variables, kernels)
            outputs = self.view.call(
                exchanged, checks.args_of(batch), dict(self.call_kwargs), rngs, observe
            )
            return self._objective(outputs, noise_key), forward

        (value, forward), (gradients, at_outputs) = jax.value_and_grad(
            objective, argnums=(0, 1), has_aux=True
        )(kernels, sinks)
        gradients, value = moments.psum((gradients, value), self.axis_name)
        backward = [moments.combine(local, self.axis_name) for local in at_outputs]
        return {
            "rows": _stacked(forward),
            "gradients": _stacked([moments.summarised(local) for local in backward]),
            "kernels": jax.tree.map(moments.scaled, kernels),
            "kernel_gradients": jax.tree.map(moments.scaled, gradients),
            "objective": value,
        }

    def _forward(self, site: Site, x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
        # An embedding's input is the number of a row: there is nothing to measure in it.
        x = jnp.full((1, 1), jnp.nan) if site.looks_up else x
        of_x = moments.of_input(x, self.axis_name)
        of_y = moments.of_output(y, site.channel_axes, self.batch_size, self.axis_name)
        return of_y | {f"input_{name}": value for name, value in of_x.items()}

    def _objective(self, outputs: Any, key: jax.Array) -> jax.Array:
        """This device's part of what is differentiated: the sum over devices is the whole."""
        if self.loss is not None:
            devices = 1 if self.axis_name is None else jax.lax.axis_size(self.axis_name)
            return jnp.asarray(self.loss(outputs), jnp.float32) / devices
        floats = [
            jnp.asarray(y, jnp.float32) for y in jax.tree.leaves(outputs) if checks.is_float(y)
        ]
        noise = moments.gaussian_like(key, floats, self.batch_size, self.axis_name)
        # ℓ(z) = ηᵀ z: the gradient at the outputs is η itself.
        return jnp.sum(jnp.stack([jnp.vdot(n, y) for n, y in zip(noise, floats, strict=True)]))

    def read(self, raw: Any) -> Measurement:
        """The measurement in Python floats, from what `statistics` returned on one device."""
        raw = jax.device_get(raw)
        rms = {
            which: {name: moments.second_moment(*pair) ** 0.5 for name, pair in raw[which].items()}
            for which in ("kernels", "kernel_gradients")
        }
        decay = self.weight_decay or None
        layers = []
        for i, call in enumerate(self.calls):
            of_row, of_gradient = (
                {name: values[i] for name, values in raw[which].items()}
                for which in ("rows", "gradients")
            )
            kernel, gradient = (rms[which].get(call.site.parameter) for which in rms)
            layers.append(measurement.row(call, of_row, of_gradient, kernel, gradient, decay))
        loss = None if self.loss is None else float(raw["objective"])
        return Measurement(tuple(layers), self.kinds, self.unseen, loss)


def _stacked(rows: list[dict[str, jax.Array]]) -> dict[str, jax.Array]:
    return jax.tree.map(lambda *values: jnp.stack(values), *rows)


def prepare(
    model: Any,
    variables: Any,
    batch: Any,
    *,
    loss: Loss | None = None,
    weight_decay: float = 0.0,
    rngs: Mapping[str, jax.Array] | None = None,
    call_kwargs: Mapping[str, Any] | None = None,
    axis_name: str | None = None,
) -> Probe:
    """Finds the calls of affine layers by abstract passes; computes and compiles nothing.

    Args:
        model, variables, batch, loss, weight_decay, rngs, call_kwargs: as `measure`; of arrays
            only the shapes count, so that `jax.ShapeDtypeStruct` will do, and so will tracers.
        axis_name: the axis of devices over which `Probe.statistics` is to be pmapped. The batch
            is then one device's part, the loss a mean over it, and every device has as many
            examples as the others; the measurement is that of the whole batch.

    Raises:
        TypeError, ValueError: as `measure`.
    """
    if weight_decay < 0:
        raise ValueError(f"weight_decay is {weight_decay}, expected 0 (none) or more.")
    if weight_decay > 0 and loss is None:
        raise ValueError(
            f"weight_decay is {weight_decay}, but there is no loss whose gradient it could be "
            "compared with; give a loss, or leave weight_decay out."
        )
    seen = view(model)
    state = variables_of(model, variables)
    parameters = {k: v for k, v in seen.parameters(state).items() if checks.is_float(v)}
    batch_size = checks.batch_size_of(batch)
    kwargs = dict(call_kwargs or {})
    calls: list[Call] = []

    def observe(visit: Visit) -> jax.Array:
        site, x, y = visit.site, visit.x, visit.y
        checks.check_batch_axis(site, x, batch)
        number = sum(call.site.path == site.path for call in calls)
        kernel = parameters.get(site.parameter)
        kernel_shape = None if kernel is None else kernel.shape
        # The cosine of two numbers is their sign: an example's output has to be a vector.
        has_examples = y.shape[:1] == (batch_size,) and y.size > batch_size > 1
        calls.append(Call(site, number, x.shape, y.shape, kernel_shape, has_examples))
        return y

    def run(state: Any, batch: Any, rngs: Any) -> Any:
        return seen.call(state, checks.args_of(batch), kwargs, rngs, observe, hidden)

    def collect(state: Any, batch: Any, rngs: Any) -> None:
        kinds.update(seen.kinds(state, checks.args_of(batch), kwargs, rngs))

    hidden: set[str] = set()
    outputs = checks.abstractly(run, axis_name, state, batch, rngs)
    checks.check_objective(outputs, loss, axis_name)
    kinds: set[str] = set()
    checks.abstractly(collect, axis_name, state, batch, rngs)
    unseen = checks.unseen(parameters, [call.site for call in calls])
    if not calls:
        raise ValueError(checks.nothing_to_measure(kinds, unseen))
    options = tuple(sorted(kwargs.items()))
    return Probe(
        seen, tuple(calls), tuple(sorted(kinds)), unseen, tuple(sorted(hidden)),
        batch_size, loss, weight_decay, options, axis_name,
    )  # fmt: skip


def measure(
    model: Any,
    variables: Any,
    batch: Any,
    *,
    loss: Loss | None = None,
    weight_decay: float = 0.0,
    key: jax.Array | None = None,
    rngs: Mapping[str, jax.Array] | None = None,
    call_kwargs: Mapping[str, Any] | None = None,
) -> Measurement:
    """Measures every affine layer of an unmodified Linen or NNX model, forward and backward.

    One jitted pass. Dense, DenseGeneral, Einsum, Conv, ConvLocal, ConvTranspose and Embed are
    measured, their NNX kin, subclasses, and those inside attention; what else has a kernel, or
    cannot be seen inside, is in `Measurement.unseen`. The model and its variables stay as they
    are: updates of BatchNorm, of counters and of NNX's random streams are dropped.

    Args:
        model: a Linen or NNX model.
        variables: a Linen model's variables; None for NNX.
        batch: the model's first argument, or a tuple of its positional arguments: pytrees of
            arrays, of which the first has the examples along its first axis.
        loss: from the model's outputs to a scalar. Without it the objective is ⟨η, outputs⟩ with
            independent standard normal η for every example, so that the cotangent of the outputs,
            any pytree of float arrays, is η (Krähenbühl et al. 2015: no labels needed).
        weight_decay: coefficient λ of the term λ W that the optimiser adds to ∂loss/∂W. It takes
            a loss.
        key: draws η; `jax.random.key(0)` by default.
        rngs: keys of the model's random streams, e.g. {'dropout': key}. An NNX model's own streams
            go on where these do not name them.
        call_kwargs: keywords of the call, e.g. {'train': True}.

    Raises:
        TypeError: the model is neither Linen nor NNX, or the batch holds what is no array.
        ValueError: no 'params'; an empty batch or one without a batch axis; integers reach a layer
            that expects floats; no float output; a loss that is not a scalar; a negative
            weight_decay; no layer that can be measured. All before anything is compiled.
    """
    probe = prepare(
        model, variables, batch,
        loss=loss, weight_decay=weight_decay, rngs=rngs, call_kwargs=call_kwargs,
    )  # fmt: skip
    state = variables_of(model, variables)
    return probe.read(_compiled(probe)(state, batch, key, rngs))


# Compiled once for equal probes without a loss: to measure a model again costs one pass.
_statistics = jax.jit(Probe.statistics, static_argnums=0)


def _compiled(probe: Probe) -> Callable[..., Any]:
    # A loss may close over labels that are others the next time.
    if probe.loss is not None or not checks.is_hashable(probe):
        return jax.jit(probe.statistics)
    return functools.partial(_statistics, probe)


def variables_of(model: Any, variables: Any) -> Any:
    """What `Probe.statistics` takes: a Linen model's variables, an NNX model's state.

    Raises:
        ValueError: variables beside an NNX model, which holds its own.
    """
    if not isinstance(model, nnx.Module):
        return variables
    if variables is not None:
        raise ValueError("an NNX model holds its own variables; expected variables=None.")
    return nnx.state(model)
