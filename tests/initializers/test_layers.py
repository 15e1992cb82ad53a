import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import prelu_jax as pj
from prelu_jax import initializers
from prelu_jax.initializers import Layout, for_layer
from tests.initializers.layers import CASES, STRIDED


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_layout_is_read_from_a_linen_layer(case):
    assert for_layer(case.layer) == case.layout


@pytest.mark.parametrize("case", STRIDED.values(), ids=STRIDED)
def test_strides_are_counted_when_asked(case):
    assert for_layer(case.layer, count_strides=True) == case.layout
    assert for_layer(case.layer) == dataclasses.replace(case.layout, strides=1)


NNX = {
    "dense": lambda **k: nnx.Linear(20, 30, **k),
    "conv2d": lambda **k: nnx.Conv(8, 12, (3, 3), **k),
    "grouped": lambda **k: nnx.Conv(8, 12, (3, 3), feature_group_count=4, **k),
    "transposed": lambda **k: nnx.ConvTranspose(8, 6, (3, 3), **k),
    "transposed, transpose_kernel": lambda **k: nnx.ConvTranspose(
        8, 6, (3, 3), transpose_kernel=True, **k
    ),
    "DenseGeneral": lambda **k: nnx.LinearGeneral((6, 7), (4, 5), axis=(-2, -1), **k),
    "DenseGeneral, batched": lambda **k: nnx.LinearGeneral(7, (4, 5), batch_axis={0: 3}, **k),
}


@pytest.mark.parametrize("name", NNX)
def test_the_layout_is_read_from_an_nnx_layer(name):
    layer = NNX[name](rngs=nnx.Rngs(0))
    assert for_layer(layer) == CASES[name].layout
    assert layer.kernel.shape == CASES[name].kernel_shape()


@pytest.mark.parametrize("mode", initializers.MODES)
@pytest.mark.parametrize("name", [name for name in CASES if name != "DenseGeneral, batched"])
def test_a_layer_that_draws_its_own_kernel_draws_it_by_the_rule(name, mode):
    case = CASES[name]
    # Flax flattens DenseGeneral's kernel before it calls the initialiser.
    layout = Layout() if name == "DenseGeneral" else case.layout
    he = initializers.he_normal(mode, layout=layout)
    layer = case.layer.clone(kernel_init=he)
    x = jnp.ones(case.input_shape)
    keys = jax.random.split(jax.random.key(2), 30)
    kernels = jax.vmap(lambda key: layer.init(key, x)["params"]["kernel"])(keys)
    expected = 2 / case.layout.fan(mode, case.kernel_shape())
    z = (np.mean(np.square(kernels)) / expected - 1) / math.sqrt(2 / kernels.size)
    assert abs(z) < 5


class Scanned(nn.Module):
    """Five blocks with a Dense layer each, their kernels stacked along an axis."""

    axis: int = 0

    @nn.compact
    def __call__(self, x):
        def layer(module, x, _):
            dense = nn.Dense(12, kernel_init=initializers.he_normal(), name="dense")
            return nn.relu(dense(x)), None

        scan = nn.scan(
            layer, variable_axes={"params": self.axis}, split_rngs={"params": True}, length=5
        )
        return scan(self, x, None)[0]


@pytest.mark.parametrize("axis", [0, 1])
def test_scanned_layers_are_drawn_and_listed_by_the_fans_of_one(axis):
    x = jnp.ones((2, 12))
    model = Scanned(axis)
    keys = jax.random.split(jax.random.key(0), 40)
    kernels = jax.vmap(lambda key: model.init(key, x)["params"]["dense"]["kernel"])(keys)
    assert kernels.shape == (40, *np.insert((12, 12), axis, 5))
    z = (np.mean(np.square(kernels)) / (2 / 12) - 1) / math.sqrt(2 / kernels.size)
    assert abs(z) < 5
    rows = {r.parameter: r for r in initializers.table(model, model.init(keys[0], x), x)}
    row = rows["dense/kernel"]
    assert (row.shape, row.fan_in, row.fan_out) == (kernels.shape[1:], 12, 12)
    assert row.std == pytest.approx(math.sqrt(2 / 12))


class Mixed(nn.Module):
    """Layers drawn by our rules, by Flax's defaults and by an unknown rule."""

    @nn.compact
    def __call__(self, x, *, double):
        assert double
        x = nn.Conv(8, (3, 3), kernel_init=initializers.he_normal("fan_out", 0.25))(x)
        x = pj.PReLU()(x)
        x = nn.Conv(8, (3, 3), feature_group_count=4)(x)
        x = nn.LayerNorm()(nn.relu(x))
        x = nn.ConvTranspose(6, (2, 2), transpose_kernel=True)(x)
        x = nn.MultiHeadDotProductAttention(2, qkv_features=4)(x.mean(axis=1))
        x = x + nn.Embed(5, 6)(jnp.arange(1))
        return nn.Dense(3, kernel_init=lambda key, shape, dtype: jnp.ones(shape, dtype))(x)


def test_every_parameter_of_a_model_as_text(check_golden):
    x = jax.ShapeDtypeStruct((2, 6, 6, 4), jnp.float32)
    model = Mixed()
    init = jax.eval_shape(
        lambda key: model.init(key, jnp.ones(x.shape), double=True), jax.random.key(0)
    )
    check_golden("table.txt", f"{initializers.table(model, init, x, double=True)}\n")


def test_measured_stds_are_those_of_the_variables():
    x = jnp.ones((1, 6, 6, 4))
    variables = Mixed().init(jax.random.key(0), x, double=True)
    rows = {r.parameter: r for r in initializers.table(Mixed(), variables, x, double=True)}
    row = rows["Conv_0/kernel"]
    assert row.measured_std == pytest.approx(float(variables["params"]["Conv_0"]["kernel"].std()))
    assert abs(row.measured_std / row.std - 1) < 5 / math.sqrt(2 * math.prod(row.shape))
    assert rows["PReLU_0/negative_slope"].rule == "constant 0.25"


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(4, 8, (3, 3), feature_group_count=2, rngs=rngs)
        self.act = pj.nnx.PReLU(8)
        self.blocks = nnx.List([nnx.Linear(8, 3, rngs=rngs)])


def test_an_nnx_model_is_listed_with_its_fans():
    model = Net(nnx.Rngs(0))
    rows = {r.parameter: r for r in initializers.table(model)}
    assert set(rows) == {
        *("conv/kernel", "conv/bias", "act/negative_slope"),
        *("blocks/0/kernel", "blocks/0/bias"),
    }
    assert (rows["conv/kernel"].fan_in, rows["conv/kernel"].fan_out) == (18, 36)
    assert rows["conv/kernel"].rule == "?"


def test_without_inputs_a_linen_model_is_listed_by_its_shapes():
    variables = nn.Dense(3).init(jax.random.key(0), jnp.ones((1, 2)))
    rows = {r.parameter: r for r in initializers.table(nn.Dense(3), variables)}
    assert (rows["kernel"].fan_in, rows["kernel"].fan_out, rows["kernel"].rule) == (2, 3, "?")


class Partitioned(nn.Module):
    """Two layers whose parameters are in boxes of both kinds."""

    mesh: jax.sharding.Mesh | None = None

    @nn.compact
    def __call__(self, x):
        kernel_init = nn.with_partitioning(initializers.he_normal(), (None, "model"), self.mesh)
        bias_init = nn.with_logical_partitioning(nn.initializers.ones, ("model",))
        x = nn.Dense(16, kernel_init=kernel_init, bias_init=bias_init, name="dense")(x)
        orthogonal = nn.with_logical_partitioning(nn.initializers.orthogonal(), (None, "model"))
        return nn.Dense(3, kernel_init=orthogonal, name="head")(x)


MESH = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))


@pytest.mark.parametrize("mesh", [None, MESH], ids=["no mesh", "mesh"])
@pytest.mark.parametrize("abstract", [False, True])
def test_partitioned_parameters_have_the_rows_of_plain_ones(mesh, abstract):
    model, x = Partitioned(mesh), jnp.ones((2, 12))
    init = functools.partial(jax.eval_shape, model.init) if abstract else model.init
    variables = init(jax.random.key(0), x)
    kernel = variables["params"]["dense"]["kernel"]
    assert isinstance(kernel, nn.Partitioned)
    rows = {r.parameter: r for r in initializers.table(model, variables, x)}
    assert set(rows) == {"dense/kernel", "dense/bias", "head/kernel", "head/bias"}
    row = rows["dense/kernel"]
    assert (row.shape, row.rule, row.fan_in) == ((12, 16), "normal, variance 2 / fan_in", 12)
    assert row.std == pytest.approx(math.sqrt(2 / 12))
    if not abstract:
        assert row.measured_std == pytest.approx(float(kernel.value.std()))
    assert (rows["dense/bias"].rule, rows["dense/bias"].std) == ("constant 1", 0)
    assert rows["head/kernel"].rule == "orthogonal, variance 1 / max(fan_in, filters)"
    assert rows["head/kernel"].std == pytest.approx(math.sqrt(1 / 16))


def test_nnx_parameters_with_a_sharding_have_the_rows_of_plain_ones():
    with jax.set_mesh(MESH):
        kernel_init = nnx.with_partitioning(nn.initializers.ones, (None, "model"))
        model = nnx.Linear(3, 4, kernel_init=kernel_init, rngs=nnx.Rngs(0))
    rows = {r.parameter: r for r in initializers.table(model)}
    assert (rows["kernel"].shape, rows["kernel"].fan_out) == ((3, 4), 4)
    assert rows["kernel"].measured_std == 0


def test_an_object_that_is_not_a_layer_or_model_is_refused():
    with pytest.raises(TypeError, match="LayerNorm has no kernel that it knows.*Layout"):
        for_layer(nn.LayerNorm())
    with pytest.raises(TypeError, match="model is a dict, expected a Linen or NNX module"):
        initializers.table({})
    with pytest.raises(ValueError, match="the variables hold no parameters"):
        initializers.table(nn.Dense(3), {"batch_stats": {}})


class Products(nn.Module):
    """Kernels with ambiguous shapes: used in einsums, and stacked by a scan."""

    @nn.compact
    def __call__(self, x):
        x = nn.Einsum((2, 4, 6), "bi,chi->bch", name="fused")(x)
        x = nn.Einsum((2, 4, 6), "bch,chi->bi", name="back")(x)

        def layer(dense, x, _):
            return dense(x), None

        layers = nn.scan(layer, variable_axes={"params": 1}, split_rngs={"params": True}, length=4)
        x, _ = layers(nn.Dense(6, name="stack"), x, None)
        return nn.ConvLocal(5, (2,), name="local")(x[..., None])


def test_fans_are_those_of_the_products_in_the_call():
    x = jnp.ones((3, 6))
    model = Products()
    rows = initializers.table(model, model.init(jax.random.key(0), x), x)
    fans = {row.parameter: (row.fan_in, row.fan_out) for row in rows if row.fan_in}
    assert fans == {
        "fused/kernel": (6, 8),
        "back/kernel": (8, 6),
        "stack/kernel": (6, 6),
        "local/kernel": (2, 5),
    }
    stacked = nnx.split_rngs(splits=4)(nnx.vmap(lambda rngs: nnx.Linear(6, 6, rngs=rngs)))

    class Net(nnx.Module):
        def __init__(self):
            self.layers = stacked(nnx.Rngs(0))

        def __call__(self, x):
            run = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            return run(x, self.layers)

    (row,) = (row for row in initializers.table(Net(), None, x) if row.fan_in)
    assert (row.parameter, row.fan_in, row.fan_out) == ("layers/kernel", 6, 6)
