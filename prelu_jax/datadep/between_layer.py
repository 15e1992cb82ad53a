"""Between-layer normalisation (Krähenbühl et al. 2015, Algorithm 2)."""

import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prelu_jax import axes as axes_lib
from prelu_jax.datadep import symmetries
from prelu_jax.datadep.layers import Layer
from prelu_jax.datadep.methods import check_type
from prelu_jax.datadep.report import BetweenRow, BetweenStage
from prelu_jax.datadep.session import Session
from prelu_jax.datadep.symmetries import RescalingSymmetries
from prelu_jax.signal import checks, reductions
from prelu_jax.signal.preparation import Prepared

_SLOWEST = 0.9  # of the promised progress: with less, the rest cannot be removed


@dataclasses.dataclass(frozen=True)
class BetweenLayer:
    """Set every kernel's rate of change C̃_k to the same value, and keep the model's function.

    C̃_k is the gradient of a random linear loss of the outputs, drawn independently for every
    example, over the kernel: root mean squares of both. W_k ← f_k W_k with
    f_k = (C̃_k / C̃)^(α/2) and C̃ the geometric mean, which leaves the outputs of a homogeneous
    network alone, since Π f_k = 1; biases follow, each with the product of the factors up to its
    layer. The gradient of W_k is divided by f_k and C̃_k by f_k², so that α = 1 is exact in one step
    and each iteration leaves ``|1 − α|`` of the spread otherwise.

    Transcriptions of the paper's Algorithm 2 have r_k = (C̃ / C̃_k)^(α/2), the inverse (the print
    itself was not at hand). That must be an error: it multiplies the spread by 1 + α in each
    iteration. The authors' code has the direction used here.

    Beyond chains: of all rescalings of kernels and biases that leave the model's function as it is
    (`symmetries`), the one that makes the rates most equal. A branch of a residual sum keeps its
    scale, and so do the layers before a tanh.

    Attributes:
        alpha: the damping α, above 0 and below 2.
        tolerance: of the result: the part of the standard deviation of log C̃_k over layers that
            a further rescaling could remove.
    """

    alpha: float = 1.0
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        check_type(self, "alpha", numbers.Real)
        check_type(self, "tolerance", numbers.Real)
        if not 0 < self.alpha < 2:
            raise ValueError(
                f"between_layer: alpha is {self.alpha}, expected above 0 and below 2: beyond, "
                "every iteration widens the spread."
            )
        if not self.tolerance > 0:
            raise ValueError(f"between_layer: tolerance is {self.tolerance}, expected above 0.")


@dataclasses.dataclass(frozen=True)
class _Rates:
    """The root mean squares of kernels and of their gradients under a random linear loss.

    Attributes:
        model: the model, made ready.
        kernels: the paths of kernels, and the axes that count the layers of a stack.
    """

    model: Prepared
    kernels: tuple[tuple[str, tuple[int, ...]], ...]

    def __call__(self, replicated: Mapping[str, Any], batch: Any) -> Any:
        return self.model.bind(self._pass)(replicated, batch)

    def _pass(self, replicated: Mapping[str, Any], batch: Any) -> Any:
        model, variables = self.model, replicated["variables"]
        parameters = model.model.parameters(variables)
        kernels = {name: parameters[name] for name, _ in self.kernels}

        def loss(kernels: Any) -> jax.Array:
            outputs = model.outputs(variables, kernels, batch, replicated["rngs"])
            number = model.examples.number
            return reductions.noise_objective(outputs, replicated["key"], number, model.axis_name)

        gradients = reductions.psum(jax.grad(loss)(kernels), model.axis_name)

        def squares(values: jax.Array, axes: tuple[int, ...]) -> reductions.SecondMoments:
            return reductions.scaled(values, tuple(axis - values.ndim for axis in axes))

        return {
            name: (squares(kernels[name], axes), squares(gradients[name], axes))
            for name, axes in self.kernels
        }


class _Factors:
    """The parameters that get a factor, one for each layer of a stack.

    Attributes:
        kernels: the paths of the kernels, and the axes that count the layers of a stack.
        biases: the same for the biases.
    """

    def __init__(self, session: Session) -> None:
        plan = session.plan
        self.places = plan.places
        self.parameters = session.parameters
        self.kernels: dict[str, tuple[int, ...]] = {}
        self.biases: dict[str, tuple[int, ...]] = {}
        for layer in plan.layers:
            if not layer.follows:
                self.kernels[layer.parameter] = ()
                continue
            places = plan.places[layer.number]
            for name in places.channels:
                self.kernels[name] = places.axes(name) or ()
            for name in places.bias:
                self.biases[name] = places.axes(name) or ()

    @property
    def axes(self) -> dict[str, tuple[int, ...]]:
        """The axes of all of them."""
        return {**self.kernels, **self.biases}

    def names(self, parameter: str) -> list[str]:
        """Return a name for every layer that has a part of a parameter."""
        shape = self.parameters[parameter].shape
        return symmetries.entries(parameter, [shape[axis] for axis in self.axes[parameter]])

    def of_layer(self, layer: Layer) -> list[str]:
        """Return the name of the kernel of every layer of a stack."""
        names = self.names(layer.parameter)
        if len(names) == 1:  # of them all
            return names * len(layer.order)
        steps = self.places[layer.number].steps[layer.parameter]
        return [names[i] for i in np.argsort(steps, axis=None)]

    def times(self, logs: Mapping[str, float]) -> dict[str, jax.Array]:
        """Return the parameters times the factors, whose logs are given by name."""
        return {
            name: self._times(value, axes, [logs.get(each, 0.0) for each in self.names(name)])
            for name, axes in self.axes.items()
            for value in (self.parameters[name],)
        }

    def _times(self, values: jax.Array, axes: Sequence[int], logs: Sequence[float]) -> jax.Array:
        shape = [size if i in axes else 1 for i, size in enumerate(values.shape)]
        return values * jnp.asarray(np.exp(logs).reshape(shape), values.dtype)


def run(session: Session, method: BetweenLayer) -> tuple[Session, BetweenStage]:
    """Return the session with the rates of change made equal, and a record of it.

    Raises:
        ValueError: no layer has a rate: kernels, or the gradients there, are zero or not finite.
    """
    factors = _Factors(session)
    biases = [name for bias in factors.biases for name in factors.names(bias)]
    allowed = _symmetries(session, factors)
    log_rates = _log_rates(session, factors)
    if not log_rates:
        raise ValueError(
            "between_layer: no layer has a rate of change: the gradient that comes back from the "
            "outputs, or the kernels, are zero or not finite. pj.diagnose says where."
        )
    total = {name: 0.0 for kernel in factors.kernels for name in factors.names(kernel)}
    first, removable = log_rates, [np.inf]
    while True:
        halves = {name: rate / 2 for name, rate in log_rates.items()}
        log_factors = allowed.project(halves, biases)  # the full step, α = 1
        removable.append(2 * float(np.std([log_factors[name] for name in log_rates])))
        promised = 1 - _SLOWEST * min(method.alpha, 2 - method.alpha)
        if removable[-1] <= method.tolerance or removable[-1] > promised * removable[-2]:
            break
        log_factors = {name: method.alpha * value for name, value in log_factors.items()}
        session = session.replace(_Factors(session).times(log_factors))
        total = {name: value + log_factors.get(name, 0.0) for name, value in total.items()}
        log_rates = _log_rates(session, factors)
    fixed = allowed.fixed(list(first), biases)
    rows = {}
    for layer in session.plan.layers:
        parts = zip(layer.order, layer.names(), factors.of_layer(layer), strict=True)
        for place, shown, name in parts:
            rows[place] = BetweenRow(
                layer=shown,
                parameter=layer.parameter,
                factor=math.exp(total[name]),
                rate_before=math.exp(first[name]) if name in first else math.nan,
                rate_after=math.exp(log_rates[name]) if name in log_rates else math.nan,
                held=name in fixed,
            )
    ordered = tuple(rows[place] for place in sorted(rows))
    return session, BetweenStage(method, ordered, len(removable) - 2, tuple(removable[1:]))


def _symmetries(session: Session, factors: _Factors) -> RescalingSymmetries:
    """Return the rescalings that the model allows, read off one abstract call of it."""
    model = session.plan.model

    def call(parameters: Any, batch: Any) -> Any:
        return model.outputs(session.variables, parameters, batch, session.rngs)

    names = model.bound_axes if model.axis_name is None else (model.axis_name,)
    stacks = {name: axes for name, axes in factors.axes.items() if axes}
    bound = axes_lib.bind(call, names)
    return symmetries.find(bound, session.parameters, session.part, stacks=stacks)


def _log_rates(session: Session, factors: _Factors) -> dict[str, float]:
    """Return log C̃_k by kernel's name, of the layers that have one."""
    kernels = tuple(sorted(factors.kernels.items()))
    model = session.plan.model
    with checks.differentiable(model.coverage):
        squares = jax.device_get(session.compute(_Rates(model, kernels)))
    rates = {}
    for kernel, _ in kernels:
        (scale, of_kernel), (unit, of_gradient) = squares[kernel]
        parts = zip(factors.names(kernel), of_kernel, of_gradient, strict=True)
        for name, kernel_square, gradient_square in parts:
            size = reductions.second_moment(scale, kernel_square)
            change = reductions.second_moment(unit, gradient_square)
            if 0 < size < math.inf and 0 < change < math.inf:
                rates[name] = 0.5 * math.log(change / size)
    return rates
