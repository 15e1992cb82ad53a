"""Data-dependent initialisation as in the papers: NumPy, float64, the whole net run again for
every layer; and the gradient by differences."""

import itertools

import numpy as np


def conv(p, name, x, at, strides=1):
    """'SAME' as XLA pads, window by window."""
    kernel = p[f"{name}/kernel"]
    windows = patches(x, kernel.shape[:2], strides)
    y = np.einsum("bhwijc,ijcd->bhwd", windows, kernel)
    return at(name, windows, y + p[f"{name}/bias"])


def patches(x, window, strides):
    sides, positions = [], []
    for size, k in zip(x.shape[1:3], window, strict=True):
        out = -(-size // strides)
        total = max((out - 1) * strides + k - size, 0)
        sides.append((total // 2, total - total // 2))
        positions.append([strides * i for i in range(out)])
    x = np.pad(x, ((0, 0), *sides, (0, 0)))
    found = np.empty((len(x), *map(len, positions), *window, x.shape[3]))
    for (i, top), (j, left) in itertools.product(*map(enumerate, positions)):
        found[:, i, j] = x[:, top : top + window[0], left : left + window[1]]
    return found


def dense(p, name, x, at):
    return at(name, x, x @ p[f"{name}/kernel"] + p[f"{name}/bias"])


def prelu(p, name, y):
    return np.where(y > 0, y, p[f"{name}/negative_slope"] * y)


def relu(y):
    return np.maximum(y, 0)


def cnn(p, x, at):
    x = prelu(p, "act_0", conv(p, "conv_0", x, at))
    x = prelu(p, "act_1", conv(p, "conv_1", x, at, strides=2))
    return dense(p, "head", x.mean(axis=(1, 2)), at)


def residual(p, x, at):
    x = conv(p, "stem", x, at)
    for i in range(2):
        x = x + conv(p, f"b_{i}", relu(conv(p, f"a_{i}", relu(x), at)), at)
    return dense(p, "head", x.mean(axis=(1, 2)), at)


def inception(p, x, at):
    x = relu(conv(p, "stem", x, at))
    small = conv(p, "small", x, at)
    large = conv(p, "large", relu(conv(p, "reduce", x, at)), at)
    x = relu(np.concatenate([small, large], axis=-1))
    return dense(p, "head", x.mean(axis=(1, 2)), at)


def run(forward, p, x):
    """Every layer's (input or patches, output) by name, in execution order, and the outputs."""
    seen = {}

    def at(name, x, y):
        seen[name] = x, y
        return y

    return seen, forward(p, x, at)


def within_layer(forward, p, x, target_mean=0.0, redraw=None):
    """Algorithm 1: the net is run once more for every layer."""
    p = {name: np.asarray(value, np.float64) for name, value in p.items()}
    for name in run(forward, p, x)[0]:
        if redraw is not None:
            inputs, _ = run(forward, p, x)[0][name]
            p[f"{name}/kernel"] = redraw(name, inputs, p[f"{name}/kernel"])
            p[f"{name}/bias"] = np.zeros_like(p[f"{name}/bias"])
        _, y = run(forward, p, x)[0][name]
        y = y.reshape(-1, y.shape[-1])
        mean, std = y.mean(axis=0), y.std(axis=0)
        p[f"{name}/kernel"] = p[f"{name}/kernel"] / std
        p[f"{name}/bias"] = (p[f"{name}/bias"] - mean) / std + target_mean
    return p


def lsuv(forward, p, x, tolerance=1e-9):
    """Algorithm 1 of Mishkin & Matas, biases 0, with its loop."""
    p = {name: np.asarray(value, np.float64) for name, value in p.items()}
    for name in run(forward, p, x)[0]:
        for _ in range(20):
            var = run(forward, p, x)[0][name][1].var()
            if abs(var - 1) < tolerance:
                break
            p[f"{name}/kernel"] = p[f"{name}/kernel"] / np.sqrt(var)
    return p


def change_rates(forward, p, x, noise, step=1e-6):
    """C̃ of every kernel: the gradient of ⟨noise, outputs⟩, entry by entry, over the kernel."""
    rates = {}
    for name in run(forward, p, x)[0]:
        kernel = p[f"{name}/kernel"]
        gradient = np.empty_like(kernel)
        for index in np.ndindex(*kernel.shape):
            values = []
            for sign in (1, -1):
                moved = kernel.copy()
                moved[index] += sign * step
                outputs = run(forward, {**p, f"{name}/kernel": moved}, x)[1]
                values.append(np.vdot(noise, outputs))
            gradient[index] = (values[0] - values[1]) / (2 * step)
        rates[name] = np.sqrt(np.mean(gradient**2) / np.mean(kernel**2))
    return rates


# The log-factors of kernels that may change together while nothing else does: a row each. The
# signal is then multiplied, from layer to layer, by the factors of the biases.
MOVES = {
    "cnn": {"conv_0": [1, 0], "conv_1": [0, 1], "head": [-1, -1]},
    "residual": {
        "stem": [1, 0, 0],
        "a_0": [0, 1, 0],
        "b_0": [0, -1, 0],
        "a_1": [0, 0, 1],
        "b_1": [0, 0, -1],
        "head": [-1, 0, 0],
    },
    "inception": {
        "stem": [1, 0, 0],
        "reduce": [0, 1, 0],
        "large": [0, 0, 1],
        "small": [0, 1, 1],
        "head": [-1, -1, -1],
    },
}
BIASES = {
    "cnn": {"conv_0": [1, 0], "conv_1": [1, 1], "head": [0, 0]},
    "residual": {
        "stem": [1, 0, 0],
        "a_0": [1, 1, 0],
        "b_0": [1, 0, 0],
        "a_1": [1, 0, 1],
        "b_1": [1, 0, 0],
        "head": [0, 0, 0],
    },
    "inception": {
        "stem": [1, 0, 0],
        "reduce": [1, 1, 0],
        "large": [1, 1, 1],
        "small": [1, 1, 1],
        "head": [0, 0, 0],
    },
}


def between_layer(net, forward, p, x, noise):
    """One full step of Algorithm 2 among the moves that keep the net's function."""
    p = {name: np.asarray(value, np.float64) for name, value in p.items()}
    log_rates = {name: np.log(rate) for name, rate in change_rates(forward, p, x, noise).items()}
    moves = np.array([MOVES[net][name] for name in log_rates], np.float64)
    # log C̃ − 2 moves·t as equal as can be: the mean taken out on both sides.
    centred = moves - moves.mean(axis=0)
    wanted = np.array(list(log_rates.values())) / 2
    t, *_ = np.linalg.lstsq(centred, wanted - wanted.mean())
    for name in log_rates:
        p[f"{name}/kernel"] = p[f"{name}/kernel"] * np.exp(np.dot(MOVES[net][name], t))
        p[f"{name}/bias"] = p[f"{name}/bias"] * np.exp(np.dot(BIASES[net][name], t))
    return p
