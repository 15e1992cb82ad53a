"""A function is seen through every transformation as if it had been written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from tests.signal.nets import drawn
from tests.tracing.rows import assert_same, program_of, rows

DEPTH, WIDTH = 6, 8
KEYS = jax.random.split(jax.random.key(0), 4)


def stack():
    """Weights of a residual net of rectifiers, stacked over its layers."""
    kernels = jax.random.normal(KEYS[0], (DEPTH, WIDTH, WIDTH)) / 3
    biases = jax.random.normal(KEYS[1], (DEPTH, WIDTH)) / 3
    return {"head": jax.random.normal(KEYS[2], (WIDTH, 3)), "layers": {"b": biases, "w": kernels}}


X = jax.random.normal(KEYS[3], (5, WIDTH))


def layer(x, layer):
    return x + jax.nn.relu(x @ layer["w"] + layer["b"]), None


def unrolled(params, x):
    for i in range(DEPTH):
        x, _ = layer(x, jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]))
    return x @ params["head"]


def scanned(params, x, body=layer, **options):
    x, _ = jax.lax.scan(body, x, params["layers"], **options)
    return x @ params["head"]


def with_policy(params, x):
    policy = jax.checkpoint_policies.dots_saveable
    return scanned(params, x, jax.checkpoint(layer, policy=policy))


def nested(params, x):
    outer = jax.tree.map(lambda leaf: leaf.reshape(2, 3, *leaf.shape[1:]), params["layers"])
    body = jax.checkpoint(lambda x, layers: jax.lax.scan(jax.checkpoint(layer), x, layers))
    x, _ = jax.lax.scan(body, x, outer)
    return x @ params["head"]


def with_indices(params, x):
    def body(x, i):
        return layer(x, jax.tree.map(lambda leaf: leaf[i], params["layers"]))

    x, _ = jax.lax.scan(body, x, jnp.arange(DEPTH))
    return x @ params["head"]


def carrying_the_weights(params, x):
    def body(carry, i):
        x, layers = carry
        x, _ = layer(x, jax.tree.map(lambda leaf: leaf[i], layers))
        return (x, layers), None

    (x, _), _ = jax.lax.scan(body, (x, params["layers"]), jnp.arange(DEPTH))
    return x @ params["head"]


def backward(params, x):
    flipped = jax.tree.map(lambda leaf: leaf[::-1], params["layers"])
    return scanned({**params, "layers": flipped}, x, reverse=True)


def in_jit(params, x):
    return jax.jit(functools.partial(scanned, body=jax.jit(layer)))(params, x)


def of_examples(params, x):
    return jax.vmap(scanned, in_axes=(None, 0))(params, x)


def by_branches(params, x):
    def body(x, of_layer):
        here = jnp.sum(x) > -1e9  # always, but not known beforehand
        return jax.lax.cond(here, layer, lambda x, _: (x, None), x, of_layer)

    return scanned(params, x, body)


WAYS = [
    scanned,
    with_policy,
    nested,
    with_indices,
    carrying_the_weights,
    backward,
    in_jit,
    of_examples,
    by_branches,
]


@functools.cache
def rows_of_the_unrolled_stack():
    return rows(unrolled, stack(), X)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_way_to_write_a_stack_has_the_rows_of_the_unrolled_one(way):
    expected, outputs = rows_of_the_unrolled_stack()
    found, same = rows(way, stack(), X)
    np.testing.assert_allclose(same, outputs, rtol=1e-5)
    assert_same(found, expected)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_weights_and_biases_have_names_steps_and_fans(way):
    _, _, program = program_of(way, stack(), X)
    layers, head = program.operations
    assert (layers.parameters, layers.bias) == (("layers/w",), "layers/b")
    assert (head.parameters, head.bias, head.steps) == (("head",), None, ())
    assert layers.is_view
    assert all(layers.own)
    assert np.prod(layers.steps) == DEPTH
    assert (layers.fans, head.fans) == ((WIDTH, WIDTH), (WIDTH, 3))
    assert (layers.channel_axes, layers.shape[-1]) == ((-1,), WIDTH)
    assert program.reading.not_measured == {}
    assert program.reading.seen == ("head", "layers/w")


def test_24_layers_scanned_and_rematerialised_have_the_rows_of_the_unrolled_net(monkeypatch):
    monkeypatch.setitem(globals(), "DEPTH", 24)
    expected, _ = rows(unrolled, stack(), X)
    found, _ = rows(with_policy, stack(), X)
    assert len(found) == 25
    assert_same(found, expected)


def test_checkpoint_keeps_its_policy():
    _, state, program = program_of(with_policy, stack(), X)

    def run(x):
        parameters = dict(zip(program.names, state, strict=True))
        observe = lambda visit: (visit.y, None)  # noqa: E731
        return program.run(parameters, state, (x,), observe)[0]

    (scan,) = (e for e in jax.make_jaxpr(run)(X).eqns if e.primitive.name == "scan")
    body = scan.params["jaxpr"]
    (remat,) = (e for e in body.eqns if "remat" in e.primitive.name or "check" in e.primitive.name)
    assert remat.params["policy"] is jax.checkpoint_policies.dots_saveable


def test_rows_of_a_reversed_scan_are_in_the_order_of_execution():
    found, _ = rows(backward, stack(), X)
    layers = [f"layers/w[{i}]" for i in reversed(range(DEPTH))]
    assert [row.name for row in found] == [*layers, "head"]


def test_the_branch_that_does_not_run_has_a_record_of_zeros():
    def branches(params, x):
        return jax.lax.cond(x.sum() > 1e9, lambda: x @ params["a"], lambda: x @ params["b"])

    params = {"a": stack()["layers"]["w"][0], "b": stack()["layers"]["w"][1]}
    by_name = {row.name: row for row in rows(branches, params, X)[0]}
    assert not by_name["a"].y.any()
    np.testing.assert_allclose(by_name["b"].y, X @ params["b"], rtol=1e-5)


# ---- Flax's transformations


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        h = nn.LayerNorm()(x)
        h = nn.MultiHeadDotProductAttention(2)(h, h)
        x = x + h
        h = nn.Dense(2 * WIDTH)(nn.LayerNorm()(x))
        return x + nn.Dense(WIDTH, use_bias=False)(nn.gelu(h)), None


BLOCKS = 2


class Transformer(nn.Module):
    block: type
    axis: int | None = None  # of the scanned stack in the parameters; None: unrolled

    @nn.compact
    def __call__(self, x):
        if self.axis is None:
            for i in range(BLOCKS):
                x, _ = self.block(name=f"block_{i}")(x)
        else:
            stacked = nn.scan(
                self.block,
                variable_axes={"params": self.axis},
                split_rngs={"params": True},
                length=BLOCKS,
            )
            x, _ = stacked(name="blocks")(x, None)
        return nn.Dense(3, name="head")(x.mean(axis=1))


@functools.cache
def rows_of_the_unrolled_transformer():
    """Return its variables, the inputs, and the rows."""
    x = jax.random.normal(KEYS[0], (2, 4, WIDTH))
    variables = drawn(Transformer(Block), x)
    return variables, x, rows(Transformer(Block), variables, x)[0]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("block", [Block, nn.remat(Block)])
def test_a_scanned_linen_transformer_has_the_rows_of_the_unrolled_one(block, axis):
    variables, x, expected = rows_of_the_unrolled_transformer()
    params = variables["params"]
    blocks = [params[f"block_{i}"] for i in range(BLOCKS)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves, min(axis, leaves[0].ndim)), *blocks)
    of_scan = {"params": {"head": params["head"], "blocks": stacked}}
    found, _ = rows(Transformer(block, axis), of_scan, x)
    assert_same(found, expected)
    assert found[0].name == "blocks/MultiHeadDotProductAttention_0/query/kernel[0]"
    assert len(found) == BLOCKS * 6 + 1


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        return x + nnx.relu(self.dense(x))


class NnxStack(nnx.Module):
    def __init__(self, rngs):
        @nnx.split_rngs(splits=DEPTH)
        @nnx.vmap(axis_size=DEPTH)
        def make(rngs):
            return NnxBlock(rngs)

        self.blocks = make(rngs)
        self.head = nnx.Linear(WIDTH, 3, use_bias=False, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        @nnx.remat
        def run(x, block):
            return block(x)

        return self.head(run(x, self.blocks))


def test_nnx_scan_and_remat_have_the_rows_of_the_unrolled_net():
    model = NnxStack(nnx.Rngs(0))
    dense = model.blocks.dense
    params = {
        "head": model.head.kernel[...],
        "layers": {"w": dense.kernel[...], "b": dense.bias[...]},
    }
    found, _ = rows(model, None, X)
    assert_same(found, rows(unrolled, params, X)[0])
    assert found[2].name == "blocks/dense/kernel[2]"


class WrittenOut(nn.Module):
    """A recurrent net without a scan."""

    cell: nn.RNNCellBase
    learned: bool = False

    @nn.compact
    def __call__(self, x):
        carry = self.cell.initialize_carry(KEYS[0], x[:, 0].shape)
        if self.learned:
            start = self.param("start", nn.initializers.normal(), carry[0].shape[1:])
            carry = jax.tree.map(lambda zeros: zeros + start, carry)
        outputs = []
        for t in range(x.shape[1]):
            carry, y = self.cell(carry, x[:, t])
            outputs.append(y)
        return jnp.stack(outputs, 1)


CELLS = [nn.LSTMCell, nn.OptimizedLSTMCell, nn.GRUCell, nn.SimpleCell]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.__name__)
def test_a_recurrent_net_has_a_row_for_every_step(cell):
    """The first step's too, whose state is zeros for every example."""
    x = jax.random.normal(KEYS[0], (2, 3, 3))
    model = nn.RNN(cell(5))
    variables = drawn(model, x)
    found = rows(model, variables, x)[0]
    assert_same(found, rows(WrittenOut(cell(5)), variables, x)[0])
    assert_same(found, rows(nn.RNN(nn.remat(cell)(5)), variables, x)[0])
    assert len(found) % 3 == 0
    assert all("[" not in row.name for row in found)  # the weights are the same at every step


def test_a_learned_first_state_is_data_too():
    x = jax.random.normal(KEYS[0], (2, 4, 3))
    model = WrittenOut(nn.SimpleCell(5), learned=True)
    variables = drawn(model, x)
    found = rows(model, variables, x)[0]
    assert [row.name for row in found].count("cell/h/kernel") == 4
