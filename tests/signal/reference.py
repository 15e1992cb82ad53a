"""The expected measurement, without taps: a perturbation at every layer, pairs in loops."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np


def by_hand(forward, params, x, objective):
    """Every call's (name, x, y, Δy) in execution order, the parameters' gradient, the objective."""
    names, shapes = [], []

    def meet(name, x, y):
        names.append(name)
        shapes.append(y.shape)
        return y

    jax.eval_shape(lambda params: forward(params, x, meet), params)

    def run(perturbations, params):
        calls = []

        def at(name, x, y):
            y = y + perturbations[len(calls)]
            calls.append((x, y))
            return y

        return objective(forward(params, x, at)), calls

    @jax.jit
    def run_and_pull_back(params):
        zeros = [jnp.zeros(shape, jnp.float32) for shape in shapes]
        value, vjp, calls = jax.vjp(run, zeros, params, has_aux=True)
        return value, calls, *vjp(jnp.ones_like(value))

    value, calls, gradients, params_gradient = run_and_pull_back(params)
    rows = [(name, *c, g) for name, c, g in zip(names, calls, gradients, strict=True)]
    return rows, params_gradient, value


def expected(name, x, y, gradient, params, params_gradient, feature_axes):
    """One row, in double precision."""
    x, y, gradient, kernel, kernel_gradient = (
        np.asarray(a, np.float64)
        for a in (x, y, gradient, params[f"{name}/kernel"], params_gradient[f"{name}/kernel"])
    )

    def spread(array, axes):
        moments = np.mean(array.reshape(-1, int(np.prod(array.shape[-axes:]))) ** 2, axis=0)
        return np.var(moments, ddof=1) / np.mean(moments) ** 2

    def cosine(array):
        pairs = itertools.permutations(array.reshape(len(array), -1), 2)
        return np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs])

    is_conv = kernel.ndim == 4
    input_axes = 1 if is_conv else kernel.ndim - feature_axes
    inputs = x.reshape(-1, int(np.prod(x.shape[-input_axes:]))).T
    channels = y.reshape(-1, int(np.prod(y.shape[-feature_axes:]))).T
    rms = np.sqrt(np.mean(kernel**2)), np.sqrt(np.mean(kernel_gradient**2))
    numbers = {
        "mean": y.mean(),
        "var": y.var(),
        "second_moment": np.mean(y**2),
        "minimum": y.min(),
        "channel_spread": spread(y, feature_axes),
        "input_mean": x.mean(),
        "input_var": x.var(),
        "input_second_moment": np.mean(x**2),
        "input_minimum": x.min(),
        "input_channel_spread": spread(x, input_axes),
        "input_zero_fraction": np.mean([not channel.any() for channel in inputs]),
        "gradient_second_moment": np.mean(gradient**2),
        "gradient_channel_spread": spread(gradient, feature_axes),
        "kernel_rms": rms[0],
        "kernel_gradient_rms": rms[1],
        "change_rate": rms[1] / rms[0],
        "dead_fraction": np.mean([all(value <= 0 for value in channel) for channel in channels]),
        "cosine": cosine(y),
        "input_cosine": cosine(x),
    }
    known = {"path": name, "input_shape": x.shape, "shape": y.shape, "kernel_shape": kernel.shape}
    known |= {"channels": len(channels), "input_channels": len(inputs)}
    known["window"] = kernel.shape[:2] if is_conv else ()
    return known | {field: float(value) for field, value in numbers.items()}
