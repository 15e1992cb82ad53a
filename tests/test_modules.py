import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prelu_jax as pj
from prelu_jax.modules import Dropout

KEY = jax.random.key(0)


@pytest.mark.parametrize(("shared", "shape"), [(False, (5,)), (True, ())])
def test_prelu_has_float32_slopes_of_a_quarter(shared, shape):
    x = jnp.full((2, 3, 5), -4.0, jnp.bfloat16)
    y, variables = pj.PReLU(channel_shared=shared).init_with_output(jax.random.key(0), x)
    slope = variables["params"]["negative_slope"]
    assert (slope.shape, slope.dtype) == (shape, jnp.float32)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, jnp.full_like(x, -1.0))


def test_a_constraint_changes_the_used_slopes_and_not_the_stored_ones():
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
    assert (whole[0] != whole[1]).any()  # every example has its own mask


def test_dropout_keeps_the_mean_and_does_nothing_in_a_test():
    dropped = drop(jnp.ones((500, 400)), 0)
    np.testing.assert_allclose(np.unique(dropped), [0, 1 / 0.7], rtol=1e-6)
    error = np.sqrt(0.3 / 0.7 / dropped.size)
    assert abs(dropped.mean() - 1) < 5 * error
    np.testing.assert_array_equal(Dropout(0.3).apply({}, dropped, train=False), dropped)


TWINS = {
    "Linen": lambda x, **k: pj.PReLU(**k).init(jax.random.key(0), x),
    "NNX": lambda x, **k: pj.nnx.PReLU(3, **k)(x),
}


@pytest.mark.parametrize("call", TWINS.values(), ids=TWINS)
@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (jnp.ones((2, 3)), {"channel_axis": 4}, ValueError, r"axis is 4, but x has shape \(2, 3\)"),
        (
            jnp.ones((2, 3)),
            {"channel_axis": -3},
            ValueError,
            "axis is -3.* from -2 to 1, or one",
        ),
        (jnp.ones(()), {}, ValueError, r"axis is -1, but x has shape \(\).*channel_shared=True"),
        (jnp.ones((2, 3)), {"channel_axis": "last"}, TypeError, "channel_axis is 'last', expected"),
        (jnp.ones((2, 3), int), {}, TypeError, "x has type int32, expected a floating-point type"),
        (jnp.ones((2, 3), complex), {}, TypeError, "x has type complex64.*no order"),
        (None, {}, TypeError, "x is of type NoneType"),
        (jnp.ones(3), {"negative_slope_init": "0.25"}, TypeError, "init is '0.25', expected a num"),
        (jnp.ones(3), {"negative_slope_init": None}, TypeError, "negative_slope_init is None"),
        (jnp.ones(3), {"negative_slope_init": 1j}, TypeError, "negative_slope_init is 1j"),
        (jnp.ones(3), {"negative_slope_init": jnp.zeros}, TypeError, "negative_slope_init is <fu"),
        (jnp.ones(3), {"negative_slope_init": np.ones(2)}, ValueError, r"init has shape \(2,\).*3"),
        (jnp.ones(3), {"negative_slope_init": np.nan}, ValueError, "init is nan, expected finite"),
        (jnp.ones(3), {"param_dtype": jnp.int32}, TypeError, "param_dtype is int32"),
        (jnp.ones(3), {"param_dtype": "float33"}, TypeError, "param_dtype is float33"),
        (jnp.ones(3), {"constraint": lambda a: a[:2]}, ValueError, r"slope has shape \(2,\)"),
    ],
)
def test_bad_input_is_named_by_both_twins(call, x, options, error, message):
    with pytest.raises(error, match=message):
        call(x, **options)


def test_the_twins_take_one_initial_slope_per_channel():
    slopes = np.array([0.1, 0.2, 0.3], np.float32)
    x = -jnp.ones((2, 3))
    linen, _ = pj.PReLU(negative_slope_init=slopes).init_with_output(KEY, x)
    np.testing.assert_array_equal(linen[1], -slopes)
    np.testing.assert_array_equal(pj.nnx.PReLU(3, negative_slope_init=slopes)(x)[1], -slopes)


def test_the_number_of_channels_is_for_nnx_and_has_to_fit():
    with pytest.raises(TypeError, match="channel_shared is 64, expected True or False.*its input"):
        pj.PReLU(64).init(KEY, jnp.ones((2, 64)))
    for features in ("64", 64.0, (64,), True):
        with pytest.raises(TypeError, match="num_features is .*, expected an integer"):
            pj.nnx.PReLU(features)
    with pytest.raises(ValueError, match="num_features is 0, expected at least 1"):
        pj.nnx.PReLU(0)
    with pytest.raises(ValueError, match=r"slope has shape \(3,\), expected \(\) or \(5,\)"):
        pj.nnx.PReLU(3)(jnp.ones((2, 5)))


PYRAMIDS = {
    "Linen": lambda x, levels: pj.SpatialPyramidPooling(levels).apply({}, x),
    "NNX": lambda x, levels: pj.nnx.SpatialPyramidPooling(levels)(x),
}


@pytest.mark.parametrize("call", PYRAMIDS.values(), ids=PYRAMIDS)
@pytest.mark.parametrize(
    ("shape", "levels", "error", "message"),
    [
        ((4, 4, 3), (1,), ValueError, r"x has shape \(4, 4, 3\), expected maps \[batch, height"),
        ((), (1,), ValueError, r"x has shape \(\), expected maps"),
        ((2, 0, 4, 3), (1,), ValueError, r"x has shape \(2, 0, 4, 3\).*at least one pixel"),
        ((2, 4, 4, 3), 2, TypeError, "levels are 2, expected positive integers"),
        ((2, 4, 4, 3), (2.0,), TypeError, "levels are .2.0.*, expected positive integers"),
        ((2, 4, 4, 3), ("2",), TypeError, "levels are .'2'.*, expected positive integers"),
        ((2, 4, 4, 3), None, TypeError, "levels are None, expected positive integers"),
        ((2, 4, 4, 3), (), ValueError, r"levels are \(\), expected positive integers"),
        ((2, 4, 4, 3), (2, -1), ValueError, "levels are .2, -1., expected positive integers"),
    ],
)
def test_maps_and_levels_that_make_no_pyramid_are_named(call, shape, levels, error, message):
    with pytest.raises(error, match=message):
        call(jnp.ones(shape), levels)


def test_an_empty_batch_and_complex_maps():
    assert pj.SpatialPyramidPooling((2, 1)).apply({}, jnp.ones((0, 4, 4, 3))).shape == (0, 15)
    with pytest.raises(TypeError, match="x has type complex64, expected real numbers"):
        pj.SpatialPyramidPooling((1,)).apply({}, jnp.ones((1, 4, 4, 3), complex))


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_a_rate_of_dropout_that_is_no_probability_is_named(rate):
    with pytest.raises(ValueError, match=rf"Dropout: rate is {rate}, expected .* in \[0, 1\)"):
        Dropout(rate).apply({}, jnp.ones((2, 3)), train=True)
