"""The channels, fans, bias and input of an operation, and the reasons why weights are not seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from prelu_jax.tracing import models, outputs
from tests.tracing.rows import program_of, rows

KEY = jax.random.key(0)


def only(model, *inputs):
    """The one operation of a Linen layer."""
    variables = jax.eval_shape(lambda: model.init(KEY, *inputs))
    (operation,) = program_of(model, variables, *inputs)[2].operations
    return operation


IMAGES, VECTORS = jnp.zeros((2, 8, 8, 6)), jnp.zeros((2, 3, 6))
LAYERS = {
    "dense": (nn.Dense(4), VECTORS, (-1,), (6, 4), (2, 3, 4)),
    "several axes": (
        nn.DenseGeneral((4, 5), axis=(-2, -1)),
        VECTORS,
        (-2, -1),
        (18, 20),
        (2, 4, 5),
    ),
    "conv": (nn.Conv(4, (3, 3), strides=2), IMAGES, (-1,), (54, 36), (2, 4, 4, 4)),
    "groups": (nn.Conv(4, (3, 3), feature_group_count=2), IMAGES, (-1,), (27, 18), (2, 8, 8, 4)),
    "causal": (nn.Conv(4, (3,), padding="CAUSAL"), VECTORS, (-1,), (18, 12), (2, 3, 4)),
    "circular": (nn.Conv(4, (3, 3), padding="CIRCULAR"), IMAGES, (-1,), (54, 36), (2, 8, 8, 4)),
    "transposed": (nn.ConvTranspose(4, (2, 2), (2, 2)), IMAGES, (-1,), (24, 16), (2, 16, 16, 4)),
    "einsum": (nn.Einsum((6, 4), "bnf,fd->bdn"), VECTORS, (-2,), (6, 4), (2, 4, 3)),
    "local": (nn.ConvLocal(4, (3, 3)), IMAGES, (-3, -2, -1), (54, 4), (2, 8, 8, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_channels_fans_bias_and_shapes_of_layers(name):
    layer, x, channel_axes, fans, shape = LAYERS[name]
    operation = only(layer, x)
    assert operation.parameters == ("kernel",)
    assert operation.bias == "bias"
    assert operation.channel_axes == channel_axes
    assert operation.fans == fans
    assert operation.shape == shape
    assert operation.input_shape == x.shape  # not that of the padded input
    assert operation.is_view


def test_a_table_is_looked_up_and_multiplied_with():
    class Tied(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            table = nn.Embed(10, 4)
            return table.attend(nn.tanh(table(tokens)))

    tokens = jnp.arange(6).reshape(2, 3)
    look_up, attend = program_of(Tied(), Tied().init(KEY, tokens), tokens)[2].operations
    assert look_up.parameters == attend.parameters == ("Embed_0/embedding",)
    assert (look_up.kind, look_up.shape, look_up.channel_axes) == ("look-up", (2, 3, 4), (-1,))
    assert (attend.kind, attend.shape, attend.fans) == ("dense", (2, 3, 10), (4, 10))


def test_experts_by_a_ragged_product():
    def experts(params, x):
        return jax.lax.ragged_dot(x, params["w"], jnp.array([2, 0, 3]))

    params, x = jax.random.normal(KEY, (3, 4, 5)), jax.random.normal(KEY, (5, 4))
    (operation,) = program_of(experts, {"w": params}, x)[2].operations
    assert (operation.kind, operation.fans) == ("grouped dense", (4, 5))
    (row,), _ = rows(experts, {"w": params}, x)
    np.testing.assert_allclose(row.y[:2], x[:2] @ params[0], rtol=1e-5)


NO_BIAS = {
    "positions": lambda p, x: x @ p["w"] + p["table"],
    "a residual sum": lambda p, x: x @ p["w"] + x,
    "a product of two parameters": lambda p, x: x @ p["w"] + p["b"] * p["scale"],
    "a number": lambda p, x: x @ p["w"] + 1.0,
    "used twice": lambda p, x: (lambda y: (y + p["b"]) * y)(x @ p["w"]),
}
PARAMS = {
    "w": jnp.ones((4, 4)),
    "b": jnp.ones(4),
    "scale": jnp.ones(4),
    "table": jnp.ones((3, 4)),
}


@pytest.mark.parametrize("name", NO_BIAS)
def test_what_is_no_bias(name):
    (operation,) = program_of(NO_BIAS[name], PARAMS, jnp.ones((2, 3, 4)))[2].operations
    assert operation.bias is None


def test_a_bias_in_another_type_and_shape_is_one():
    def f(p, x):
        y = (x.astype(jnp.bfloat16) @ p["w"].astype(jnp.bfloat16)).reshape(2, 3, 2, 2)
        return y + p["b"].reshape(2, 2).astype(jnp.bfloat16)

    (operation,) = program_of(f, PARAMS, jnp.ones((2, 3, 4)))[2].operations
    assert (operation.bias, operation.channel_axes) == ("b", (-2, -1))


VIEWS = {
    "fused": (lambda p, x: (x @ p["w"][:, :2], x @ p["w"][:, 2:]), True),
    "transposed": (lambda p, x: x @ p["w"].T, True),
    "glued": (lambda p, x: x @ jnp.concatenate([p["w"], p["table"]]).T, True),
    "scaled": (lambda p, x: x @ (p["w"] * p["scale"]), False),
    "standardised": (lambda p, x: x @ (p["w"] / jnp.std(p["w"])), False),
    "low rank": (lambda p, x: x @ (p["w"] + p["w"] @ p["w"]), False),
    "repeated": (lambda p, x: x @ jnp.broadcast_to(p["b"][:, None], (4, 3)), False),
}


@pytest.mark.parametrize("name", VIEWS)
def test_weights_are_arrangements_of_parameters_or_computed(name):
    function, is_view = VIEWS[name]
    program = program_of(function, PARAMS, jnp.ones((2, 3, 4)))[2]
    assert [operation.is_view for operation in program.operations] == [is_view] * len(
        program.operations
    )
    assert program.reading.not_measured == {}


def test_weights_are_computed_without_the_data():
    x = jnp.ones((2, 3, 4))
    program = program_of(VIEWS["fused"][0], PARAMS, x)[2]
    w = jnp.arange(16.0).reshape(4, 4)

    def weights(w, x):
        return program.weights({**PARAMS, "w": w}, PARAMS, (x,))

    left, right = weights(w, x).values()
    np.testing.assert_array_equal(left, w[:, :2])
    np.testing.assert_array_equal(right, w[:, 2:])
    computed = jax.make_jaxpr(weights)(w, x)
    assert {equation.primitive.name for equation in computed.eqns} <= {"slice", "squeeze"}


@jax.custom_vjp
def with_a_rule(w, x):
    return x @ w


with_a_rule.defvjp(lambda w, x: (x @ w, (w, x)), lambda held, g: (held[1].T @ g, g @ held[0].T))


def in_a_while(w, x):
    return jax.lax.while_loop(lambda x: jnp.sum(x) < 0, lambda x: x @ w, x)


def by_hand(w, x):
    return jnp.sum(x[:, :, None] * w, axis=1)


UNSEEN = {
    "by hand": (by_hand, ()),
    "while": (in_a_while, ("while_loop",)),
    "complex": (lambda w, x: (x.astype(complex) @ w.astype(complex)).real, ("complex",)),
    "callback": (
        lambda w, x: jax.pure_callback(np.matmul, jax.ShapeDtypeStruct((3, 4), "float32"), x, w),
        ("pure_callback",),
    ),
    "a rule for the derivative": (with_a_rule, ("custom_vjp",)),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_is_not_seen_is_listed_with_the_reason(name):
    function, inside = UNSEEN[name]
    program = program_of(lambda p, x: function(p["w"], x), PARAMS, jnp.ones((3, 4)))[2]
    assert program.operations == ()
    assert program.reading.not_measured == {"w": inside}


def test_elementwise_parameters_are_neither_seen_nor_unseen():
    def f(p, x):
        return (x * p["scale"] + p["table"]) @ p["w"]

    reading = program_of(f, PARAMS, jnp.ones((2, 3, 4)))[2].reading
    assert (reading.seen, reading.not_measured) == (("w",), {})
    assert set(reading.used) == {"w", "scale", "table"}


@pytest.mark.parametrize(
    ("axes", "before", "after", "expected"),
    [
        ((1,), (4, 6), (4, 2, 3), (1, 2)),
        ((1, 2), (4, 2, 3), (4, 6), (1,)),
        ((2,), (4, 2, 3), (4, 6), None),  # merged with another axis
        ((1,), (4, 6), (2, 2, 6), (2,)),
        ((1,), (4, 6), (1, 4, 1, 6), (3,)),
        ((1,), (4, 1), (4,), ()),
    ],
)
def test_axes_through_a_reshape(axes, before, after, expected):
    assert outputs.through_reshape(axes, before, after) == expected


@pytest.mark.parametrize(
    ("model", "variables", "error", "message"),
    [
        (3, None, TypeError, "model is a int, expected a Linen or NNX module"),
        (jnp.tanh, None, ValueError, "'tanh' is a function and no variables are given"),
    ],
)
def test_what_is_no_model_is_refused(model, variables, error, message):
    with pytest.raises(error, match=message):
        models.of(model, variables)
