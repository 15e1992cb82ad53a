"""A stack of layers is calibrated as if it had been written out, whatever it is written with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import prelu_jax as pj
from prelu_jax import datadep
from tests.signal.nets import drawn
from tests.tracing import test_frameworks as frameworks
from tests.tracing import test_program as stacks

KEY = jax.random.key(3)
X = jax.random.normal(jax.random.key(4), (32, stacks.WIDTH))
METHODS = ["within_layer", "lsuv", "pca"]
RTOL = 1e-5


def assert_close(found, expected, rtol=RTOL):
    assert jax.tree.structure(found) == jax.tree.structure(expected)

    def check(found, expected):
        np.testing.assert_allclose(found, expected, rtol, rtol * np.abs(expected).max())

    jax.tree.map(check, found, expected)


@functools.cache
def of_the_unrolled_stack(method):
    return datadep.calibrate(stacks.unrolled, stacks.stack(), X, method=method, key=KEY)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", stacks.WAYS, ids=lambda way: way.__name__)
def test_every_way_to_write_a_stack_is_calibrated_like_the_unrolled_one(way, method):
    expected, unrolled = of_the_unrolled_stack(method)
    found, report = datadep.calibrate(way, stacks.stack(), X, method=method, key=KEY)
    assert_close(found, expected)
    for row, other in zip(report.stages[0].layers, unrolled.stages[0].layers, strict=True):
        assert row.scale == pytest.approx(other.scale, rel=RTOL)
        assert row.error < 1e-3
    assert report.coverage.share == 1


def scanned_chain(params, x):
    def body(x, layer):
        return jax.nn.relu(x @ layer["w"] + layer["b"]), None

    x, _ = jax.lax.scan(jax.checkpoint(body), x, params["layers"])
    return x @ params["head"]


def transposed_chain(params, x):
    """The layers along another axis, and scanned from the last."""
    moved = {"w": params["layers"]["w"].transpose(1, 0, 2), "b": params["layers"]["b"].T}

    def model(params, x):
        layers = {
            "w": params["layers"]["w"].transpose(1, 0, 2)[::-1],
            "b": params["layers"]["b"].T[::-1],
        }

        def body(x, layer):
            return jax.nn.relu(x @ layer["w"] + layer["b"]), None

        x, _ = jax.lax.scan(body, x, layers, reverse=True)
        return x @ params["head"]

    return model, {**params, "layers": moved}


@pytest.mark.parametrize("way", ["scanned", "transposed"])
def test_between_layer_has_a_factor_for_every_layer_of_a_stack(way):
    params = stacks.stack()
    spread = jnp.exp(jnp.linspace(-2.0, 2.0, stacks.DEPTH))
    params["layers"]["w"] *= spread[:, None, None]
    params["layers"]["b"] = jnp.abs(params["layers"]["b"])  # no layer is dead
    listed = {f"w{i}": params["layers"]["w"][i] for i in range(stacks.DEPTH)}
    listed |= {f"b{i}": params["layers"]["b"][i] for i in range(stacks.DEPTH)}
    listed |= {"head": params["head"]}

    def unrolled(params, x):
        for i in range(stacks.DEPTH):
            x = jax.nn.relu(x @ params[f"w{i}"] + params[f"b{i}"])
        return x @ params["head"]

    options = {"method": "between_layer", "key": KEY}
    _, reference = datadep.calibrate(unrolled, listed, X, **options)
    model, given = scanned_chain, params
    if way == "transposed":
        model, given = transposed_chain(params, X)
    after, report = datadep.calibrate(model, given, X, **options)
    found = report.stages[0]
    assert reference.stages[0].spread_before > 0.5
    assert found.spread_after < 0.05
    names = [row.layer for row in found.layers]
    steps = range(stacks.DEPTH)
    order = steps if way == "scanned" else reversed(steps)
    assert names == [*(f"layers[{i}]" for i in order), "head"]
    for row, other in zip(found.layers, reference.stages[0].layers, strict=True):
        assert row.factor == pytest.approx(other.factor, rel=1e-3)
    np.testing.assert_allclose(model(after, X), model(given, X), rtol=1e-3, atol=1e-5)


def test_layers_have_names_with_their_steps():
    names = {
        stacks.unrolled: ["layers", *(f"layers[{i}]" for i in range(1, 6))],
        stacks.scanned: [f"layers[{i}]" for i in range(6)],
        stacks.nested: [f"layers[{i}][{j}]" for i in range(2) for j in range(3)],
        stacks.backward: [f"layers[{i}]" for i in reversed(range(6))],
    }
    for way, expected in names.items():
        _, report = datadep.calibrate(way, stacks.stack(), X)
        assert [row.layer for row in report.stages[0].layers] == [*expected, "head"]


TOKENS = jax.random.normal(KEY, (16, 4, stacks.WIDTH))


@functools.cache
def of_the_plain_transformer(method):
    """Return its variables, and the calibrated ones."""
    plain = stacks.Transformer(stacks.Block)
    variables = drawn(plain, TOKENS)
    return variables, datadep.calibrate(plain, variables, TOKENS, method=method, key=KEY)[0]


# Axis 0 with one method: the other stacks in this file have it with all of them.
@pytest.mark.parametrize(
    ("axis", "method"), [(0, "within_layer"), *((1, name) for name in METHODS)]
)
def test_a_scanned_and_rematerialised_transformer(method, axis):
    scanned = stacks.Transformer(nn.remat(stacks.Block), axis)
    variables, expected = of_the_plain_transformer(method)

    def stacked(params):
        blocks = [params[f"block_{i}"] for i in range(stacks.BLOCKS)]
        joined = jax.tree.map(lambda *leaves: jnp.stack(leaves, min(axis, leaves[0].ndim)), *blocks)
        return {"params": {"head": params["head"], "blocks": joined}}

    found, report = datadep.calibrate(
        scanned, stacked(variables["params"]), TOKENS, method=method, key=KEY
    )
    # A signal passes 12 layers, each divided by a std of its own.
    assert_close(found, stacked(expected["params"]), 1e-4)
    assert len(report.stages[0].layers) == stacks.BLOCKS * 6 + 1
    assert report.stages[0].layers[6].layer.endswith("query[1]")


@pytest.mark.parametrize("method", METHODS)
def test_nnx_scan_and_remat(method):
    model = stacks.NnxStack(nnx.Rngs(0))
    dense = model.blocks.dense
    params = {
        "head": model.head.kernel[...],
        "layers": {"w": dense.kernel[...], "b": dense.bias[...]},
    }
    expected, _ = datadep.calibrate(stacks.unrolled, params, X, method=method, key=KEY)
    report = datadep.calibrate(model, X, method=method, key=KEY)
    found = {
        "head": model.head.kernel[...],
        "layers": {"w": dense.kernel[...], "b": dense.bias[...]},
    }
    assert_close(found, expected)
    assert report.stages[0].layers[2].layer == "blocks/dense[2]"


class PreluStack(nn.Module):
    """Convolutions with learned slopes, scanned."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), name="stem")(x)
        for i in range(2):
            x = pj.PReLU(name=f"prelu_{i}")(nn.Conv(4, (3, 3), name=f"conv_{i}")(x))
        return nn.Dense(3, name="head")(x.mean(axis=(1, 2)))


class _Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return pj.PReLU(name="prelu")(nn.Conv(4, (3, 3), name="conv")(x)), None


class ScannedPreluStack(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), name="stem")(x)
        rolled = nn.scan(_Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        x, _ = rolled(name="blocks")(x, None)
        return nn.Dense(3, name="head")(x.mean(axis=(1, 2)))


@pytest.mark.parametrize("method", [*METHODS, "zca", "kmeans"])
def test_convolutions_with_slopes(method):
    x = jax.random.normal(KEY, (24, 5, 5, 2))
    variables = drawn(PreluStack(), x)

    def stacked(params):
        names = [("conv", f"conv_{i}", "prelu", f"prelu_{i}") for i in range(2)]
        blocks = [{a: params[b], c: params[d]} for a, b, c, d in names]
        joined = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
        return {"params": {"stem": params["stem"], "head": params["head"], "blocks": joined}}

    options = {"method": method, "key": KEY}
    expected, _ = datadep.calibrate(PreluStack(), variables, x, **options)
    found, report = datadep.calibrate(
        ScannedPreluStack(), stacked(variables["params"]), x, **options
    )
    assert_close(found, stacked(expected["params"]), 1e-4)
    assert not any(row.notes for row in report.stages[0].layers)


SEQUENCES = jax.random.normal(KEY, (16, 6, 3))


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.OptimizedLSTMCell, nn.GRUCell])
def test_a_recurrent_cell_is_calibrated_over_all_its_steps(cell):
    model = nn.RNN(cell(4))
    variables = drawn(model, SEQUENCES)
    after, report = datadep.calibrate(model, variables, SEQUENCES)
    assert {row.calls for row in report.stages[0].layers} == {6}
    assert max(row.error for row in report.stages[0].layers) < 1e-3
    by_layer = {}
    for row in pj.signal.measure(model, after, SEQUENCES).layers:
        by_layer.setdefault(row.path, []).append(row.second_moment)
    assert len(by_layer) == len(report.stages[0].layers)
    for name, moments in by_layer.items():
        assert len(moments) == 6, name
        assert np.mean(moments) > 1 - 1e-3, name  # a variance of 1, and a mean if it has no bias


# Written out, an LSTM has eight layers a step, which take long to compile; a simple cell has two.
@pytest.mark.parametrize(
    ("cell", "steps", "method"),
    [(nn.LSTMCell, 6, "within_layer"), (nn.SimpleCell, 3, "lsuv"), (nn.SimpleCell, 3, "pca")],
)
def test_a_recurrent_net_is_calibrated_as_if_it_had_been_written_out(cell, steps, method):
    x = SEQUENCES[:, :steps]
    written_out = stacks.WrittenOut(cell(4))
    variables = drawn(written_out, x)
    options = {"method": method, "key": KEY}
    expected, _ = datadep.calibrate(written_out, variables, x, **options)
    for each in (cell, nn.remat(cell)):
        found, _ = datadep.calibrate(nn.RNN(each(4)), variables, x, **options)
        assert_close(found, expected, 1e-4)  # the passes of a shared layer end at 3e-5


def test_a_branch_that_does_not_run_is_left_as_it_was():
    def branches(params, x):
        one, two = (lambda: x @ params["a"]), (lambda: x @ params["b"])
        return jax.lax.cond(x.sum() > 1e9, one, two)

    params = {name: jax.random.normal(KEY, (stacks.WIDTH, 3)) for name in "ab"}
    after, report = datadep.calibrate(branches, params, X)
    np.testing.assert_array_equal(after["a"], params["a"])
    np.testing.assert_allclose(np.std(X @ after["b"], axis=0), 1, rtol=1e-5)
    notes = {row.layer: row.notes for row in report.stages[0].layers}
    assert notes["a"] == ("in a branch that did not run: left as it was",)


def test_weights_in_one_array_are_corrected_part_by_part():
    """Query, key and value in one kernel with axes of its own, one of them with a bias."""

    def fused(params, x):
        q, k, v = jnp.einsum("bi,ihcd->cbhd", x, params["qkv"])
        return jax.nn.relu(q + k + params["bias"]) + v

    keys = jax.random.split(KEY)
    params = {"qkv": jax.random.normal(keys[0], (8, 2, 3, 5)), "bias": jnp.ones((2, 5))}
    after, report = datadep.calibrate(fused, params, X)
    y = np.einsum("bi,ihcd->cbhd", X, after["qkv"])
    np.testing.assert_allclose(y.std(axis=1), 1, rtol=1e-5)
    assert len(report.stages[0].layers) == 1


def test_weights_of_other_channels_in_two_places_are_left_alone():
    def tied(params, x):
        return jax.nn.relu(x @ params["w"]) @ params["w"].T + x @ params["free"]

    params = {name: jax.random.normal(KEY, (stacks.WIDTH, stacks.WIDTH)) for name in ("w", "free")}
    after, report = datadep.calibrate(tied, params, X)
    np.testing.assert_array_equal(after["w"], params["w"])
    assert [row.layer for row in report.stages[0].layers] == ["free"]
    assert [row.parameter for row in report.skipped] == ["w"]


SIXES = jax.random.normal(KEY, (32, 6))


@functools.cache
def of_the_plain_function(method):
    options = {"method": method, "key": KEY}
    after, _ = datadep.calibrate(frameworks.plain, frameworks.PARAMS, SIXES, **options)
    return frameworks.plain(after, SIXES)


# Libraries differ in where weights are, which one method shows: within_layer keeps kernels and
# shifts biases. Equinox stores kernels transposed: every method is tried.
@pytest.mark.parametrize(
    ("way", "method"),
    [(way, "within_layer") for way in frameworks.WAYS]
    + [(frameworks.equinox, "lsuv"), (frameworks.equinox, "pca")],
    ids=lambda each: getattr(each, "__name__", each),
)
def test_every_library_gets_the_weights_of_the_plain_function(way, method):
    model, variables = way()
    given = [variables] if variables is not None else []
    after = datadep.calibrate(model, *given, SIXES, method=method, key=KEY)
    if not isinstance(model, nnx.Module):
        after, _ = after
    applied = outputs(model, after, SIXES)
    np.testing.assert_allclose(applied, of_the_plain_function(method), rtol=1e-4, atol=1e-4)


def outputs(model, after, x):
    if isinstance(model, nnx.Module):
        return model(x)
    if isinstance(model, nn.Module):
        return model.apply(after, x)
    if hasattr(model, "apply"):
        apply = model.apply
        return apply(*after, None, x)[0] if isinstance(after, tuple) else apply(after, None, x)
    return model(after, x) if isinstance(after, dict) else after(x)


def normal(i, *shape):
    return jax.random.normal(jax.random.key(i), shape)


def test_weights_that_a_scan_puts_out_keep_the_function():
    params = {"w": normal(1, 3, 4, 4), "out": normal(3, 4, 4)}

    def model(params, x):
        _, repeated = jax.lax.scan(lambda c, _: (c, params["w"]), 0.0, jnp.ones(3))
        x, _ = jax.lax.scan(lambda x, w: (jax.nn.relu(x @ w), None), x, repeated[0])
        return jnp.tanh(x) @ params["out"]

    x = normal(0, 16, 4)
    after, _ = datadep.calibrate(model, params, x, method="between_layer")
    np.testing.assert_allclose(model(after, x), model(params, x), rtol=1e-4, atol=1e-5)


def test_a_layer_that_is_called_for_one_example_at_a_time():
    params = {"w": normal(1, 8, 8), "b": normal(2, 8), "out": normal(3, 8, 3)}

    def model(params, x):
        hidden = jax.lax.map(lambda row: jax.nn.relu(row @ params["w"] + params["b"]), x)
        return hidden @ params["out"]

    after, report = datadep.calibrate(model, params, X)
    y = X @ after["w"] + after["b"]
    np.testing.assert_allclose(y.std(axis=0), 1, atol=1e-3)
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-3)
    assert [row.calls for row in report.stages[0].layers] == [32, 1]


@pytest.mark.parametrize("method", ["within_layer", "lsuv", "between_layer"])
def test_a_bias_that_is_one_number(method):
    params = {"w": normal(1, 8, 1), "b": jnp.float32(0.5)}
    after, _ = datadep.calibrate(lambda p, x: x @ p["w"] + p["b"], params, X, method=method)
    if method == "within_layer":
        y = X @ after["w"] + after["b"]
        np.testing.assert_allclose([y.mean(), y.std()], [0, 1], atol=1e-5)


def test_a_bias_of_one_number_for_several_channels_is_named():
    wide = {"w": normal(1, 8, 4), "b": jnp.float32(0.5)}
    _, report = datadep.calibrate(lambda p, x: x @ p["w"] + p["b"], wide, X)
    assert "one number for several channels" in report.stages[0].layers[0].notes[0]


@pytest.mark.parametrize("method", ["within_layer", "lsuv"])
def test_a_bias_with_another_use_is_left_alone(method):
    params = {"w": normal(1, 8, 8), "b": normal(2, 8), "out": normal(3, 8, 3)}

    def model(params, x):
        return (jax.nn.relu(x @ params["w"] + params["b"]) * params["b"]) @ params["out"]

    after, report = datadep.calibrate(model, params, X, method=method)
    for name in ("w", "b"):
        np.testing.assert_array_equal(after[name], params[name])
    first, last = report.stages[0].layers
    assert first.notes[0] == "its bias is used elsewhere too: left as it was"
    assert last.error < 1e-3


def test_a_bias_of_two_layers_is_left_alone():
    params = {"w": normal(1, 8, 8), "v": normal(4, 8, 8), "b": normal(2, 8)}

    def model(params, x):
        return jax.nn.relu(x @ params["w"] + params["b"]) @ params["v"] + params["b"]

    after, report = datadep.calibrate(model, params, X)
    np.testing.assert_array_equal(after["b"], params["b"])
    assert {row.notes[0] for row in report.stages[0].layers} == {
        "its bias is used elsewhere too: left as it was"
    }


@pytest.mark.parametrize("method", ["within_layer", "between_layer"])
def test_a_kernel_of_integers_is_named(method):
    kernel = jnp.arange(64, dtype=jnp.int8).reshape(8, 8)
    params = {"w": kernel, "b": normal(2, 8), "out": normal(3, 8, 3)}

    def model(params, x):
        hidden = jax.nn.relu(x @ params["w"].astype(jnp.float32) + params["b"])
        return hidden @ params["out"]

    _, report = datadep.calibrate(model, params, X, method=method)
    assert [row.layer for row in report.stages[0].layers] == ["out"]
    assert report.skipped[0].why == "its kernel holds int8"


@jax.custom_vjp
def with_a_rule(x, w, b):
    return x @ w + b


def _forward(x, w, b):
    return with_a_rule(x, w, b), (x, w)


def _backward(kept, g):
    x, w = kept
    return g @ w.T, x.T @ g, g.sum(0)


with_a_rule.defvjp(_forward, _backward)


@pytest.mark.parametrize("method", [*METHODS, "between_layer"])
def test_layers_with_a_derivative_of_their_own_are_those_without(method):
    params = {"w": normal(1, 8, 8), "b": normal(2, 8), "v": normal(3, 8, 3), "c": normal(4, 3)}

    def net(product):
        def model(params, x):
            hidden = jax.nn.relu(product(x, params["w"], params["b"]))
            return product(hidden, params["v"], params["c"])

        return model

    plain, ruled = net(lambda x, w, b: x @ w + b), net(jax.jit(with_a_rule))
    expected, _ = datadep.calibrate(plain, params, X, method=method, key=KEY)
    found, report = datadep.calibrate(ruled, params, X, method=method, key=KEY)
    assert_close(found, expected, 1e-4)
    assert report.coverage.share == 1
    with pytest.raises(ValueError, match="100 % of the weights are inside custom_vjp"):
        pj.diagnose(ruled, params, X)  # whose gradients follow the rule
