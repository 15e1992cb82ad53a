"""Three networks in Linen, in NNX and in NumPy, of one set of parameters each."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from tests.datadep import reference
from tests.signal.nets import NETS, NnxCnn, NnxResidual, drawn, flat


class LinenInception(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), name="stem")(x))
        small = nn.Conv(3, (1, 1), name="small")(x)
        large = nn.Conv(3, (3, 3), name="large")(nn.relu(nn.Conv(2, (1, 1), name="reduce")(x)))
        x = nn.relu(jnp.concatenate([small, large], axis=-1))
        return nn.Dense(3, name="head")(x.mean(axis=(1, 2)))


class NnxInception(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.small = nnx.Conv(4, 3, (1, 1), rngs=rngs)
        self.reduce = nnx.Conv(4, 2, (1, 1), rngs=rngs)
        self.large = nnx.Conv(2, 3, (3, 3), rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.stem(x))
        x = nnx.relu(jnp.concatenate([self.small(x), self.large(nnx.relu(self.reduce(x)))], -1))
        return self.head(x.mean(axis=(1, 2)))


LINEN = {
    "cnn": NETS["cnn"].linen,
    "residual": NETS["residual"].linen,
    "inception": LinenInception(),
}
NNX = {"cnn": NnxCnn, "residual": NnxResidual, "inception": NnxInception}
NUMPY = {name: getattr(reference, name) for name in LINEN}
SHAPE = (8, 6, 6, 2)


def nnx_with(name, variables):
    """The NNX model with a Linen model's parameters."""
    model = NNX[name](nnx.Rngs(0))
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        value = flat(variables)["/".join(map(str, path))]
        variable.set_value(jnp.asarray(value))
        nnx.update(model, nnx.from_flat_state([(path, variable)]))
    return model


def nnx_parameters(model):
    return {
        "/".join(map(str, path)): np.asarray(leaf[...])
        for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }


def numpy(x):
    return np.asarray(jax.device_get(x), np.float64)


__all__ = ["LINEN", "NNX", "NUMPY", "SHAPE", "drawn", "flat"]
