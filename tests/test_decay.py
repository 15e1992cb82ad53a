import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx, traverse_util

import prelu_jax as pj

X = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
RATE, DECAY = 0.1, 0.5


def adamw():
    return optax.adamw(RATE, weight_decay=DECAY, mask=pj.decay_mask)


def check_that_kernels_alone_decayed(before, after):
    """Check the parameters before and after a step of `adamw` with gradients of zero."""
    for path, value in before.items():
        factor = 1 - RATE * DECAY if path[-1] == "kernel" else 1
        np.testing.assert_allclose(after[path], factor * value, rtol=1e-6, err_msg=str(path))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), bias_init=nn.initializers.ones)(x)
        return nn.Dense(2, bias_init=nn.initializers.ones)(pj.PReLU()(x).mean(axis=(1, 2)))


def test_adamw_decays_the_kernels_of_a_linen_model_alone():
    params = LinenNet().init(jax.random.key(1), X)["params"]
    assert pj.decay_mask(params) == {
        "Conv_0": {"kernel": True, "bias": False},
        "PReLU_0": {"negative_slope": False},
        "Dense_0": {"kernel": True, "bias": False},
    }
    tx = adamw()
    with jax.numpy_dtype_promotion("standard"):  # adamw divides by an integer count of steps
        updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    stepped = optax.apply_updates(params, updates)
    flatten = traverse_util.flatten_dict
    check_that_kernels_alone_decayed(flatten(params), flatten(stepped))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), bias_init=nn.initializers.ones, rngs=rngs)
        self.act = pj.nnx.PReLU(8, rngs=rngs)
        self.heads = nnx.List([nnx.Linear(8, 2, rngs=rngs)])

    def __call__(self, x):
        return self.heads[0](self.act(self.conv(x)).mean(axis=(1, 2)))


def test_adamw_decays_the_kernels_of_an_nnx_model_alone():
    model = NnxNet(nnx.Rngs(1))
    params = nnx.state(model, nnx.Param)
    assert nnx.to_pure_dict(pj.decay_mask(params)) == {
        "conv": {"kernel": True, "bias": False},
        "act": {"negative_slope": False},
        "heads": {0: {"kernel": True, "bias": False}},
    }
    before = nnx.traversals.flatten_mapping(jax.tree.map(jnp.copy, nnx.to_pure_dict(params)))
    optimizer = nnx.Optimizer(model, adamw(), wrt=nnx.Param)
    with jax.numpy_dtype_promotion("standard"):
        optimizer.update(model, jax.tree.map(jnp.zeros_like, params))
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    check_that_kernels_alone_decayed(before, nnx.traversals.flatten_mapping(after))


def test_parameters_boxed_for_a_mesh_get_plain_bools():
    boxed = nn.with_partitioning(nn.initializers.he_normal(), (None, "model"))
    params = nn.Dense(4, kernel_init=boxed).init(jax.random.key(0), jnp.ones((1, 3)))["params"]
    assert pj.decay_mask(params) == {"kernel": True, "bias": False}
    assert pj.decay_mask(nn.meta.unbox(params)) == {"kernel": True, "bias": False}


def test_parameters_without_names_are_refused():
    for params in ([jnp.ones(3)], nnx.Linear(2, 2, rngs=nnx.Rngs(0))):
        with pytest.raises(TypeError, match=r"decay_mask: a parameter has no name; .*nnx\.state"):
            pj.decay_mask(params)
