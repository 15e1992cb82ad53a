"""The measurement of a model: one forward and one backward pass, reduced on the device.

At every affine operation y = W x + b of the model's jaxpr, in execution order: moments of x, of y
and of the gradient Δy = ∂objective/∂y (He et al. 2015, §2.2), and the rate at which W would change
(Krähenbühl et al. 2015). For the backward pass only the outputs y are kept; the activations between
them are computed again.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from prelu_jax import compiling
from prelu_jax.signal import batches, checks, expected, preparation, reductions, rows, split, taps
from prelu_jax.signal.measurement import Measurement
from prelu_jax.signal.preparation import Prepared
from prelu_jax.signal.rows import Row
from prelu_jax.tracing import Operation, Visit, models

Loss = Callable[[Any], jax.Array]

# The backward pass computes everything else again from the operations' outputs.
_OUTPUT = "output of an affine operation"
_POLICY = jax.checkpoint_policies.save_only_these_names(_OUTPUT)


@dataclasses.dataclass(frozen=True)
class Probe:
    """A measurement made ready by `prepare`: `statistics` on the device, `read` on the host.

    To measure again and again, keep the probe and one ``jax.jit(probe.statistics)``.

    Probes of equal models, shapes and options are equal, and hash if the model and options do.

    Attributes:
        model: the model, made ready.
        rows: the calls of affine layers, in execution order.
        leading: the leading size of every array of the batch.
        loss, weight_decay: as given to `prepare`.
    """

    model: Prepared
    rows: tuple[Row, ...]
    leading: tuple[int | None, ...]
    loss: Loss | None
    weight_decay: float

    @property
    def batch_size(self) -> int:
        """The number of examples on one device."""
        return self.model.examples.number

    @property
    def axis_name(self) -> str | None:
        """The axis of devices over which `statistics` is to be pmapped."""
        return self.model.axis_name

    def statistics(
        self,
        variables: Any,
        batch: Any,
        key: jax.Array | None = None,
        rngs: Mapping[str, jax.Array] | None = None,
    ) -> Any:
        """Run one forward and one backward pass; pure, to be jitted or, with an axis name, pmapped.

        Args:
            variables: the model's state: a Linen model's variables, `nnx.state` of an NNX model.
            batch: in the shapes that `prepare` saw.
            key: draws the noise; `jax.random.key(0)` by default. The same on every device.
            rngs: keys of the model's random streams.

        Returns:
            A pytree of small float32 arrays for `read`, the same on every device.

        Raises:
            ValueError: another batch size than the one prepared for.
        """
        batch = batches.carried(batch)
        batches.check(batch)
        batches.check_as_prepared(batch, self.leading, self.batch_size)
        return self.model.bind(self._statistics)(variables, batch, key, rngs)

    def _statistics(self, state: Any, batch: Any, key: Any, rngs: Any) -> Any:
        # Traced here too, where the axes of devices have their true sizes.
        program = self.model.program(state, batch, rngs)
        parameters, others = self.model.model.parameters(state), (state, rngs)
        noise_key = jax.random.key(0) if key is None else key
        operations = program.operations
        used = {name for operation in operations for name in operation.parameters}
        kernels = {  # only float parameters have a gradient
            name: parameters[name]
            for name in sorted(used & set(parameters))
            if checks.is_float(parameters[name])
        }
        sinks = {operation.number: taps.sinks(operation) for operation in operations}

        recompute = not program.has_effects  # they would be repeated
        observe = functools.partial(self._observe, name_output=recompute)

        def objective(kernels: Any, sinks: Any) -> tuple[jax.Array, Any]:
            exchanged = {**parameters, **kernels}
            outputs, forward = program.run(exchanged, others, batch, observe, sinks)
            return self._objective(outputs, noise_key), forward

        if recompute:
            objective = jax.checkpoint(objective, policy=_POLICY)
        (value, forward), (gradients, at_outputs) = jax.value_and_grad(
            objective, argnums=(0, 1), has_aux=True
        )(kernels, sinks)
        gradients, value = reductions.psum((gradients, value), self.axis_name)

        def weights(kernels: Any) -> Any:
            return program.weights({**parameters, **kernels}, others, batch)

        # The change of W when its parameters follow their gradients. Where W is a view of the
        # parameters, this is the same view of the gradients.
        _, changes = jax.jvp(weights, (kernels,), (gradients,))
        return {
            "forward": forward,
            "backward": _each(operations, self._of_gradient, at_outputs),
            "changes": _each(operations, reductions.scaled, changes),
            "objective": value,
        }

    def _observe(self, visit: Visit, *, name_output: bool) -> tuple[jax.Array, dict[str, Any]]:
        x, weight, y = jax.lax.stop_gradient((visit.x, visit.weight, visit.y))
        channel_axes, of_input = visit.operation.channel_axes, visit.operation.input_channel_axes
        # A look-up's input is the number of a row: there is nothing to measure in it.
        x = jnp.full((1, 1), jnp.nan) if visit.operation.kind == "look-up" else x
        weights = expected.reader_weights(visit)
        of_x = reductions.of_channels(x, of_input, self.batch_size, self.axis_name, weights)
        record = {
            "x": of_x,
            "y": reductions.of_channels(
                y, channel_axes, self.batch_size, self.axis_name, stored=True
            ),
            "kernel": reductions.scaled(weight),
            "bias": expected.bias(visit),
            "for_unit_variance": expected.for_unit_variance(visit, of_x, self.axis_name),
            "has_operand_gradient": jnp.array(taps.has_operand_gradient(visit)),
            "ran": jnp.array(True),  # zeros, and so False, in a branch that does not run
        }
        name = functools.partial(checkpoint_name, name=_OUTPUT) if name_output else None
        return taps.observed(visit, name), record

    def _of_gradient(self, of_one_step: taps.Sinks) -> taps.Sinks:
        return taps.Sinks(*(reductions.of_all_devices(m, self.axis_name) for m in of_one_step))

    def _objective(self, outputs: Any, key: jax.Array) -> jax.Array:
        """Return this device's part of the objective: the sum over devices is the whole."""
        if self.loss is None:
            return reductions.noise_objective(outputs, key, self.batch_size, self.axis_name)
        devices = 1 if self.axis_name is None else jax.lax.axis_size(self.axis_name)
        return jnp.asarray(self.loss(outputs), jnp.float32) / devices

    def read(self, raw: Any) -> Measurement:
        """Return the measurement in Python floats, from `statistics` of one device."""
        raw = jax.device_get(raw)
        ran = [row for row in self.rows if row.records(raw)[0]["ran"]]
        names = {row.call.name for row in ran}
        layers = split.linked([row.read(raw, self.weight_decay, names) for row in ran])
        loss = None if self.loss is None else float(raw["objective"])
        measured = {name for row in ran for name in row.weights}
        idle = {name for row in self.rows for name in row.weights} - measured
        covered = self.model.coverage.without(idle, "a branch that did not run")
        return Measurement(layers, self.model.kinds, covered, loss, self.model.examples)


def _each(
    operations: Sequence[Operation], function: Callable[[Any], Any], values: Mapping[int, Any]
) -> dict[int, Any]:
    """Apply a function to each operation's value, at every step of the scans around it."""
    results = {}
    for operation in operations:
        of_steps = function
        for _ in operation.steps:
            of_steps = jax.vmap(of_steps)
        results[operation.number] = of_steps(values[operation.number])
    return results


def prepare(
    model: Any,
    variables: Any,
    batch: Any,
    *,
    loss: Loss | None = None,
    weight_decay: float = 0.0,
    rngs: Mapping[str, jax.Array] | None = None,
    call_kwargs: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    axis_name: str | None = None,
) -> Probe:
    """Find the calls of affine layers by an abstract pass; compute and compile nothing.

    Args:
        model, variables, batch, loss, weight_decay, rngs, call_kwargs, batch_size: as `measure`; of
            arrays only the shapes count, so that `jax.ShapeDtypeStruct` will do, and so will
            tracers.
        axis_name: the axis of devices over which `Probe.statistics` is to be pmapped. The batch
            is then one device's part, the loss a mean over it, and every device has as many
            examples as the others; the measurement is that of the whole batch. Without it, axes
            of devices that the model asks for are bound at size 1.

    Raises:
        TypeError, ValueError: as `measure`.
    """
    if not 0 <= weight_decay < math.inf:  # False for nan
        raise ValueError(f"weight_decay is {weight_decay}, expected a finite number, 0 for none.")
    if weight_decay > 0 and loss is None:
        raise ValueError(
            f"weight_decay is {weight_decay}, but there is no loss whose gradient it could be "
            "compared with; give a loss, or leave weight_decay out."
        )
    prepared, program, state = preparation.prepare(
        model, variables, batch,
        loss=loss, rngs=rngs, call_kwargs=call_kwargs, batch_size=batch_size, axis_name=axis_name,
    )  # fmt: skip
    parameters = prepared.model.parameters(state)
    calls = rows.of(program, parameters, prepared.examples.number)
    leading = batches.leading(batches.carried(batch))
    return Probe(prepared, calls, leading, loss, weight_decay)


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
    batch_size: int | None = None,
) -> Measurement:
    """Measure every affine operation of an unmodified model, forward and backward.

    One jitted pass. Every product of weights with data is measured, a matrix product, a convolution
    or a look-up, inside `scan`, `checkpoint`, `jit` and `cond` as well as outside: a row for each
    call and each step of a scan. Other weights are listed in `Measurement.not_measured`. The model
    and its variables stay as they are: updates of BatchNorm, of counters and of NNX's random
    streams are dropped.

    Args:
        model: a Linen or NNX module, Haiku's ``Transformed``, a callable pytree such as an Equinox
            module, or a function ``f(variables, *inputs)``.
        variables: of the model; None for NNX modules and callable pytrees, which hold their own.
        batch: the model's first argument, or a tuple of its positional arguments: pytrees of
            arrays, with the examples along the first axis; masks and the like need none. NNX
            models may take `nnx.Rngs`, caches and other NNX objects; they stay as they are.
        loss: from the model's outputs to a scalar. Without it the objective is ⟨η, outputs⟩ with
            independent standard normal η for every example, so that the cotangent of the outputs,
            any pytree of float arrays, is η (Krähenbühl et al. 2015: no labels needed).
        weight_decay: coefficient λ of the term λ W that the optimiser adds to ∂loss/∂W. It
            requires a loss.
        key: draws η; `jax.random.key(0)` by default.
        rngs: keys of the model's random streams, e.g. {'dropout': key}. An NNX model's own streams
            are used where these do not name them.
        call_kwargs: keywords of the call, e.g. {'train': True}.
        batch_size: the number of examples. By default the leading size of the outputs, if an array
            of the batch has it too, else that of most arrays of the batch
            (`Measurement.examples`).

    Raises:
        TypeError: the model is none of these, or the batch holds something else than arrays.
        ValueError: no 'params'; an empty batch or one without a batch axis; integers reach a layer
            that expects floats; no float output; a loss that is not a scalar; a negative
            weight_decay; no layer that can be measured. All before anything is compiled.
    """
    probe = prepare(
        model, variables, batch,
        loss=loss, weight_decay=weight_decay, rngs=rngs, call_kwargs=call_kwargs,
        batch_size=batch_size,
    )  # fmt: skip
    _, state = models.of(model, variables)
    with checks.differentiable(probe.model.coverage):
        raw = _compiled(probe)(state, batches.carried(batch), key, rngs)
    return probe.read(raw)


def _compiled(probe: Probe) -> Any:
    """Return `Probe.statistics`, compiled once for equal probes: measuring again costs one pass."""
    # A loss may close over labels that differ the next time.
    if probe.loss is not None or not checks.is_hashable(probe):
        return compiling.for_few_calls(probe.statistics)
    return functools.partial(compiling.for_few_calls(Probe.statistics, static_argnums=0), probe)
