"""Factors of second moments: of each kernel, and of the operations between layers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import prelu_jax as pj
from prelu_jax import signal
from prelu_jax.signal import Report
from tests.signal import reference
from tests.signal.nets import NETS, drawn, flat, images
from tests.signal.test_probe import noise

# --- The expected factor of a product -------------------------------------------------------------


def conv(x, w, **options):
    settings = {"window_strides": (1, 1), "padding": "SAME"} | options
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, dimension_numbers=numbers, **settings)


def transposed(x, w):
    return jax.lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


valid = functools.partial(conv, padding="VALID")


def zeros_around(x):
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def patches(x):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated_patches(
        x, (3, 3), (1, 1), "SAME", dimension_numbers=numbers
    )


MAPS = (4, 5, 6, 16)
PRODUCTS = {  # product, shape of x, shape of the kernel
    "dense": (jnp.matmul, (16, 64), (64, 32)),
    "two axes": (lambda x, w: jnp.einsum("bthk,hkd->btd", x, w), (4, 6, 2, 8), (2, 8, 32)),
    "experts": (lambda x, w: jnp.einsum("ebk,ekd->ebd", x, w), (3, 8, 16), (3, 16, 32)),
    "same": (conv, MAPS, (3, 3, 16, 32)),
    "wide": (conv, MAPS, (5, 2, 16, 32)),
    "valid": (valid, MAPS, (3, 3, 16, 32)),
    "strides": (functools.partial(conv, window_strides=(2, 3)), MAPS, (3, 3, 16, 32)),
    "gaps": (functools.partial(conv, window_strides=(3, 3)), MAPS, (2, 2, 16, 32)),
    "dilation": (functools.partial(conv, rhs_dilation=(2, 1)), MAPS, (3, 3, 16, 32)),
    "groups": (functools.partial(conv, feature_group_count=4), MAPS, (3, 3, 4, 32)),
    "depthwise": (functools.partial(conv, feature_group_count=16), MAPS, (3, 3, 1, 32)),
    "transposed": (transposed, MAPS, (3, 3, 16, 32)),
    "padded": (functools.partial(valid, window_strides=(2, 2)), MAPS, (3, 3, 16, 32)),
    "patches": (jnp.matmul, MAPS, (144, 32)),
}
PREPARED = {"padded": zeros_around, "patches": patches}  # operand of the product, from x
KEYS = 16


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_factor_of_independent_weights_is_exact_and_is_what_kernels_measure(name):
    product, shape, kernel = PRODUCTS[name]
    rng = np.random.default_rng(0)
    # Uneven over places, so that a border that counts wrongly changes the sum.
    x = rng.standard_normal(shape, np.float32) * rng.lognormal(0, 1, shape[:-1])[..., None]
    x = jnp.asarray(x, jnp.float32)
    prepared = PREPARED.get(name, lambda x: x)
    operand, ones = prepared(x), jnp.ones(kernel)
    out = jax.eval_shape(product, operand, ones)
    back = (
        rng.standard_normal(out.shape, np.float32) * rng.lognormal(0, 1, out.shape[:-1])[..., None]
    )
    back = jnp.asarray(back, jnp.float32)

    def net(params, x):
        return product(prepared(x * params["scale"]), params["kernel"])

    params = {"scale": jnp.ones(()), "kernel": ones}
    probe = signal.prepare(net, params, x, loss=lambda y: jnp.sum(y * back))
    run = jax.jit(probe.statistics)
    y, pull_back = jax.vjp(lambda operand: product(operand, ones), jnp.square(operand))
    (of_x,) = pull_back(jnp.square(back))
    ratios = []
    for seed in range(KEYS):
        w = np.random.default_rng(seed).standard_normal(kernel, np.float32)
        (row,) = probe.read(run(jax.tree.leaves(params | {"kernel": w}), x)).layers
        variance = np.mean(np.square(w, dtype=np.float64))
        forward = variance * float(jnp.mean(y) / jnp.mean(jnp.square(x)))
        # Of a padded or unfolded operand all entries count, over the entries of x.
        backward = variance * float(jnp.sum(of_x) / x.size / jnp.mean(jnp.square(back)))
        assert row.expected_kernel_factor == pytest.approx(forward, rel=1e-5)
        assert row.expected_gradient_kernel_factor == pytest.approx(backward, rel=1e-5)
        ratios.append(
            (
                row.kernel_factor / row.expected_kernel_factor,
                row.gradient_kernel_factor / row.expected_gradient_kernel_factor,
            )
        )
    for direction, values in zip(("forward", "backward"), np.transpose(ratios), strict=True):
        error = np.std(values, ddof=1) / math.sqrt(KEYS)
        print(f"{name} {direction}: {np.mean(values):.4f} ± {error:.4f}")
        assert error < 0.05
        assert abs(np.mean(values) - 1) < 5 * error


def test_a_bias_counts_in_what_is_expected():
    x = images(64, 32)
    model = nn.Dense(256)
    variables = drawn(model, x)
    variables["params"]["bias"] = np.full(256, 10.0, np.float32)
    (row,) = signal.measure(model, variables, x).layers
    kernel = np.mean(np.square(variables["params"]["kernel"], dtype=np.float64)) * 32
    expected = kernel + 100 / row.input_second_moment
    assert row.expected_kernel_factor == pytest.approx(expected, rel=1e-5)
    assert row.kernel_factor == pytest.approx(expected, rel=0.05)


def test_a_layer_that_reads_the_batch_or_a_table_has_no_gradient_of_its_input():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, tokens, x):
            return nn.Dense(3, name="b")(nn.Embed(5, 4, name="table")(tokens)) + nn.Dense(3)(x)

    inputs = (jnp.arange(4), images(4, 6))
    table, b, dense = signal.measure(Net(), drawn(Net(), *inputs), inputs).layers
    fields = ("kernel_factor", "expected_kernel_factor", "gradient_kernel_factor", "previous")
    assert [getattr(table, field) for field in fields] == [None] * 4
    assert dense.kernel_factor == dense.second_moment / dense.input_second_moment
    assert [getattr(dense, field) for field in fields[2:]] == [None, None]
    assert dense.between_factor is dense.gradient_between_factor is None
    assert b.previous == "table"
    assert b.between_factor == pytest.approx(1, rel=1e-6)
    assert b.gradient_between_factor == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("value", [1e-25, 1e25])
def test_factors_are_measured_of_moments_beyond_the_range_of_float32(value):
    def net(params, x):
        return jnp.sum((x * params["scale"]) @ params["kernel"])

    x = images(8, 16)
    params = {"scale": jnp.ones(()), "kernel": images(16, 8)}
    (plain,) = signal.measure(net, params, x, loss=lambda y: y).layers
    (row,) = signal.measure(net, params, x * value, loss=lambda y: y * value).layers
    for field in ("kernel_factor", "gradient_kernel_factor"):
        for name in (field, f"expected_{field}"):
            assert getattr(row, name) == pytest.approx(getattr(plain, name), rel=1e-4)


# --- Whole nets -----------------------------------------------------------------------------------


def check_products(layers, atol=0.0):
    """Check that the two factors of each layer make up the whole change, forward and backward."""
    by_name = {row.name: row for row in layers}
    linked = [(by_name[row.previous], row) for row in layers if row.previous is not None]
    for before, row in linked:
        forward = row.second_moment / before.second_moment
        backward = before.gradient_second_moment / row.gradient_second_moment
        assert row.between_factor * row.kernel_factor == pytest.approx(forward, rel=1e-6)
        both = row.gradient_kernel_factor * row.gradient_between_factor
        assert both == pytest.approx(backward, rel=1e-6)
    return len(linked)


@functools.cache
def transformer():
    net = NETS["transformer"]
    x = images(*net.shape)
    variables = drawn(net.linen, x)
    return variables, x, signal.measure(net.linen, variables, x).layers


def test_the_gradient_of_an_input_is_that_through_one_layer_alone():
    """The queries, keys and values read one array, whose own gradient is the sum of three."""
    variables, x, layers = transformer()
    params = flat(variables)
    calls, _, _ = reference.by_hand(NETS["transformer"].by_hand, params, x, noise)
    axes = {"attention/out": 1} | dict.fromkeys(
        ("attention/query", "attention/key", "attention/value"), 2
    )
    compared = 0
    for row, (name, x, y, gradient) in zip(layers, calls, strict=True):
        assert row.path == name
        assert row.kernel_factor == pytest.approx(float(jnp.mean(y**2) / jnp.mean(x**2)), rel=1e-5)
        if row.gradient_kernel_factor is None:
            continue
        kernel = np.asarray(params[f"{name}/kernel"], np.float64)
        n = axes.get(name, 1)
        of_x = np.tensordot(
            np.asarray(gradient, np.float64),
            kernel,
            (range(-n, 0), range(kernel.ndim - n, kernel.ndim)),
        )
        expected = np.mean(of_x**2) / np.mean(np.asarray(gradient, np.float64) ** 2)
        assert row.gradient_kernel_factor == pytest.approx(expected, rel=1e-4), name
        compared += 1
    assert compared == len(calls)


WIDTH, DEPTH = 8, 2


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        y = nn.LayerNorm(name="norm")(x)
        y = nn.MultiHeadDotProductAttention(2, name="attention")(y, y)
        x = x + y
        y = nn.gelu(nn.Dense(16, name="up")(nn.LayerNorm(name="norm_1")(x)))
        return x + nn.Dense(WIDTH, name="down")(y), None


class Transformer(nn.Module):
    scanned: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(WIDTH, name="stem")(x)
        if self.scanned:
            stack = nn.scan(
                nn.remat(Block), {"params": 0}, split_rngs={"params": True}, length=DEPTH
            )
            x, _ = stack(name="blocks")(x, None)
        else:
            for i in range(DEPTH):
                x, _ = Block(name=f"block_{i}")(x)
        return nn.Dense(3, name="head")(nn.LayerNorm(name="norm")(x))


def test_a_scanned_and_rematerialised_transformer_is_split_as_the_same_one_written_out():
    x = images(4, 5, 6)
    scanned = drawn(Transformer(True), x)
    params = dict(scanned["params"])
    blocks = params.pop("blocks")
    for i in range(DEPTH):
        params[f"block_{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], blocks)
    rows = signal.measure(Transformer(True), scanned, x).layers
    unrolled = signal.measure(Transformer(False), {"params": params}, x).layers
    assert check_products(rows) == check_products(unrolled) == 6 * DEPTH + 1
    fields = ("between", "kernel", "gradient_between", "gradient_kernel")
    fields = [f"{name}_factor" for name in fields]
    fields += [f"expected_{name}" for name in fields if "kernel" in name]
    for one, other in zip(rows, unrolled, strict=True):
        assert one.between == other.between
        for field in fields:
            value = getattr(other, field)
            assert getattr(one, field) == (value and pytest.approx(value, rel=1e-4)), field
    names = {row.name: row for row in rows}
    for name in ("query", "key", "value"):
        row = names[f"blocks/attention/{name}[1]"]
        assert row.previous == "blocks/down[0]"
        assert row.between == ("residual sum", "normalisation")
    assert names["blocks/down[1]"].between == ("tanh",)
    assert "softmax" in names["blocks/attention/out[1]"].between


class ResNet(nn.Module):
    """A stem with a max pool, a plain block and one with strides and a projection."""

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(nn.BatchNorm, use_running_average=False)
        conv = functools.partial(nn.Conv, kernel_size=(3, 3), use_bias=False)
        x = nn.relu(norm()(conv(8, name="stem")(x)))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        for i, strides in enumerate((1, 2)):
            y = nn.relu(norm()(conv(8, strides=strides, name=f"a_{i}")(x)))
            y = norm()(conv(8, name=f"b_{i}")(y))
            if strides > 1:
                x = norm()(nn.Conv(8, (1, 1), strides, use_bias=False, name="projection")(x))
            x = nn.relu(x + y)
        return nn.Dense(3, name="head")(x.mean(axis=(1, 2)))


def test_a_resnet_with_batch_norm_is_split():
    x = images(4, 8, 8, 3)
    variables = drawn(ResNet(), x)
    rows = {row.name: row for row in signal.measure(ResNet(), variables, x).layers}
    assert check_products(rows.values()) == 6
    normal = ("normalisation", "rectifier")
    summed = ("normalisation", "residual sum", "rectifier")
    assert {name: (row.previous, row.between) for name, row in rows.items()} == {
        "stem": (None, ()),
        "a_0": ("stem", (*normal, "max pool")),
        "b_0": ("a_0", normal),
        "a_1": ("b_0", summed),
        "b_1": ("a_1", normal),
        "projection": ("b_0", summed),
        "head": ("projection", (*summed, "mean")),
    }


# --- The report -----------------------------------------------------------------------------------


def dense(x, i):
    return nn.Dense(64, use_bias=False, name=f"dense_{i}")(x)


class Divided(nn.Module):
    """Layers of He's rule; between all of them a division by ten, or between two by a hundred."""

    everywhere: bool

    @nn.compact
    def __call__(self, x):
        for i in range(10):
            x = nn.relu(dense(x, i))
            if self.everywhere:
                x = x / 10
            elif i == 4:
                x = x / 100
        return nn.Dense(3, name="head")(x)


class NotNormalised(nn.Module):
    """Residual blocks whose norm was forgotten: every sum doubles the second moment."""

    @nn.compact
    def __call__(self, x):
        x = dense(x, 0)
        for i in range(1, 21, 2):
            x = x + dense(nn.relu(dense(x, i)), i + 1)
        return nn.Dense(3, name="head")(x)


def diagnosed(model):
    x = images(32, 64)
    variables = drawn(model, x)
    for layer in variables["params"].values():
        layer["kernel"] *= 32**-0.5 / layer["kernel"].std()  # He's, of 64 inputs
    return pj.diagnose(model, variables, x)


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_division_between_layers_is_named(everywhere):
    report = diagnosed(Divided(everywhere))
    assert report.verdict == "vanishing"
    place = "between dense_1 and dense_2" if everywhere else "between dense_4 and dense_5"
    number = 10 if everywhere else 100
    where = f"{place} (rectifier, divided by {number}) the second moment is multiplied by"
    assert where in report.summary
    assert "take the factor out" in report.summary
    assert "and so at 8 more places" in report.summary or not everywhere
    assert "kernels and rectifiers" not in report.summary


def test_residual_sums_that_grow_are_named():
    report = diagnosed(NotNormalised())
    assert report.verdict == "exploding"
    advice = "the residual sums multiply the second moment by"
    assert report.summary.count(advice) >= 1
    assert "(residual sum)" in report.summary
    assert "kernels and rectifiers" not in report.summary


def test_the_table_of_factors_has_every_layer_and_explains_its_columns():
    _, _, layers = transformer()
    report = Report("Transformer", signal.Measurement(layers, ()))
    text = str(report.factors())
    for row in layers:
        assert row.name in text
    assert "residual sum, normalisation" in text
    assert f"{layers[-1].kernel_factor:.3g}" in text
    for column in ("between", "kernel", "expected"):
        assert f"{column}: " in text
    assert report.factors()._repr_html_().startswith("<pre")
    assert list(report.rows())[4]["between"] == ("residual sum", "normalisation")


def test_circular_padding_takes_nothing_away():
    def net(kernels, x):
        for kernel in kernels:
            x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
            numbers = ("NHWC", "HWIO", "NHWC")
            y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=numbers)
            x = jax.nn.relu(y)
        return x

    first, *keys = jax.random.split(jax.random.key(0), 13)
    kernels = [jax.random.normal(key, (3, 3, 32, 32)) / (9 * 32) ** 0.5 for key in keys]
    report = pj.diagnose(net, kernels, jax.random.normal(first, (16, 4, 4, 32)))
    for row in report.layers[1:]:
        assert row.expected_gradient_kernel_factor == pytest.approx(1, abs=0.05)
        assert 0.4 < row.gradient_between_factor < 0.7  # a rectifier's half
    assert {finding.direction for finding in report.findings} == {"forward", "backward"}
    assert "he_normal('fan_out')" in report.summary
    assert "padding" not in report.summary


@pytest.mark.parametrize("takes_first", [True, False])
def test_the_layer_before_is_in_the_branch_that_ran(takes_first):
    def net(params, x):
        first, second, last = params
        h = x @ params[2]
        chosen = jnp.sum(x) < jnp.inf if takes_first else jnp.sum(x) > jnp.inf
        h = jax.lax.cond(chosen, lambda h: jax.nn.relu(h @ first), lambda h: h @ second, h)
        return h @ last

    params = [jax.random.normal(key, (8, 8)) for key in jax.random.split(jax.random.key(0), 3)]
    report = pj.diagnose(net, params, jnp.ones((4, 8)))
    last = report.layers[-1]
    assert last.previous == ("0" if takes_first else "1")
    before = next(row for row in report.layers if row.name == last.previous)
    assert last.between_factor * last.kernel_factor == pytest.approx(
        last.second_moment / before.second_moment, rel=1e-6
    )
