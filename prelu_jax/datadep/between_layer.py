"""Between-layer normalisation (Krähenbühl et al. 2015, Algorithm 2)."""

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prelu_jax import axes
from prelu_jax.datadep import homogeneity, options
from prelu_jax.datadep.homogeneity import Freedom
from prelu_jax.datadep.report import BetweenRow, BetweenStage
from prelu_jax.datadep.session import Session
from prelu_jax.signal import moments
from prelu_jax.signal.preparation import Prepared

_SLOWEST = 0.9  # of the promised progress: less means that the rest is not to be had


@dataclasses.dataclass(frozen=True)
class BetweenLayer:
    """Every kernel to the same rate of change C̃_k, the model's function kept.

    C̃_k is the gradient of a random linear loss of the outputs, drawn independently for every
    example, over the kernel: root mean squares of both. W_k ← f_k W_k with
    f_k = (C̃_k / C̃)^(α/2) and C̃ the geometric mean, which leaves the outputs of a homogeneous
    network alone, since Π f_k = 1; biases follow, each with the product of the factors up to its
    layer. The gradient of W_k is divided by f_k and C̃_k by f_k², so that α = 1 is exact in one step
    and each iteration leaves |1 − α| of the spread otherwise.

    Transcriptions of the paper's Algorithm 2 have r_k = (C̃ / C̃_k)^(α/2), the inverse (the print
    itself was not at hand). That cannot be meant: it multiplies the spread by 1 + α in each
    iteration. The authors' code has the direction used here.

    Beyond chains: of all rescalings of kernels and biases that leave the model's function as it is
    (`homogeneity`), the one that makes the rates most equal. A branch of a residual sum keeps its
    scale, and so does what feeds a tanh.

    Attributes:
        alpha: the damping α, above 0 and below 2.
        tolerance: the spread that is left, the standard deviation of log C̃_k over layers as far
            as a rescaling could remove it.
    """

    alpha: float = 1.0
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        options.check_type(self, "alpha", numbers.Real)
        options.check_type(self, "tolerance", numbers.Real)
        if not 0 < self.alpha < 2:
            raise ValueError(
                f"between_layer: alpha is {self.alpha}, expected above 0 and below 2: beyond, "
                "every iteration widens the spread."
            )
        if not self.tolerance > 0:
            raise ValueError(f"between_layer: tolerance is {self.tolerance}, expected above 0.")


@dataclasses.dataclass(frozen=True)
class _Rates:
    """The root mean squares of kernels and of their gradients under a random linear loss."""

    model: Prepared
    kernels: tuple[str, ...]

    def __call__(self, replicated: Mapping[str, Any], batch: Any) -> Any:
        return self.model.bind(self._pass)(replicated, batch)

    def _pass(self, replicated: Mapping[str, Any], batch: Any) -> Any:
        model, variables = self.model, replicated["variables"]
        parameters = model.model.parameters(variables)
        kernels = {name: parameters[name] for name in self.kernels}

        def loss(kernels: Any) -> jax.Array:
            outputs = model.outputs(variables, kernels, batch, replicated["rngs"])
            number = model.examples.number
            return moments.noise_objective(outputs, replicated["key"], number, model.axis_name)

        gradients = moments.psum(jax.grad(loss)(kernels), model.axis_name)
        return {
            name: (moments.scaled(kernel), moments.scaled(gradients[name]))
            for name, kernel in kernels.items()
        }


def step(log_rates: Mapping[str, float], freedom: Freedom, biases: list[str]) -> dict[str, float]:
    """log f of every kernel and bias: the full step, α = 1.

    Args:
        log_rates: log C̃_k by kernel path.
        freedom: which rescalings leave the model's function as it is.
        biases: the paths of the biases that follow.
    """
    return freedom.nearest({name: rate / 2 for name, rate in log_rates.items()}, biases)


def run(session: Session, method: BetweenLayer) -> tuple[Session, BetweenStage]:
    """The session with the rates of change made equal, and what was done.

    Raises:
        ValueError: no layer has a rate: kernels, or the gradients there, are zero or not finite.
    """
    layers = {layer.parameter: layer for layer in session.plan.layers}
    biases = [layer.bias for layer in session.plan.layers if layer.bias is not None]
    freedom = _freedom(session)
    log_rates = _log_rates(session)
    if not log_rates:
        raise ValueError(
            "between_layer: no layer has a rate of change: the gradient that comes back from the "
            "outputs, or the kernels, are zero or not finite. pj.diagnose says where."
        )
    total = dict.fromkeys(layers, 0.0)
    first, removable = log_rates, [np.inf]
    while True:
        log_factors = step(log_rates, freedom, biases)
        removable.append(2 * float(np.std([log_factors[name] for name in log_rates])))
        promised = 1 - _SLOWEST * min(method.alpha, 2 - method.alpha)
        if removable[-1] <= method.tolerance or removable[-1] > promised * removable[-2]:
            break
        log_factors = {name: method.alpha * value for name, value in log_factors.items()}
        parameters = session.parameters
        session = session.replace(
            {name: _times(parameters[name], value) for name, value in log_factors.items()}
        )
        total = {name: value + log_factors.get(name, 0.0) for name, value in total.items()}
        log_rates = _log_rates(session)
    held = freedom.held(list(first), biases)
    rows = tuple(
        BetweenRow(
            layer=layer.name,
            parameter=name,
            factor=math.exp(total[name]),
            rate_before=math.exp(first[name]) if name in first else math.nan,
            rate_after=math.exp(log_rates[name]) if name in log_rates else math.nan,
            held=name in held,
        )
        for name, layer in layers.items()
    )
    return session, BetweenStage(
        method, rows, session.plan.skipped, len(removable) - 2, tuple(removable[1:])
    )


def _freedom(session: Session) -> Freedom:
    """What rescalings the model allows, read off one abstract call of it."""
    model = session.plan.model

    def call(parameters: Any, batch: Any) -> Any:
        return model.outputs(session.variables, parameters, batch, session.rngs)

    names = model.bound_axes if model.axis_name is None else (model.axis_name,)
    return homogeneity.freedom(axes.bind(call, names), session.parameters, session.part)


def _log_rates(session: Session) -> dict[str, float]:
    """log C̃_k by kernel path, of the layers that have one."""
    kernels = tuple(sorted({layer.parameter for layer in session.plan.layers}))
    squares = jax.device_get(session.compute(_Rates(session.plan.model, kernels)))
    rates = {}
    for name in kernels:
        kernel, gradient = (moments.second_moment(*pair) for pair in squares[name])
        if 0 < kernel < math.inf and 0 < gradient < math.inf:
            rates[name] = 0.5 * math.log(gradient / kernel)
    return rates


def _times(values: jax.Array, log_factor: float) -> jax.Array:
    return values * jnp.asarray(math.exp(log_factor), values.dtype)
