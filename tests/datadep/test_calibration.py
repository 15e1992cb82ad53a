"""Calibration: its targets, the parameters that it keeps, and its messages about bad input."""

import contextlib
import dataclasses
import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import prelu_jax as pj
from prelu_jax import datadep, signal
from prelu_jax.datadep import channels as moments
from tests.datadep.nets import LINEN, SHAPE, nnx_parameters, nnx_with
from tests.signal.nets import drawn, flat, images

KEY = jax.random.key(3)
DENSE, X = nn.Dense(3), images(8, 4)


def channel_moments(model, variables, x, **kwargs):
    """Mean and std of every channel of every Dense and Conv, by Flax's own means."""
    _, state = model.apply(
        variables,
        x,
        capture_intermediates=lambda module, _: isinstance(module, nn.Dense | nn.Conv),
        mutable=["intermediates"],
        **kwargs,
    )
    found = {}
    for path, outputs in flax.traverse_util.flatten_dict(state["intermediates"]).items():
        y = np.concatenate([np.asarray(y, np.float64).reshape(-1, y.shape[-1]) for y in outputs])
        found["/".join(path[:-1])] = y.mean(axis=0), y.std(axis=0)
    return found


@pytest.fixture(scope="module")
def deep():
    """The 30-layer net with SAME padding, where He's own signal vanishes, before and after."""
    net = pj.arch.with_padding(pj.arch.SMALL_30_REDUCED, "same")
    model = pj.models.build(net, 10, "relu")
    x = images(16, 32, 32, 3)
    variables = jax.jit(model.init)(KEY, x)
    return model, variables, x, *datadep.calibrate(model, variables, x)


@pytest.mark.compiled("too slow")
def test_thirty_layers_in_one_pass(deep):
    model, _, x, variables, report = deep
    found = channel_moments(model, variables, x)
    assert len(found) == 30
    for name, (mean, std) in found.items():
        np.testing.assert_allclose(mean, 0, atol=1e-3, err_msg=name)
        np.testing.assert_allclose(std, 1, atol=1e-3, err_msg=name)
    assert report.stages[0].passes == 1
    assert max(row.error for row in report.stages[0].layers) < 1e-3


def test_a_second_pass_changes_nothing(deep):
    model, _, x, once, _ = deep
    twice, _ = datadep.calibrate(model, once, x)
    for name, value in flat(once).items():
        largest = np.abs(value).max()
        np.testing.assert_allclose(flat(twice)[name], value, atol=1e-4 * largest, err_msg=name)


@pytest.mark.parametrize(
    ("chosen", "used"), [(None, "highest"), ("tensorfloat32", "tensorfloat32")]
)
def test_products_are_exact_unless_the_user_has_chosen(chosen, used):
    seen = set()

    def compiled(function):
        seen.add(jax.config.jax_default_matmul_precision)
        return jax.jit(function)

    with jax.default_matmul_precision(chosen) if chosen else contextlib.nullcontext():
        datadep.calibrate(DENSE, drawn(DENSE, X), X, compiled=compiled)
    assert seen == {used}
    assert jax.config.jax_default_matmul_precision is None


@pytest.mark.parametrize("slope", [0.0, 0.25])
def test_gradients_grow_as_the_docstring_derives(slope):
    """Over 7 layers and 8 keys; theory is of wide layers, which 128 units are to some 3 %."""
    rectifier = functools.partial(nn.leaky_relu, negative_slope=slope)
    layers = tuple(layer for _ in range(7) for layer in (nn.Dense(128), rectifier))
    model = nn.Sequential(layers)  # a list would have no hash: each call would compile
    x = images(256, 128)
    forward = (1 + slope**2) / 2 - (1 - slope) ** 2 / (2 * np.pi)
    init, logs = jax.jit(model.init), []
    for key in jax.random.split(KEY, 8):
        variables, _ = datadep.calibrate(model, init(key, x), x)
        rows = signal.measure(model, variables, x, key=key).layers
        first, last = (np.log(rows[i].gradient_second_moment) for i in (1, 6))
        logs.append((first - last) / 5)
    error = 3 * np.std(logs, ddof=1) / np.sqrt(len(logs)) + 0.03
    assert np.mean(logs) == pytest.approx(np.log((1 + slope**2) / 2 / forward), abs=error)


@pytest.mark.compiled("too slow")
def test_rates_of_thirty_layers_are_made_equal_and_the_outputs_kept(deep):
    model, _, x, variables, _ = deep
    rng = np.random.default_rng(0)
    names = [row.parameter.removesuffix("/kernel") for row in deep[4].stages[0].layers]
    logs = 1.5 * rng.standard_normal(len(names))
    params = dict(variables["params"])
    carried = 0.0
    for name, log in zip(names, logs - logs.mean(), strict=True):  # the same function, badly scaled
        carried += log
        kernel, bias = (params[name][leaf] for leaf in ("kernel", "bias"))
        params[name] = {"kernel": kernel * np.exp(log), "bias": bias * np.exp(carried)}
    params = jax.tree.map(lambda v: v.astype(jnp.float32), params)
    found, report = datadep.calibrate(model, {"params": params}, x, method="between_layer")
    stage = report.stages[0]
    assert stage.spread_before > 2
    assert stage.spread_after <= 0.05
    assert stage.iterations <= 10
    before, after = (model.apply(v, x) for v in (variables, found))
    np.testing.assert_allclose(after, before, atol=1e-4 * np.abs(before).max())
    rates = [row.change_rate for row in pj.signal.measure(model, found, x).layers]
    assert np.std(np.log(rates)) <= 0.05  # by the probe, with other noise


@pytest.mark.compiled("too slow")
@pytest.mark.parametrize("alpha", [0.25, 0.5])
def test_damping_shrinks_the_spread_by_one_minus_alpha(alpha):
    x = images(*SHAPE)
    variables = drawn(LINEN["cnn"], x)
    method = datadep.BetweenLayer(alpha=alpha, tolerance=0.05)
    _, report = datadep.calibrate(LINEN["cnn"], variables, x, method=method)
    removable = np.array(report.stages[0].removable)
    np.testing.assert_allclose(removable[1:] / removable[:-1], 1 - alpha, rtol=0.02)
    assert removable[-1] <= 0.05
    assert len(removable) > 3


@pytest.mark.parametrize("net", ["residual", "inception"])
def test_what_can_be_removed_and_what_is_left_add_up_to_the_spread(net):
    """Compare variances of log C̃. Not all factors of the inception's rescalings multiply to 1."""
    x = images(*SHAPE)
    variables = drawn(LINEN[net], x)
    variables["params"]["head"]["kernel"] *= 30
    _, report = datadep.calibrate(LINEN[net], variables, x, method="between_layer")
    stage = report.stages[0]
    assert stage.removable[0] > 0.5
    both = np.hypot(stage.removable[0], stage.spread_after)
    assert stage.spread_before == pytest.approx(both, rel=1e-3)


def test_the_printed_exponent_diverges():
    """Algorithm 2 with r_k = (C̃ / C̃_k)^(α/2), as transcribed: the step, taken backwards."""
    x = images(*SHAPE)
    model, variables = LINEN["cnn"], drawn(LINEN["cnn"], x)
    spreads = []
    for _ in range(3):
        calibrated, report = datadep.calibrate(model, variables, x, method="between_layer")
        spreads.append(report.stages[0].spread_before)
        old, new = flat(variables), flat(calibrated)
        printed = {name: old[name] ** 2 / new[name] for name in old if "slope" not in name}
        nested = flax.traverse_util.unflatten_dict({**old, **printed}, sep="/")
        variables = {"params": nested}
    assert spreads[1] > 1.9 * spreads[0]
    assert spreads[2] > 1.9 * spreads[1]


def test_lsuv_draws_orthonormal_kernels_and_sets_the_whole_variance():
    x = images(16, 6, 6, 2)
    model = LINEN["cnn"]
    variables, report = datadep.calibrate(model, drawn(model, x), x, method="lsuv", key=KEY)
    for row in report.stages[0].layers:
        kernel = np.asarray(flat(variables)[row.parameter])
        matrix = kernel.reshape(-1, kernel.shape[-1]) / row.scale
        np.testing.assert_allclose(matrix.T @ matrix, np.eye(kernel.shape[-1]), atol=1e-5)
        assert not np.any(flat(variables)[row.parameter.replace("kernel", "bias")])
        assert abs(row.std_after - 1) < 1e-5


class Shared(nn.Module):
    """A layer that feeds itself, and one that reads two inputs."""

    linear: bool = False

    @nn.compact
    def __call__(self, x):
        shared = nn.Dense(7, name="shared")
        for _ in range(3):
            x = shared(x) if self.linear else nn.relu(shared(x))
        twin = nn.Dense(5, name="twin")
        return nn.Dense(3, name="head")(nn.relu(jnp.concatenate([twin(x), twin(x[:, ::-1])], -1)))


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("gain", [0.05, 8.0])
def test_shared_layers_are_calibrated_over_all_their_calls(linear, gain):
    x = images(64, 7)
    model = Shared(linear)
    variables = jax.tree.map(lambda v: gain * v, drawn(model, x))
    variables, report = datadep.calibrate(model, variables, x)
    for name, (mean, std) in channel_moments(model, variables, x).items():
        np.testing.assert_allclose(mean, 0, atol=1e-3, err_msg=name)
        np.testing.assert_allclose(std, 1, atol=1e-3, err_msg=name)
    assert [row.calls for row in report.stages[0].layers] == [3, 2, 1]
    assert report.stages[0].passes > 1


class Kinds(nn.Module):
    """Every kind of layer that is calibrated, and operations between them."""

    train: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3), feature_group_count=2, strides=2, name="grouped")(x)
        x = nn.BatchNorm(use_running_average=not self.train)(x)
        x = nn.Conv(6, (3, 3), feature_group_count=6, kernel_dilation=2, name="depthwise")(x)
        x = nn.relu(nn.Dropout(0.3, deterministic=not self.train)(x))
        x = nn.ConvTranspose(4, (3, 3), strides=(2, 2), transpose_kernel=True, name="enlarging")(x)
        x = nn.ConvTranspose(4, (2, 2), name="transposed")(pj.PReLU()(x))
        x = nn.ConvLocal(3, (2, 2), strides=2, name="local")(nn.max_pool(x, (2, 2)))
        x = nn.DenseGeneral((2, 4), name="general")(nn.relu(x))
        x = nn.Einsum((2, 4, 5), "bhwnd,ndf->bhwf", name="einsum")(x)
        x = nn.Einsum((2, 5, 3), "bhwf,nfg->bhwgn", name="swapped", use_bias=False)(nn.relu(x))
        x = x.reshape(*x.shape[:-2], -1)
        x = x + nn.MultiHeadDotProductAttention(2, qkv_features=4, name="attention")(x)
        x = x + nn.Embed(9, 6, name="embed")(jnp.arange(x.shape[0]) % 9)[:, None, None]
        x = nn.Conv(4, (3,), name="line")(nn.LayerNorm()(x.reshape(len(x), -1, 6)))
        return nn.Dense(3, name="head")(x.mean(axis=1))


@pytest.mark.parametrize(
    ("method", "train"), [("within_layer", False), ("within_layer", True), ("lsuv", False)]
)
def test_every_kind_of_layer(method, train):
    x = images(24, 8, 8, 4)
    model = Kinds(train)
    variables = drawn(model, x)
    rngs = {"dropout": KEY} if train else None
    _, report = datadep.calibrate(model, variables, x, method=method, rngs=rngs)
    rows = {row.layer: row for row in report.stages[0].layers}
    assert len(rows) == 14
    assert max(row.error for row in rows.values()) < 1e-3
    assert not any("follow" in note for row in rows.values() for note in row.notes)
    assert rows["swapped"].notes == ("no bias: the mean is free",)
    assert report.skipped == ()
    assert "embed/embedding" in report.coverage.elementwise  # the batch does not choose its rows


class Resisting(nn.Module):
    """Layers that a scale of their kernel does not change as it should."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(8, name="first")(x))
        x = nn.relu(nn.WeightNorm(nn.Dense(8, name="normed"))(x))
        return nn.Dense(3, name="last")(x)


@pytest.mark.parametrize("method", ["within_layer", "lsuv", "pca"])
def test_a_layer_that_does_not_follow_its_kernel_is_left_alone(method):
    x = images(32, 6)
    model = Resisting()
    before = drawn(model, x)
    after, report = datadep.calibrate(model, before, x, method=method)
    rows = {row.layer: row for row in report.stages[0].layers}
    assert rows["normed"].notes == ("its kernel is computed: left as it was",)
    for leaf in ("kernel", "bias"):  # bit for bit
        name = f"normed/{leaf}"
        np.testing.assert_array_equal(flat(after)[name], flat(before)[name])
    if method == "lsuv":
        return
    found = channel_moments(model, after, x)
    for name in ("first", "last"):
        np.testing.assert_allclose(found[name][1], 1, atol=1e-3)


def test_dead_and_constant_channels_are_left_as_they_were_and_named():
    x = images(16, 6)
    model = nn.Sequential([nn.Dense(5), nn.relu, nn.Dense(4), nn.relu, nn.Dense(3)])
    variables = drawn(model, x)
    first = variables["params"]["layers_0"]
    first["kernel"][:, 1] = 0  # constant: its bias alone
    first["kernel"][:, 3], first["bias"][3] = 0, 0  # dead
    after, report = datadep.calibrate(model, variables, x)
    assert report.stages[0].layers[0].constant == (1, 3)
    assert "2 channels (1, 3)" in report.stages[0].layers[0].notes[0]
    for leaf in ("kernel", "bias"):
        found, expected = (v["params"]["layers_0"][leaf][..., 1::2] for v in (after, variables))
        np.testing.assert_array_equal(found, expected)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    np.testing.assert_allclose(channel_moments(model, after, x)["layers_2"][1], 1, atol=1e-3)


@pytest.mark.parametrize("method", ["lsuv", "pca"])
def test_a_signal_of_zeros_leaves_every_number_finite(method):
    dead = jax.tree.map(np.zeros_like, drawn(DENSE, X))
    after, _ = datadep.calibrate(DENSE, dead, 0 * X, method=method)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))


def test_a_channel_far_smaller_than_the_others_is_not_taken_for_dead():
    x = images(16, 6)
    model = nn.Dense(3)
    variables = {"params": {"kernel": np.array(images(6, 3)), "bias": np.zeros(3, np.float32)}}
    variables["params"]["kernel"][:, 1] *= 1e-25
    after, report = datadep.calibrate(model, variables, x)
    assert report.stages[0].layers[0].constant == ()
    np.testing.assert_allclose(np.std(model.apply(after, x), axis=0), 1, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-27, 1e22])
@pytest.mark.parametrize("method", [datadep.WithinLayer(), datadep.Lsuv(orthonormal=False)])
def test_outputs_whose_squares_do_not_fit_in_float32_are_calibrated(method, scale):
    variables = drawn(DENSE, X)
    variables["params"]["kernel"] *= np.float32(scale)
    variables["params"]["bias"] *= np.float32(scale)
    after, report = datadep.calibrate(DENSE, variables, X, method=method)
    assert report.stages[0].layers[0].notes == ()
    y = np.asarray(DENSE.apply(after, X), np.float64)
    stds = y.std(axis=0) if isinstance(method, datadep.WithinLayer) else y.std()
    np.testing.assert_allclose(stds, 1, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-25, 1e-11, 1e-9, 1.0, 1e14, 1e25])
def test_moments_of_several_calls_are_those_of_all_their_values(scale):
    y = scale * np.asarray(images(12, 5), np.float64) + scale * np.array([0, 3, -2, 0, 0])
    y[:, 3], y[:4, 4] = 0, 0  # never varies; does not in the first call
    parts = [moments.of_channels(jnp.asarray(v, jnp.float32), (-1,)) for v in (y[:4], y[4:])]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
    found = moments.pooled(stacked, jnp.array([4, 8]) / 12)
    np.testing.assert_allclose(found.mean, y.mean(axis=0), rtol=1e-5, atol=1e-7 * scale)
    np.testing.assert_allclose(found.std, y.std(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(found.varies, [True, True, True, False, True])


def test_only_and_except_choose_by_kernel_path():
    x = images(*SHAPE)
    model, variables = LINEN["residual"], drawn(LINEN["residual"], x)
    trunk = "stem|^[ab]_"
    for options in ({"only": "head"}, {"except_": trunk}):
        after, report = datadep.calibrate(model, variables, x, **options)
        assert [row.layer for row in report.stages[0].layers] == ["head"]
        for name, value in flat(variables).items():
            changed = np.any(flat(after)[name] != value)
            assert changed == name.startswith("head"), name
        assert len(report.skipped) == 5
        assert "left out by" in report.skipped[0].why
    np.testing.assert_allclose(channel_moments(model, after, x)["head"][1], 1, atol=1e-3)


def test_several_batches_count_as_one():
    x = images(12, 6, 6, 2)
    model, variables = LINEN["cnn"], drawn(LINEN["cnn"], x)
    whole, _ = datadep.calibrate(model, variables, x)
    pooled, _ = datadep.calibrate(model, variables, iter([x[:5], x[5:]]))
    for name, value in flat(whole).items():
        np.testing.assert_array_equal(flat(pooled)[name], value)


def test_nnx_models_are_updated_in_place():
    x = images(*SHAPE)
    variables = drawn(LINEN["cnn"], x)
    model = nnx_with("cnn", variables)
    report = datadep.calibrate(model, x)
    expected, _ = datadep.calibrate(LINEN["cnn"], variables, x)
    assert isinstance(report, datadep.CalibrationReport)
    for name, value in flat(expected).items():
        np.testing.assert_allclose(nnx_parameters(model)[name], value, rtol=1e-5, atol=1e-6)


class Boxed(nn.Module):
    mesh: jax.sharding.Mesh | None = None

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.lecun_normal()
        init = nn.with_partitioning(init, (None, "model"), mesh=self.mesh)
        x = nn.relu(nn.Dense(6, kernel_init=init, param_dtype=jnp.bfloat16, dtype=jnp.float32)(x))
        return nn.Dense(3)(x)


@pytest.mark.parametrize("devices", [0, 2])
def test_variables_keep_their_boxes_their_types_and_their_freeze(devices):
    x = images(64, 5)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("model",)) if devices else None
    model = Boxed(mesh)
    variables = model.init(KEY, x)
    after, report = datadep.calibrate(model, variables, x)
    kernel = after["params"]["Dense_0"]["kernel"]
    assert isinstance(kernel, nn.Partitioned)
    assert kernel.names == (None, "model")
    assert kernel.value.dtype == jnp.bfloat16
    assert jax.tree.structure(after) == jax.tree.structure(variables)
    assert max(row.error for row in report.stages[0].layers) < 0.02
    frozen, _ = datadep.calibrate(model, flax.core.freeze(variables), x)
    assert isinstance(frozen, flax.core.FrozenDict)
    assert jax.tree.leaves(frozen)[0].tolist() == jax.tree.leaves(after)[0].tolist()


def test_bfloat16_and_float16():
    x = images(64, 5)
    for dtype in (jnp.bfloat16, jnp.float16):
        model = nn.Sequential([nn.Dense(6, dtype=dtype), nn.relu, nn.Dense(3, dtype=dtype)])
        variables, _ = datadep.calibrate(model, drawn(model, x), x)
        assert variables["params"]["layers_0"]["kernel"].dtype == jnp.float32
        for mean, std in channel_moments(model, variables, x).values():
            np.testing.assert_allclose(std, 1, atol=0.03)
            np.testing.assert_allclose(mean, 0, atol=0.03)


def test_none_is_a_method_that_changes_nothing():
    variables, report = datadep.calibrate(DENSE, drawn(DENSE, X), X, method="none")
    jax.tree.map(np.testing.assert_array_equal, variables, drawn(DENSE, X))
    assert report.stages == ()
    assert "left as it is" in str(report)


def test_a_layer_without_a_rate_of_change_has_a_reason():
    model = nn.Sequential((nn.Dense(3), nn.Dense(3), nn.Dense(2)))
    variables = drawn(model, X)
    kernel = variables["params"]["layers_1"]["kernel"]
    kernel[...] = 0
    _, report = datadep.calibrate(model, variables, X, method="between_layer")
    text = " ".join(str(report).split())
    assert np.isnan([row.rate_before for row in report.stages[0].layers]).tolist() == [1, 1, 0]
    assert text.count("no rate") == 2
    kernel[...] = 30 * np.asarray(images(3, 3))
    _, report = datadep.calibrate(model, variables, X, method="between_layer")
    assert report.stages[0].iterations == 1
    assert " in one iteration layer" in " ".join(str(report).split())


def test_the_report(check_golden):
    model = Shared()
    x = images(16, 7)
    method = ["within_layer", "between_layer"]
    _, report = datadep.calibrate(model, drawn(model, x), x, method=method, except_="head")
    check_golden("calibration.txt", str(report))
    check_golden("calibration.md", report.to_markdown())
    assert "<pre" in report._repr_html_()
    rows = list(report.rows())
    assert len(report.to_csv().splitlines()) == len(rows) + 1 == 5
    assert report.to_dict()["skipped"] == {"head/kernel": "left out by except_='head'"}
    assert dataclasses.asdict(report.stages[0].layers[0]).items() <= rows[0].items()
