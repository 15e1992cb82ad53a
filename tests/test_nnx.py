import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import prelu_jax as pj
from prelu_jax.decay import decay_mask


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("shared", "options"),
    [(False, {}), (True, {}), (False, {"channel_axis": 1}), (False, {"constraint": jnp.abs})],
)
def test_the_same_slopes_give_what_linen_gives(shared, options, dtype):
    x, cotangent = jax.random.normal(jax.random.key(0), (2, 4, 6, 6, 5)).astype(dtype)
    features = x.shape[options.get("channel_axis", -1)]
    slope = jax.random.normal(jax.random.key(1), () if shared else (features,), jnp.float32)
    linen = pj.PReLU(channel_shared=shared, **options)
    twin = pj.nnx.PReLU(None if shared else features, **options)
    assert twin.negative_slope.shape == slope.shape
    assert (twin.negative_slope[...] == 0.25).all()
    twin.negative_slope[...] = slope
    graph, state = nnx.split(twin)

    def by_linen(slope, x):
        return linen.apply({"params": {"negative_slope": slope}}, x)

    def by_nnx(state, x):
        return nnx.merge(graph, state)(x)

    y, vjp = jax.vjp(by_linen, slope, x)
    twin_y, twin_vjp = jax.vjp(by_nnx, state, x)
    (dslope, dx), (dstate, twin_dx) = vjp(cotangent), twin_vjp(cotangent)
    np.testing.assert_array_equal(twin_y, y)
    np.testing.assert_array_equal(twin_dx, dx)
    np.testing.assert_array_equal(dstate["negative_slope"][...], dslope)


def test_the_pyramid_is_that_of_linen():
    x = jax.random.normal(jax.random.key(0), (2, 7, 9, 3))
    expected = pj.SpatialPyramidPooling((3, 1)).apply({}, x)
    np.testing.assert_array_equal(pj.nnx.SpatialPyramidPooling((3, 1))(x), expected)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.act = pj.nnx.PReLU(8, rngs=rngs)
        self.heads = nnx.List([nnx.Linear(8, 2, rngs=rngs)])

    def __call__(self, x):
        return self.heads[0](self.act(self.conv(x)).mean(axis=(1, 2)))


def test_a_model_trains_its_slopes_and_the_decay_mask_leaves_them_out():
    model = Net(nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
    grads = nnx.grad(lambda model: jnp.sum(model(x) ** 2))(model)
    assert (np.abs(grads["act"]["negative_slope"][...]) > 0).all()
    decays = nnx.to_pure_dict(decay_mask(nnx.state(model, nnx.Param)))
    assert decays == {
        "conv": {"kernel": True, "bias": False},
        "act": {"negative_slope": False},
        "heads": {0: {"kernel": True, "bias": False}},
    }
