"""Bad input is refused before anything changes, with a message that says how to correct it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from prelu_jax import datadep
from tests.signal.nets import drawn, images

KEY = jax.random.key(3)


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        def body(layer, x, _):
            return nn.relu(layer(x)), None

        x, _ = nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)(
            nn.Dense(4, name="stacked"), x, None
        )
        return nn.Dense(2, name="head")(x)


class Float16(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3, dtype=jnp.float16, name="first")(x)
        return nn.Dense(2, dtype=jnp.float16, name="last")(x * jnp.float16(30_000))


def in_a_while(variables, x):
    def step(_, x):
        return jnp.tanh(x @ variables["loop"])

    steps = jnp.where(x.sum() < 1e9, 3, 2)  # not known beforehand
    x = jax.lax.fori_loop(0, steps, step, x)
    return x @ variables["head"]


DENSE = nn.Dense(3)
OVERFLOWS = nn.Sequential((nn.Dense(3), lambda y: jnp.exp(100 * y), nn.Dense(2)))
X = images(8, 4)


@pytest.mark.parametrize(
    ("model", "x", "options", "message"),
    [
        (DENSE, X.at[2, 1].set(jnp.nan), {}, "array 0 of the batch, float32[8, 4], holds nan"),
        (DENSE, X[:1], {}, "single example, expected two or more"),
        (DENSE, X[:0], {}, "the batch is empty"),
        (Float16(), X, {}, "output of last is not finite in float16"),
        (
            nn.Dense(3, use_bias=False, dtype=jnp.float16),
            X * 1e-6,
            {},
            "in float16, with the layers up to it corrected",
        ),
        (OVERFLOWS, X, {}, "pj.diagnose says where it begins"),
        (DENSE, X, {"method": "within-layer"}, "Did you mean 'within_layer'"),
        (DENSE, X, {"only": "conv"}, "only is 'conv', which matches none of the kernels: kernel"),
        (DENSE, X, {"except_": "("}, "except_ is '(', no regular expression"),
        (DENSE, X, {"except_": "kernel"}, "no layer is left to be calibrated"),
    ],
)
def test_bad_input_is_told_and_loses_nothing(model, x, options, message):
    variables = drawn(model, X)
    copy = jax.tree.map(np.copy, variables)
    with pytest.raises(ValueError, match=re.escape(message)):
        datadep.calibrate(model, variables, x, **options)
    jax.tree.map(np.testing.assert_array_equal, variables, copy)


def test_weights_inside_a_while_loop_are_named_and_can_be_left_out():
    variables = {"head": np.ones((4, 3), np.float32), "loop": np.eye(4, dtype=np.float32)}
    with pytest.raises(ValueError, match=r"loop: used where an output .*except_='loop'.*while"):
        datadep.calibrate(in_a_while, variables, X)
    _, report = datadep.calibrate(in_a_while, variables, X, except_="loop")
    assert [row.layer for row in report.stages[0].layers] == ["head"]


def test_a_list_is_neither_a_tuple_of_arguments_nor_an_iterator_of_batches():
    with pytest.raises(TypeError, match=re.escape("expected an iterator of batches, iter([...])")):
        datadep.calibrate(DENSE, drawn(DENSE, X), [X, X])


def test_a_stack_can_be_left_out():
    _, report = datadep.calibrate(Stack(), drawn(Stack(), X), X, except_="stacked")
    assert [row.layer for row in report.stages[0].layers] == ["head"]


@pytest.mark.parametrize(
    ("variables", "message"),
    [({}, "hold no 'params'"), ({"params": {}}, "'params' are empty"), (None, "hold no 'params'")],
)
def test_missing_parameters_are_told(variables, message):
    with pytest.raises(ValueError, match=message):
        datadep.calibrate(DENSE, variables, X)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": 0}, "key is 0, expected one of jax.random.key"),
        ({"only": 3}, "only is 3, expected a regular expression as a str"),
        ({"except_": ["kernel"]}, "except_ is ['kernel'], expected a regular expression as a str"),
    ],
)
def test_arguments_of_a_wrong_type_are_told(options, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        datadep.calibrate(DENSE, drawn(DENSE, X), X, **options)


def test_a_layer_that_is_given_a_dict_is_named():
    with pytest.raises(TypeError, match="the layer 'Dense' was given a dict, expected an array"):
        datadep.calibrate(DENSE, drawn(DENSE, X), {"image": X})


def test_integers_are_told_whatever_they_are():
    with pytest.raises(ValueError, match=r"int32 of shape \(8, 4\).*astype.*nn.Embed"):
        datadep.calibrate(DENSE, drawn(DENSE, X), X.astype(jnp.int32))


@pytest.mark.compiled("what is inside jit or scan is not traced")
@pytest.mark.parametrize("model", [DENSE, nnx.Linear(4, 3, rngs=nnx.Rngs(0))])
def test_calibrate_says_that_it_cannot_be_traced(model):
    variables = () if isinstance(model, nnx.Module) else (drawn(DENSE, X),)
    with pytest.raises(TypeError, match="calibrate was called inside jit"):
        jax.jit(lambda x: datadep.calibrate(model, *variables, x))(X)
    with pytest.raises(TypeError, match="calibrate was called inside jit"):
        jax.jit(lambda key: datadep.calibrate(model, *variables, X, key=key))(KEY)


@pytest.mark.compiled("what is inside jit or scan is not traced")
def test_calibrate_says_that_a_callable_pytree_is_traced():
    model = jax.tree_util.Partial(lambda kernel, x: x @ kernel, jnp.ones((4, 3)))
    with pytest.raises(TypeError, match="calibrate was called inside jit"):
        jax.jit(lambda model: datadep.calibrate(model, X)[0])(model)


@pytest.mark.compiled("what is inside jit or scan is not traced")
def test_calibrate_says_that_an_nnx_model_is_traced():
    with pytest.raises(TypeError, match="calibrate was called inside jit"):
        nnx.jit(lambda model: datadep.calibrate(model, X))(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))


def test_the_number_of_arguments_and_the_type_of_the_method_are_checked():
    with pytest.raises(TypeError, match="calibrate\\(model, variables, batch\\), or calibrate"):
        datadep.calibrate(DENSE, X)
    for method in (3, datadep.WithinLayer, ["pca", datadep.Lsuv]):
        with pytest.raises(TypeError, match=r"method is .*such as WithinLayer\(\)"):
            datadep.calibrate(DENSE, drawn(DENSE, X), X, method=method)
    with pytest.raises(ValueError, match=r"method is \[\], expected a name of none"):
        datadep.calibrate(DENSE, drawn(DENSE, X), X, method=[])
    with pytest.raises(TypeError, match="expected a Linen or NNX module"):
        datadep.calibrate(3, {}, X)


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        (datadep.BetweenLayer, "alpha", "1"),
        (datadep.BetweenLayer, "tolerance", None),
        (datadep.Lsuv, "tolerance", "0"),
        (datadep.Lsuv, "orthonormal", 0.02),
        (datadep.WithinLayer, "target_mean", True),
        (datadep.FromPatches, "target_mean", "kmeans"),
        (datadep.FromPatches, "max_patches", 1e4),
    ],
)
def test_types_of_options_are_checked(method, option, value):
    message = f"{method.__name__}: {option} is {value!r}, expected "
    with pytest.raises(TypeError, match=re.escape(message)):
        method(**{option: value})


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        (datadep.BetweenLayer, "alpha", 2.0),
        (datadep.BetweenLayer, "tolerance", 0.0),
        (datadep.Lsuv, "tolerance", -0.1),
        (datadep.WithinLayer, "target_mean", np.inf),
        (datadep.FromPatches, "max_patches", 1),
        (datadep.FromPatches, "kind", "ica"),
    ],
)
def test_options_are_checked(method, option, value):
    with pytest.raises(ValueError, match=str(value)):
        method(**{option: value})
