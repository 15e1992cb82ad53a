"""Four networks, each three times: in Linen, in NNX and written out by hand.

The names agree, so that one set of parameters and one expectation serve all three.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

import prelu_jax as pj


def drawn(model, *inputs, **kwargs):
    """Linen variables with normal parameters, biases too; drawn by NumPy: nothing to compile."""
    rng = np.random.default_rng(0)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    shapes = jax.eval_shape(functools.partial(model.init, **kwargs), keys, *inputs)
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    variables["params"] = jax.tree.map(
        lambda leaf: 0.4 * rng.standard_normal(leaf.shape, np.float32), shapes["params"]
    )
    return variables


def flat(variables):
    return flax.traverse_util.flatten_dict(variables["params"], sep="/")


def images(*shape):
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape, np.float32))


# --- A small CNN with PReLU ----------------------------------------------------------------------


class LinenCnn(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = pj.PReLU(name="act_0")(nn.Conv(6, (3, 3), name="conv_0")(x))
        x = pj.PReLU(name="act_1")(nn.Conv(5, (3, 3), strides=2, name="conv_1")(x))
        return nn.Dense(3, name="head")(x.mean(axis=(1, 2)))


class NnxCnn(nnx.Module):
    def __init__(self, rngs):
        self.conv_0 = nnx.Conv(2, 6, (3, 3), rngs=rngs)
        self.act_0 = pj.nnx.PReLU(6)
        self.conv_1 = nnx.Conv(6, 5, (3, 3), strides=2, rngs=rngs)
        self.act_1 = pj.nnx.PReLU(5)
        self.head = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        x = self.act_0(self.conv_0(x))
        x = self.act_1(self.conv_1(x))
        return self.head(x.mean(axis=(1, 2)))


def conv(p, name, x, at, strides=1):
    y = jax.lax.conv_general_dilated(
        x,
        p[f"{name}/kernel"],
        (strides, strides),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return at(name, x, y + p[f"{name}/bias"])


def dense(p, name, x, at):
    return at(name, x, x @ p[f"{name}/kernel"] + p[f"{name}/bias"])


def prelu(p, name, y):
    return jnp.where(y > 0, y, p[f"{name}/negative_slope"] * y)


def cnn(p, x, at):
    x = prelu(p, "act_0", conv(p, "conv_0", x, at))
    x = prelu(p, "act_1", conv(p, "conv_1", x, at, strides=2))
    return dense(p, "head", x.mean(axis=(1, 2)), at)


# --- A residual net ------------------------------------------------------------------------------


class LinenResidual(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), name="stem")(x)
        for i in range(2):
            y = nn.Conv(4, (3, 3), name=f"a_{i}")(nn.relu(x))
            x = x + nn.Conv(4, (3, 3), name=f"b_{i}")(nn.relu(y))
        return nn.Dense(3, name="head")(x.mean(axis=(1, 2)))


class NnxResidual(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        for name in ("a_0", "b_0", "a_1", "b_1"):
            setattr(self, name, nnx.Conv(4, 4, (3, 3), rngs=rngs))
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        x = x + self.b_0(nnx.relu(self.a_0(nnx.relu(x))))
        x = x + self.b_1(nnx.relu(self.a_1(nnx.relu(x))))
        return self.head(x.mean(axis=(1, 2)))


def residual(p, x, at):
    x = conv(p, "stem", x, at)
    for i in range(2):
        y = conv(p, f"a_{i}", jnp.maximum(x, 0), at)
        x = x + conv(p, f"b_{i}", jnp.maximum(y, 0), at)
    return dense(p, "head", x.mean(axis=(1, 2)), at)


# --- A module that is called three times ---------------------------------------------------------


class LinenShared(nn.Module):
    @nn.compact
    def __call__(self, x):
        shared = nn.Dense(7, name="shared")
        for _ in range(3):
            x = nn.tanh(shared(x))
        return nn.Dense(3, name="head")(x)


class NnxShared(nnx.Module):
    def __init__(self, rngs):
        self.shared = nnx.Linear(7, 7, rngs=rngs)
        self.head = nnx.Linear(7, 3, rngs=rngs)

    def __call__(self, x):
        for _ in range(3):
            x = nnx.tanh(self.shared(x))
        return self.head(x)


def shared(p, x, at):
    for _ in range(3):
        x = jnp.tanh(dense(p, "shared", x, at))
    return dense(p, "head", x, at)


# --- A transformer block -------------------------------------------------------------------------


class LinenTransformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        attention = nn.MultiHeadDotProductAttention(2, qkv_features=6, name="attention")
        x = x + attention(nn.LayerNorm(name="norm_0")(x))
        y = nn.gelu(nn.Dense(8, name="up")(nn.LayerNorm(name="norm_1")(x)))
        x = x + nn.Dense(6, name="down")(y)
        return nn.Dense(3, name="head")(x)


class NnxTransformer(nnx.Module):
    def __init__(self, rngs):
        self.norm_0 = nnx.LayerNorm(6, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 6, decode=False, rngs=rngs)
        self.norm_1 = nnx.LayerNorm(6, rngs=rngs)
        self.up = nnx.Linear(6, 8, rngs=rngs)
        self.down = nnx.Linear(8, 6, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm_0(x))
        x = x + self.down(nnx.gelu(self.up(self.norm_1(x))))
        return self.head(x)


def layer_norm(p, name, x):
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * p[f"{name}/scale"] + p[f"{name}/bias"]


def transformer(p, x, at):
    h = layer_norm(p, "norm_0", x)

    def projected(name, equation, h):
        name = f"attention/{name}"
        return at(name, h, jnp.einsum(equation, h, p[f"{name}/kernel"]) + p[f"{name}/bias"])

    q, k, v = (projected(name, "btd,dhf->bthf", h) for name in ("query", "key", "value"))
    weights = jax.nn.softmax(jnp.einsum("bqhf,bkhf->bhqk", q, k) / jnp.sqrt(3.0))
    mixed = jnp.einsum("bhqk,bkhf->bqhf", weights, v)
    x = x + projected("out", "bthf,hfd->btd", mixed)
    y = jax.nn.gelu(dense(p, "up", layer_norm(p, "norm_1", x), at))
    x = x + dense(p, "down", y, at)
    return dense(p, "head", x, at)


@dataclasses.dataclass(frozen=True)
class Net:
    linen: nn.Module
    nnx: Callable[[nnx.Rngs], nnx.Module]
    by_hand: Callable[..., Any]
    shape: tuple[int, ...]
    feature_axes: dict[str, int] = dataclasses.field(default_factory=dict)


HEADS = {f"attention/{name}": 2 for name in ("query", "key", "value")}
NETS = {
    "cnn": Net(LinenCnn(), NnxCnn, cnn, (4, 6, 6, 2)),
    "residual": Net(LinenResidual(), NnxResidual, residual, (4, 5, 5, 2)),
    "shared": Net(LinenShared(), NnxShared, shared, (4, 7)),
    "transformer": Net(LinenTransformer(), NnxTransformer, transformer, (4, 5, 6), HEADS),
}
