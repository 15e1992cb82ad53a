"""The names of the operations between two layers, and which layers feed which."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import prelu_jax as pj
from prelu_jax import tracing

MAPS = (2, 4, 4, 3)


def norm(x):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)


def average_pool(x, p):
    return nn.pool(x, 0.0, jax.lax.add, (2, 2), (2, 2), "VALID") / 4.0


def running(x, p):
    return (x - jnp.ones(3)) * jax.lax.rsqrt(jnp.arange(1.0, 4.0)) * p["scale"]


def dropout(x, p):
    return nn.Dropout(0.5, deterministic=False).apply({}, x, rngs={"dropout": jax.random.key(0)})


BETWEEN = {
    "nothing": (lambda x, p: x, ()),
    "relu": (lambda x, p: nn.relu(x), ("rectifier",)),
    "leaky": (lambda x, p: nn.leaky_relu(x), ("rectifier",)),
    "prelu": (lambda x, p: pj.prelu(x, p["scale"]), ("rectifier",)),
    "tanh": (lambda x, p: nn.tanh(x), ("tanh",)),
    "gelu": (lambda x, p: nn.gelu(x), ("tanh",)),
    "exact gelu": (lambda x, p: nn.gelu(x, approximate=False), ("erf",)),
    "silu": (lambda x, p: nn.silu(x), ("sigmoid",)),
    "relu6": (lambda x, p: nn.relu6(x), ("rectifier", "clipping")),
    "norm": (lambda x, p: norm(x), ("normalisation",)),
    "layer norm": (
        lambda x, p: nn.LayerNorm().apply({"params": p}, x),
        ("normalisation",),
    ),
    "running statistics": (running, ("normalisation", "learned scale")),
    "max pool": (lambda x, p: nn.max_pool(x, (2, 2)), ("max pool",)),
    "average pool": (average_pool, ("average pool",)),
    "mean": (lambda x, p: x.mean((1, 2)), ("mean",)),
    "sum": (lambda x, p: x.sum((1, 2)), ("sum over an axis",)),
    "softmax": (lambda x, p: nn.softmax(x), ("softmax",)),
    "a factor": (lambda x, p: 0.1 * nn.relu(x), ("rectifier", "multiplied by 0.1")),
    "a divisor": (lambda x, p: nn.relu(x / 10), ("divided by 10", "rectifier")),
    "a scale": (lambda x, p: x * p["scale"], ("learned scale",)),
    "dropout": (dropout, ("divided by 0.5", "dropout")),
    "noise": (lambda x, p: x + jax.random.normal(jax.random.key(0), x.shape), ("noise",)),
    "residual": (lambda x, p: x + nn.relu(x @ p["b"]), ("rectifier", "residual sum")),
    "projection": (lambda x, p: x @ p["b"] + x @ p["c"], ("sum",)),
    "gate": (lambda x, p: x * nn.sigmoid(x @ p["b"]), ("sigmoid", "product of activations")),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_the_operations_between_two_layers_are_named(name):
    function, expected = BETWEEN[name]

    def net(params, others, x):
        return function(x @ params["a"], params) @ params["last"]

    square = np.eye(3, dtype=np.float32)
    params = dict.fromkeys(("a", "b", "c", "last"), square)
    params |= {"scale": np.ones(3, np.float32), "bias": np.ones(3, np.float32)}
    program = tracing.trace(net, params, (), jnp.ones(MAPS))
    assert program.operations[-1].parameters == ("last",)
    assert program.feeds()[-1].kinds == expected


def sources(net, names):
    params = dict.fromkeys(names, np.eye(3, dtype=np.float32))
    program = tracing.trace(net, params, (), jnp.ones((2, 3)))
    return [feed.sources for feed in program.feeds()]


def test_a_layer_is_fed_by_the_branch_of_a_sum_and_by_both_of_a_product():
    def net(p, _, x):
        x = x @ p["stem"]
        x = x + nn.relu(x @ p["a"]) @ p["b"]
        gated = (x @ p["gate"]) * (x @ p["up"])
        return (x + gated) @ p["head"]

    names = ("stem", "a", "b", "gate", "up", "head")
    assert sources(net, names) == [(), (0,), (1,), (2,), (2,), (3, 4)]


def test_a_projection_beside_a_branch_makes_a_residual_sum():
    def net(p, _, x):
        x = x @ p["stem"]
        x = nn.relu(x @ p["a"]) @ p["b"] + x @ p["projection"]
        return x @ p["head"]

    program = tracing.trace(
        net,
        dict.fromkeys(("stem", "a", "b", "projection", "head"), np.eye(3, dtype=np.float32)),
        (),
        jnp.ones((2, 3)),
    )
    assert program.feeds()[-1] == ((2, 3), ("residual sum",))


@pytest.mark.parametrize("remat", [False, True])
def test_the_steps_of_a_scan_feed_one_another(remat):
    def step(x, kernel):
        return x + nn.relu(norm(x) @ kernel), None

    def net(p, _, x):
        body = jax.checkpoint(step) if remat else step
        x, _ = jax.lax.scan(body, x @ p["stem"], jnp.stack([p["a"], p["b"], p["c"]]))
        return x @ p["head"]

    names = ("stem", "a", "b", "c", "head")
    params = dict.fromkeys(names, np.eye(3, dtype=np.float32))
    feeds = tracing.trace(net, params, (), jnp.ones((2, 3))).feeds()
    assert [feed.sources for feed in feeds] == [(), (0,), (1,), (2,), (3,)]
    assert feeds[1].kinds == ("normalisation",)
    assert feeds[2].kinds == feeds[3].kinds == ("rectifier", "residual sum", "normalisation")
    assert feeds[4].kinds == ("rectifier", "residual sum")
