import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prelu_jax as pj
from prelu_jax.modules import Dropout


@pytest.mark.parametrize(("shared", "shape"), [(False, (5,)), (True, ())])
def test_prelu_has_float32_slopes_of_a_quarter(shared, shape):
    x = jnp.full((2, 3, 5), -4.0, jnp.bfloat16)
    y, variables = pj.PReLU(channel_shared=shared).init_with_output(jax.random.key(0), x)
    slope = variables["params"]["negative_slope"]
    assert (slope.shape, slope.dtype) == (shape, jnp.float32)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, jnp.full_like(x, -1.0))


def test_a_constraint_holds_for_what_is_used_and_not_for_what_is_stored():
    module = pj.PReLU(negative_slope_init=-0.5, constraint=lambda a: jnp.clip(a, 0, 1))
    y, variables = module.init_with_output(jax.random.key(0), -jnp.ones((1, 2)))
    np.testing.assert_array_equal(y, jnp.zeros((1, 2)))
    np.testing.assert_array_equal(variables["params"]["negative_slope"], [-0.5, -0.5])


def test_channels_may_lie_on_another_axis():
    x = -jnp.ones((2, 3, 4, 4))
    variables = {"params": {"negative_slope": jnp.array([0.1, 0.2, 0.3])}}
    y = pj.PReLU(channel_axis=1).apply(variables, x)
    np.testing.assert_array_equal(y[1, :, 2, 2], -variables["params"]["negative_slope"])


def test_spatial_pyramid_pooling_gives_as_many_features_for_any_image():
    module = pj.SpatialPyramidPooling((3, 2, 1))
    for size in (3, 10):
        assert module.apply({}, jnp.ones((2, size, size + 1, 4))).shape == (2, 14 * 4)


def drop(x, first_example):
    return Dropout(0.3).apply(
        {}, x, train=True, first_example=first_example, rngs={"dropout": jax.random.key(3)}
    )


def test_dropout_of_a_part_is_the_part_of_dropout():
    x = jnp.ones((8, 50))
    whole = drop(x, 0)
    np.testing.assert_array_equal(jnp.concatenate([drop(x[:4], 0), drop(x[4:], 4)]), whole)
    assert (whole[0] != whole[1]).any()  # examples have masks of their own


def test_dropout_keeps_the_mean_and_does_nothing_in_a_test():
    dropped = drop(jnp.ones((500, 400)), 0)
    np.testing.assert_allclose(np.unique(dropped), [0, 1 / 0.7], rtol=1e-6)
    error = np.sqrt(0.3 / 0.7 / dropped.size)
    assert abs(dropped.mean() - 1) < 5 * error
    np.testing.assert_array_equal(Dropout(0.3).apply({}, dropped, train=False), dropped)
