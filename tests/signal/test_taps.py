import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from prelu_jax import signal
from tests.signal.nets import drawn, images

KEY = jax.random.key(0)


def measured(model, x, **options):
    return signal.measure(model, drawn(model, x), x, **options)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return nn.relu(nn.Dense(4)(x)), None


class Hidden(nn.Module):
    """A layer in the open, before and after four that are inside a transformation."""

    how: str

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4, name="before")(x)
        match self.how:
            case "scan":
                stack = nn.scan(Block, {"params": 0}, split_rngs={"params": True}, length=3)
                x, _ = stack(name="inside")(x, None)
            case "remat":
                x, _ = nn.remat(Block)(name="inside")(x)
            case "jit":
                x, _ = nn.jit(Block)(name="inside")(x)
            case "vmap":
                x = nn.vmap(nn.Dense, {"params": None}, split_rngs={"params": False})(
                    4, name="inside"
                )(x)
        return nn.Dense(2, name="after")(x)


@pytest.mark.parametrize("how", ["scan", "remat", "jit", "vmap"])
def test_what_is_inside_a_transformation_is_measured(how):
    x = images(5, 3)
    found = measured(Hidden(how), x)
    inside = {
        "scan": [f"inside/Dense_0[{step}]" for step in range(3)],
        "vmap": ["inside"],
    }.get(how, ["inside/Dense_0"])
    assert [row.path for row in found.layers] == ["before", *inside, "after"]
    assert found.not_measured == ()
    assert all(row.gradient_second_moment > 0 for row in found.layers)


class Own(nn.Module):
    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.ones, (3, 4))
        weights = self.param("weights", nn.initializers.ones, (4, 4))
        self.param("bias", nn.initializers.ones, (4,))
        return nn.Dense(2, name="dense")(x @ kernel @ weights)


def test_weights_that_a_module_multiplies_by_itself_are_measured():
    found = measured(Own(), jnp.ones((2, 3)))
    assert [row.name for row in found.layers] == ["Dense", "weights", "dense"]
    assert found.not_measured == ()


class Kinds(nn.Module):
    """Every kind that is measured."""

    @nn.compact
    def __call__(self, x):
        embed = nn.Embed(7, 6, name="embed")
        x = x + embed((x[..., 0] > 0).astype(jnp.int32))
        x = nn.ConvTranspose(6, (3, 3), name="transposed")(x)
        x = nn.ConvLocal(6, (2, 2), name="local")(x)
        x = nn.DenseGeneral((2, 3), name="general")(x)
        x = nn.Einsum((2, 3, 4), "bhwnd,ndf->bhwf", name="einsum", use_bias=False)(x)
        return embed.attend(nn.Dense(6, name="dense")(x))


def test_every_kind_of_affine_layer_is_measured():
    x = images(2, 3, 3, 6)
    found = measured(Kinds(), x)
    assert [(row.path, row.kind) for row in found.layers] == [
        ("embed", "Embed"),
        ("transposed", "Conv"),  # of stride 1: a convolution
        ("local", "GroupedDense"),
        ("general", "Dense"),
        ("einsum", "Dense"),
        ("dense", "Dense"),
        ("embed", "Dense"),
    ]
    assert found.not_measured == ()
    assert found.layers[-1].call == 1
    assert found.layers[-1].input_second_moment == pytest.approx(found.layers[-2].second_moment)


class Scaled(nn.Dense):
    """A subclass that calls its base: one layer, not two. Its output is that of the product."""

    @nn.compact
    def __call__(self, inputs):
        return 2 * super().__call__(inputs)


def test_a_subclass_is_one_layer_and_its_sum_is_measured():
    x = images(4, 3)
    model = Scaled(5)
    variables = drawn(model, x)
    (row,) = signal.measure(model, variables, x).layers
    assert (row.path, row.name) == ("", "Dense")
    y = model.apply(variables, x) / 2
    assert row.second_moment == pytest.approx(float(jnp.mean(y**2)), rel=1e-5)


# --- NNX ---------------------------------------------------------------------------------------


class Stochastic(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)])
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.layers[1](self.dropout(self.norm(self.layers[0](x))))


def arrays(model):
    def plain(leaf):
        key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if key else leaf)

    return [plain(leaf) for leaf in jax.tree.leaves(nnx.state(model))]


def test_the_users_nnx_model_stays_as_it_is():
    model = Stochastic(nnx.Rngs(0))
    x = images(6, 3)
    before, graph, classes = arrays(model), nnx.graphdef(model), (nnx.Linear, nnx.Linear.__call__)
    found = signal.measure(model, None, x)
    assert [row.path for row in found.layers] == ["layers/0", "layers/1"]
    assert [row.kind for row in found.layers] == ["Dense", "Dense"]
    for a, b in zip(arrays(model), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert nnx.graphdef(model) == graph
    assert (type(model.layers[0]), nnx.Linear.__call__) == classes
    model(x)  # ... and it is this call that moves the counters and the means
    assert any((a != b).any() for a, b in zip(arrays(model), before, strict=True))


def test_nnx_streams_are_reseeded_where_keys_are_given():
    model = Stochastic(nnx.Rngs(params=0, dropout=1))
    x = images(6, 3)
    keys = [{"dropout": KEY}, {"dropout": jax.random.key(1)}]
    probe = signal.prepare(model, None, x, rngs=keys[0])
    run = jax.jit(probe.statistics)
    first, again, other = (
        probe.read(run(nnx.state(model), x, None, rngs)) for rngs in (keys[0], *keys)
    )
    assert first == again != other
    # The model's own stream has the second key.
    own = signal.measure(model, None, x).layers[1]
    assert own.second_moment == pytest.approx(other.layers[1].second_moment)


class Tied(nnx.Module):
    def __init__(self, rngs):
        self.a = nnx.Linear(4, 4, rngs=rngs)
        self.b = nnx.Linear(4, 4, rngs=rngs)
        self.b.kernel = self.a.kernel
        self.alias = self.a
        self.unused = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        return self.b(nnx.relu(self.a(nnx.relu(self.alias(x)))))


def test_tied_kernels_have_one_gradient_and_unused_layers_are_listed():
    model = Tied(nnx.Rngs(0))
    x = images(6, 4)
    found = signal.measure(model, None, x, loss=lambda y: jnp.mean(y**2))
    assert [row.name for row in found.layers] == ["a", "a[1]", "a[2]"]  # one kernel
    gradient = nnx.grad(lambda model: jnp.mean(model(x) ** 2))(model)["a"]["kernel"][...]
    for row in found.layers:
        expected = float(jnp.sqrt(jnp.mean(gradient**2)))
        assert row.kernel_gradient_rms == pytest.approx(expected, rel=1e-5)
    assert found.not_measured == ("unused/kernel",)


class Transformed(nnx.Module):
    def __init__(self, rngs):
        self.before = nnx.Linear(3, 4, rngs=rngs)
        self.inside = nnx.Linear(4, 4, rngs=rngs)
        self.after = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        x = self.before(x)
        x = nnx.remat(lambda layer, x: layer(x))(self.inside, x)
        x = nnx.jit(lambda layer, x: layer(x))(self.inside, x)
        return self.after(x)


def test_what_is_inside_an_nnx_transformation_is_measured():
    found = signal.measure(Transformed(nnx.Rngs(0)), None, jnp.ones((2, 3)))
    assert [row.name for row in found.layers] == ["before", "inside", "inside[1]", "after"]
    assert found.not_measured == ()
