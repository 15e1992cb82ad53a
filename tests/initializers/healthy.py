"""Models that are initialised without mistakes."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

import prelu_jax as pj
from prelu_jax import initializers
from prelu_jax.initializers import Layout
from tests.signal import models as others

HE = initializers.he_normal()
WIDTH = 32


class Cnn(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i, width in enumerate((16, 32)):
            x = nn.Conv(width, (3, 3), kernel_init=HE, name=f"conv_{i}")(x)
            x = pj.PReLU(name=f"act_{i}")(nn.BatchNorm(use_running_average=True)(x))
        x = nn.Conv(32, (3, 3), feature_group_count=4, kernel_init=HE, name="grouped")(x)
        return nn.Dense(10, kernel_init=initializers.gaussian(0.01), name="head")(x.mean((1, 2)))


class Resnet(nn.Module):
    """Net of four residual blocks, the second kernel of each scaled with depth."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(WIDTH, (3, 3), kernel_init=HE, name="stem")(x)
        scaled = initializers.VarianceScaling(2 / 4)
        for i in range(4):
            y = nn.Conv(WIDTH, (3, 3), kernel_init=HE, name=f"in_{i}")(nn.relu(x))
            x = x + nn.Conv(WIDTH, (3, 3), kernel_init=scaled, name=f"out_{i}")(nn.relu(y))
        return nn.Dense(10, name="head")(x.mean((1, 2)))


class Lstm(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(50, WIDTH, rngs=rngs)
        self.rnn = nnx.RNN(nnx.LSTMCell(WIDTH, WIDTH, rngs=rngs), rngs=rngs)
        self.head = nnx.Linear(WIDTH, 50, rngs=rngs)

    def __call__(self, tokens):
        return self.head(self.rnn(self.embed(tokens)))


def experts(params, x):
    """Return a stack of mixtures of experts, as a plain function."""
    for layer in params["layers"]:
        weights = jax.nn.softmax(x @ layer["router"])
        y = jax.nn.relu(jnp.einsum("bi,eio->beo", x, layer["wide"]))
        x = x + jnp.einsum("beo,eoi,be->bi", y, layer["narrow"], weights)
    return x @ params["head"]


def of_experts(key):
    entry = initializers.he_normal(layout=Layout(batch_axis=0))
    keys = iter(jax.random.split(key, 20))
    layers = [
        {
            "router": initializers.lecun_normal()(next(keys), (WIDTH, 4)),
            "wide": entry(next(keys), (4, WIDTH, 2 * WIDTH)),
            "narrow": entry(next(keys), (4, 2 * WIDTH, WIDTH)),
        }
        for _ in range(3)
    ]
    return {"layers": layers, "head": initializers.lecun_normal()(next(keys), (WIDTH, 10))}


def nnx_with(key):
    return Lstm(nnx.Rngs(key))


IMAGES = jnp.ones((2, 8, 8, 3))
TOKENS = jnp.arange(24).reshape(2, 12)

# name -> (function from a key to the model and its variables, inputs)
MODELS = {
    "cnn": (lambda key: (Cnn(), Cnn().init(key, IMAGES)), IMAGES),
    "resnet": (lambda key: (Resnet(), Resnet().init(key, IMAGES)), IMAGES),
    "vit": (lambda key: (others.Vit(), others.Vit().init(key, IMAGES)), IMAGES),
    "lstm": (lambda key: (nnx_with(key), None), TOKENS),
    "experts": (lambda key: (experts, of_experts(key)), jnp.ones((2, WIDTH))),
}
