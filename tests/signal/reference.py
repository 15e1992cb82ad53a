"""What a measurement must be, without taps: a perturbation added at every layer, pairs in loops."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

FIELDS = (
    *("mean", "var", "second_moment", "input_second_moment", "gradient_second_moment"),
    *("kernel_rms", "kernel_gradient_rms", "change_rate", "dead_fraction", "cosine"),
)


def by_hand(forward, params, x, objective):
    """Every call's (name, x, y, Δy) in execution order, the kernels' gradients, the objective."""
    shapes = []
    forward(params, x, lambda name, x, y: shapes.append(y.shape) or y)

    def run(perturbations, params):
        calls = []

        def at(name, x, y):
            y = y + perturbations[len(calls)]
            calls.append((name, x, y))
            return y

        return objective(forward(params, x, at)), calls

    zeros = [jnp.zeros(shape) for shape in shapes]
    value, vjp, calls = jax.vjp(run, zeros, params, has_aux=True)
    gradients, params_gradient = vjp(jnp.ones(()))
    return [(*call, g) for call, g in zip(calls, gradients, strict=True)], params_gradient, value


def expected(name, x, y, gradient, params, params_gradient, feature_axes):
    """One row, in double precision."""
    x, y, gradient, kernel, kernel_gradient = (
        np.asarray(a, np.float64)
        for a in (x, y, gradient, params[f"{name}/kernel"], params_gradient[f"{name}/kernel"])
    )
    rows = y.reshape(len(y), -1)
    cosines = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in itertools.permutations(rows, 2)
    ]
    channels = y.reshape(-1, int(np.prod(y.shape[-feature_axes:]))).T
    rms = np.sqrt(np.mean(kernel**2)), np.sqrt(np.mean(kernel_gradient**2))
    return {
        "mean": y.mean(),
        "var": y.var(),
        "second_moment": np.mean(y**2),
        "input_second_moment": np.mean(x**2),
        "gradient_second_moment": np.mean(gradient**2),
        "kernel_rms": rms[0],
        "kernel_gradient_rms": rms[1],
        "change_rate": rms[1] / rms[0],
        "dead_fraction": np.mean([all(value <= 0 for value in channel) for channel in channels]),
        "cosine": np.mean(cosines),
    }
