import dataclasses
import functools
import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import prelu_jax as pj
from prelu_jax import signal
from tests.signal import reference
from tests.signal.nets import NETS, LinenCnn, NnxCnn, drawn, flat, images

KEY = jax.random.key(0)


def twin(net, variables):
    """The NNX model with the same parameters."""
    graph, state = nnx.split(nnx.eval_shape(lambda: net.nnx(nnx.Rngs(0))))
    exchanged = [
        (path, variable.copy(flat(variables)["/".join(map(str, path))]))
        for path, variable in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(exchanged))


def loss(y):
    return jnp.mean(jnp.square(y - 1))


def noise(outputs):
    """The documented draw: by output, then by example."""
    key = jax.random.fold_in(KEY, 0)
    keys = jnp.stack([jax.random.fold_in(key, i) for i in range(len(outputs))])
    draw = lambda key: jax.random.normal(key, outputs.shape[1:], jnp.float32)  # noqa: E731
    return jnp.sum(jax.vmap(draw)(keys) * outputs)


@functools.cache
def expected(name, objective):
    """The rows, the variables and batch they are for, and the objective's value."""
    net = NETS[name]
    x = images(*net.shape)
    variables = drawn(net.linen, x)
    params = flat(variables)
    calls, gradients, value = reference.by_hand(net.by_hand, params, x, objective)
    rows = [
        reference.expected(path, *arrays, params, gradients, net.feature_axes.get(path, 1))
        for path, *arrays in calls
    ]
    return rows, variables, x, float(value)


def check(found, rows):
    assert len(found.layers) == len(rows)
    for got, want in zip(found.layers, rows, strict=True):
        for field, value in want.items():
            cancels = field in ("mean", "input_mean", "cosine", "input_cosine") or field.endswith(
                "channel_spread"
            )
            small = 1e-6 if cancels else 0
            if isinstance(value, float):
                value = pytest.approx(value, rel=1e-5, abs=small)
            assert getattr(got, field) == value, (got.path, field)
    assert found.not_measured == ()
    assert found.first_nonfinite is None


# The noise depends only on the outputs' shape: two nets suffice. A loss is tested with all of them.
@pytest.mark.parametrize("name", ["shared", "transformer"])
def test_every_number_is_that_of_a_pass_written_by_hand(name):
    rows, variables, x, _ = expected(name, noise)
    check(signal.measure(NETS[name].linen, variables, x), rows)


@pytest.mark.parametrize("library", ["linen", "nnx"])
@pytest.mark.parametrize("name", NETS)
def test_every_number_is_that_of_a_pass_written_by_hand_with_a_loss(name, library):
    rows, variables, x, value = expected(name, loss)
    net = NETS[name]
    model = (net.linen, variables) if library == "linen" else (twin(net, variables), None)
    found = signal.measure(*model, x, loss=loss, weight_decay=0.01)
    check(found, rows)
    assert found.loss == pytest.approx(value, rel=1e-5)
    for row in found.layers:
        assert row.gradient_to_decay == pytest.approx(row.change_rate / 0.01, rel=1e-12)


def test_a_shared_module_has_a_row_for_each_call():
    net, x = NETS["shared"], images(4, 7)
    rows = signal.measure(net.linen, drawn(net.linen, x), x).layers
    assert [row.name for row in rows] == ["shared", "shared[1]", "shared[2]", "head"]
    assert [row.call for row in rows] == [0, 1, 2, 0]
    assert len({row.gradient_second_moment for row in rows}) == 4
    assert len({row.kernel_gradient_rms for row in rows[:3]}) == 1


def test_the_noise_is_standard_normal_and_follows_the_key():
    x = jnp.ones((400, 3))
    variables = drawn(nn.Dense(50), x)
    default, same, other = (
        signal.measure(nn.Dense(50), variables, x, key=key)
        for key in (None, KEY, jax.random.key(1))
    )
    assert default == same != other
    for row in (*default.layers, *other.layers):
        assert abs(row.gradient_second_moment - 1) < 5 * math.sqrt(2 / (400 * 50))
        # Σ_i η_i x over equal inputs: variance 400, were the examples' draws independent.
        assert abs(row.kernel_gradient_rms**2 / 400 - 1) < 5 * math.sqrt(2 / 50)


class Stochastic(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(16)(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(2)(x)


@pytest.mark.parametrize("train", [True, False])
def test_dropout_and_batch_norm_work_in_both_modes(train):
    x = images(8, 3)
    model = Stochastic()
    variables = drawn(model, x)
    keys = [{"dropout": KEY}, {"dropout": jax.random.key(1)}]
    probe = signal.prepare(model, variables, x, rngs=keys[0], call_kwargs={"train": train})
    run = jax.jit(probe.statistics)
    found = [probe.read(run(variables, x, None, rngs)) for rngs in (keys[0], *keys)]
    assert found[0] == found[1]
    assert (found[2] != found[1]) == train
    y, _ = model.apply(variables, x, train=train, rngs=keys[0], mutable=True)
    expected = float(np.mean(np.square(y)))
    assert found[0].layers[1].second_moment == pytest.approx(expected, rel=1e-5)


class TwoHeaded(nn.Module):
    @nn.compact
    def __call__(self, x, tokens, *, scale=None):
        h = nn.Dense(4, name="a")(x["image"]) + nn.Embed(9, 4, name="embed")(tokens)
        heads = {"big": nn.Dense(2, name="big")(h), "count": tokens.sum()}
        return heads, [h.mean(), nn.Dense(1, name="small")(h).astype(jnp.bfloat16)]


def test_many_inputs_and_outputs():
    x = {"image": images(6, 3)}
    tokens = jnp.array([0, 1, 2, 3, 8, 8])
    model = TwoHeaded()
    variables = drawn(model, x, tokens)
    found = signal.measure(model, variables, (x, tokens), call_kwargs={"scale": None})
    rows = {row.path: row for row in found.layers}
    assert list(rows) == ["a", "embed", "big", "small"]
    assert rows["embed"].kind == "Embed"
    assert rows["embed"].input_second_moment is None
    assert rows["embed"].kernel_shape == (9, 4)
    assert rows["embed"].kernel_gradient_rms > 0
    # Both are added: the same gradient arrives.
    assert rows["a"].gradient_second_moment == rows["embed"].gradient_second_moment
    assert all(row.gradient_second_moment > 0 for row in found.layers)
    by_loss = signal.measure(model, variables, (x, tokens), loss=lambda y: y[0]["big"].sum())
    rows = {row.path: row for row in by_loss.layers}
    assert rows["big"].gradient_second_moment == 1
    assert rows["small"].gradient_second_moment == 0
    assert rows["small"].change_rate == 0


@pytest.mark.parametrize(("value", "factor"), [(1e-25, 1), (1e25, 1), (0.0, 0)])
def test_moments_beyond_the_range_of_float32_are_measured(value, factor):
    class Tiny(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, use_bias=False)(x * value)

    x = images(4, 5)
    variables = drawn(Tiny(), x)
    row = signal.measure(Tiny(), variables, x).layers[0]
    params = flat(variables)
    y = np.asarray(x, np.float64) @ params["Dense_0/kernel"] * value
    assert row.second_moment == pytest.approx(np.mean(np.square(y)), rel=1e-5, abs=0)
    assert (row.kernel_gradient_rms > 0) == bool(factor)
    assert math.isnan(row.cosine) == (not factor)


class Rectified(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(nn.relu(nn.Dense(4, name="hidden")(x)))


def test_units_that_a_rectifier_has_shut_off_are_seen_by_the_layer_behind():
    signs = jnp.array([1.0, -1, 1, -1])
    hidden = {"kernel": jnp.eye(4) * signs, "bias": jnp.zeros(4)}
    head = {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}
    variables = {"params": {"hidden": hidden, "head": head}}
    x = jnp.abs(images(5, 3, 4))
    first, second = signal.measure(Rectified(), variables, x).layers
    assert (first.input_zero_fraction, second.input_zero_fraction) == (0, 0.5)
    assert second.input_second_moment == pytest.approx(first.second_moment / 2, rel=0.5)
    _, second = signal.measure(Rectified(), variables, x.at[2, 1, 1].set(-1)).layers
    assert second.input_zero_fraction == 0.25
    first, _ = signal.measure(Rectified(), variables, -jnp.maximum(images(5, 3, 4), 0)).layers
    assert first.input_zero_fraction == 0  # at most 0, and not always


def test_dead_channels_and_collapse_are_seen():
    signs = jnp.array([1.0, -1, 1, -1])
    variables = {"params": {"kernel": jnp.eye(4) * signs, "bias": jnp.zeros(4)}}
    x = jnp.abs(images(5, 3, 4))
    probe = signal.prepare(nn.Dense(4), variables, x)
    run = jax.jit(probe.statistics)
    row, one_alive, collapsed, zero = (
        probe.read(run(variables, x)).layers[0]
        for x in (x, x.at[2, 1, 1].set(-1), jnp.broadcast_to(x[:1], x.shape), 0 * x)
    )
    assert (row.dead_fraction, one_alive.dead_fraction, zero.dead_fraction) == (0.5, 0.25, 1)
    assert 0 < row.cosine < 0.99
    assert collapsed.cosine == pytest.approx(1, abs=1e-5)
    assert math.isnan(zero.cosine)
    assert signal.measure(nn.Dense(4), variables, x[:1]).layers[0].cosine is None


@pytest.mark.compiled("jax.pmap over several devices")
@pytest.mark.parametrize(("library", "objective"), [("linen", None), ("nnx", loss)])
def test_devices_together_measure_what_one_does(library, objective):
    net = NETS["cnn"]
    x = images(8, 6, 6, 2) + jnp.arange(8.0)[:, None, None, None]
    variables = drawn(net.linen, x)
    model = net.linen if library == "linen" else twin(net, variables)
    given = variables if library == "linen" else None
    decay = 0.1 if objective else 0.0
    whole = signal.measure(model, given, x, loss=objective, weight_decay=decay)
    parts = x.reshape(4, 2, *x.shape[1:])
    probe = signal.prepare(
        model, given, parts[0], loss=objective, weight_decay=decay, axis_name="devices"
    )
    state = variables if library == "linen" else nnx.state(model)
    raw = jax.pmap(probe.statistics, axis_name="devices", in_axes=(None, 0))(state, parts)
    for device in (0, 3):
        found = probe.read(jax.tree.map(lambda leaf, i=device: leaf[i], raw))
        for a, b in zip(found.layers, whole.layers, strict=True):
            a = dataclasses.replace(a, shape=b.shape, input_shape=b.input_shape)
            for field in dataclasses.fields(a):
                got, want = getattr(a, field.name), getattr(b, field.name)
                if isinstance(want, float):
                    assert got == pytest.approx(want, rel=1e-5, abs=1e-7), (a.path, field.name)
                else:
                    assert got == want, (a.path, field.name)
    assert whole.loss is None or found.loss == pytest.approx(whole.loss, rel=1e-5)


@pytest.mark.compiled("counts traces")
def test_a_prepared_probe_traces_its_model_once():
    traces = 0

    class Counted(nn.Module):
        @nn.compact
        def __call__(self, x):
            nonlocal traces
            traces += 1
            return nn.Dense(2, use_bias=False)(x)

    x = jnp.ones((3, 2))
    variables = drawn(Counted(), x)
    shapes = jax.eval_shape(lambda: (variables, x))
    probe = signal.prepare(Counted(), *shapes)
    run = jax.jit(probe.statistics)
    traces = 0
    first, second = probe.read(run(variables, x)), probe.read(run(variables, 2 * x))
    assert traces == 1
    assert second.layers[0].second_moment == pytest.approx(4 * first.layers[0].second_moment)
    with pytest.raises(ValueError, match="the batch has 4 examples, but.*prepared for 3"):
        probe.statistics(variables, jnp.ones((4, 2)))


def test_a_loss_is_not_remembered_with_what_it_closed_over():
    scale = 1.0

    def scaled(y):
        return scale * jnp.sum(y)

    first = signal.measure(Returns(), PARAMS, X, loss=scaled).layers[0].gradient_second_moment
    scale = 2.0
    second = signal.measure(Returns(), PARAMS, X, loss=scaled).layers[0].gradient_second_moment
    assert second == pytest.approx(4 * first)


def test_an_input_beside_the_first_needs_no_axis_of_examples():
    class Conditioned(nn.Module):
        @nn.compact
        def __call__(self, x, context):
            return nn.Dense(2)(x) + nn.Dense(2)(context)

    arguments = (images(4, 3), images(5))
    variables = drawn(Conditioned(), *arguments)
    assert len(signal.measure(Conditioned(), variables, arguments).layers) == 2


def test_one_output_has_no_cosine():
    variables = drawn(nn.Dense(1), images(4, 3))
    (row,) = signal.measure(nn.Dense(1), variables, images(4, 3)).layers
    assert row.cosine is None
    assert -1 < row.input_cosine < 1


def test_a_loss_may_be_a_python_number():
    (row,) = signal.measure(Returns(), PARAMS, X, loss=lambda y: 2.0).layers
    assert row.gradient_second_moment == 0


class Scaled(nn.Module):
    @nn.compact
    def __call__(self, x, *, scale=1.0):
        return nn.Dense(2)(x * scale)


def test_measuring_an_equal_model_again_compiles_nothing():
    x = images(3, 2)
    variables = drawn(Scaled(), x)
    other_variables, other_x = jax.tree.map(lambda leaf: 2 * leaf, (variables, x))
    one, other = (nnx.Linear(2, 2, rngs=nnx.Rngs(seed)) for seed in (0, 1))
    signal.measure(Scaled(), variables, x)
    signal.measure(one, None, x)
    compiled = []
    listen = lambda event, duration, **_: compiled.append(event)  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        signal.measure(Scaled(), other_variables, other_x)
        signal.measure(other, None, x)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not [event for event in compiled if "backend_compile" in event]


def test_a_keyword_that_cannot_key_a_cache_is_no_obstacle():
    x = images(3, 2)
    variables = drawn(Scaled(), x)
    plain = signal.measure(Scaled(), variables, x).layers[0]
    for scale in (jnp.array(2.0), jnp.array(3.0)):
        scaled = signal.measure(Scaled(), variables, x, call_kwargs={"scale": scale}).layers[0]
        assert scaled.input_second_moment == pytest.approx(scale**2 * plain.input_second_moment)


@pytest.mark.parametrize("where", ["batch", "kernel", "loss"])
def test_the_first_layer_with_a_number_that_is_not_finite_is_named(where):
    net = NETS["residual"]
    x = np.array(images(*net.shape))
    variables = drawn(net.linen, x)
    objective = loss
    if where == "batch":
        x[1, 2, 3, 0] = np.nan
    elif where == "kernel":
        variables["params"]["b_0"]["kernel"][0] = np.inf
    else:
        objective = lambda y: jnp.sum(jnp.sqrt(y * 0))  # noqa: E731
    found = signal.measure(net.linen, variables, x, loss=objective)
    assert found.first_nonfinite == {"batch": "stem", "kernel": "b_0", "loss": "head"}[where]
    rows = {row.path: row for row in found.layers}
    assert math.isfinite(rows["stem"].second_moment) == (where != "batch")
    assert math.isnan(rows["head"].dead_fraction) == (where != "loss")
    assert not math.isfinite(rows["head"].gradient_second_moment)


class Returns(nn.Module):
    what: str = "floats"

    @nn.compact
    def __call__(self, x, train=False):
        y = nn.Dense(2)(x)
        return {"floats": y, "integers": y.argmax(-1).astype(jnp.int32), "nothing": None}[self.what]


class Norms(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.LayerNorm()(x)


X = jnp.ones((3, 2), jnp.float32)
PARAMS = {
    "params": {"Dense_0": {"kernel": jnp.ones((2, 2), X.dtype), "bias": jnp.zeros(2, X.dtype)}}
}
NORM = {"params": {"LayerNorm_0": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}}}


@pytest.mark.parametrize(
    ("model", "variables", "batch", "options", "error", "message"),
    [
        (dict, {}, X, {}, TypeError, "model is a type, expected a Linen or NNX module"),
        (Returns(), {"batch_stats": {}}, X, {}, ValueError, "no 'params', only ['batch_stats']"),
        (Returns(), None, X, {}, ValueError, "no 'params', only NoneType"),
        (Returns(), {"params": {}}, X, {}, ValueError, "'params' are empty"),
        (Returns(), PARAMS, X, {"loss": 3}, TypeError, "loss is 3, expected a function"),
        (Returns(), PARAMS, X[0, 0], {}, ValueError, "float32[], expected arrays of which"),
        (Returns(), PARAMS, X[0], {}, ValueError, "'Dense_0' was given float32[2], expected at"),
        (nnx.Conv(2, 2, 3, rngs=nnx.Rngs(0)), None, X, {}, ValueError, "at least 3 axes"),
        (Returns(), PARAMS, X[:0], {}, ValueError, "the batch is empty: float32[0, 2]"),
        (Returns(), PARAMS, (X, True), {}, TypeError, "the batch holds True, a bool"),
        (Returns(), PARAMS, np.array([[1], "a"], object), {}, TypeError, "ndarray of type object"),
        (Returns(), PARAMS, X.astype(jnp.uint8), {}, ValueError, "'Dense_0' was given uint8"),
        (Returns("integers"), PARAMS, X, {}, ValueError, "returned int32[3], expected an array of"),
        (Returns("nothing"), PARAMS, X, {}, ValueError, "returned None, expected an array of"),
        (
            Returns(),
            PARAMS,
            X,
            {"loss": jnp.square},
            ValueError,
            "float32[3, 2], expected a scalar",
        ),
        (Returns(), PARAMS, X, {"loss": lambda y: (y.sum(), y)}, ValueError, "expected a scalar"),
        (Returns(), PARAMS, X, {"weight_decay": -1.0}, ValueError, "weight_decay is -1.0"),
        (Returns(), PARAMS, X, {"weight_decay": 0.1}, ValueError, "there is no loss whose"),
        (Norms(), NORM, X, {}, ValueError, "Kinds of module found: LayerNorm, Norms"),
        (nnx.LayerNorm(2, rngs=nnx.Rngs(0)), None, X, {}, ValueError, "found: LayerNorm"),
        (NnxCnn(nnx.Rngs(0)), {}, X, {}, ValueError, "an NNX model holds its own variables"),
    ],
)
def test_bad_input_is_refused_before_anything_is_compiled(
    model, variables, batch, options, error, message, monkeypatch
):
    monkeypatch.setattr(jax, "jit", None)
    with pytest.raises(error) as raised:
        signal.measure(model, variables, batch, **options)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("model", "variables"), [(Returns(), PARAMS), (lambda w, x: x @ w, jnp.ones((2, 2)))]
)
def test_an_error_of_the_model_notes_with_what_it_was_called(model, variables):
    with pytest.raises((flax.errors.ScopeParamShapeError, TypeError)) as raised:
        signal.measure(model, variables, jnp.ones((3, 5)))
    assert "The model was called with float32[3, 5]." in raised.value.__notes__


def test_missing_parameters_are_not_drawn_anew():
    x = jnp.ones((2, 4, 4, 2))
    variables = drawn(LinenCnn(), x)
    del variables["params"]["conv_1"]
    with pytest.raises(flax.errors.ScopeParamNotFoundError):
        signal.measure(LinenCnn(), variables, x, rngs={"params": KEY})


def test_the_probe_keeps_only_the_outputs_of_layers_for_the_backward_pass():
    params = [jnp.eye(64) * 1.1] * 24

    def net(params, x):
        for kernel in params:
            y = x @ kernel
            x = jnp.where(y > 0, y, 0.25 * y)
        return x

    x = jax.random.normal(KEY, (2048, 64))
    probe = signal.prepare(net, params, x, loss=jnp.sum)
    programs = {
        "probe": jax.jit(probe.statistics).lower(params, x),
        "pass": jax.jit(jax.grad(lambda params, x: net(params, x).sum())).lower(params, x),
    }
    taken = {
        name: lowered.compile().memory_analysis().temp_size_in_bytes
        for name, lowered in programs.items()
    }
    assert taken["probe"] < 0.75 * taken["pass"]


def test_the_side_effects_of_a_model_happen_once():
    seen = []

    def net(kernel, x):
        jax.debug.callback(lambda y: seen.append(float(y)), x.sum())
        return jnp.tanh(x @ kernel)

    signal.measure(net, jnp.eye(4), jnp.ones((3, 4)))
    jax.effects_barrier()
    assert seen == [12.0]


def channels_last(params, x):
    x = jax.nn.relu(_conv(x, params["a"], params["b"], "NHWC"))
    x = jax.nn.relu(_conv(x, params["c"], params["d"], "NHWC", groups=2))
    return x.mean((1, 2)) @ params["head"]


def channels_first(params, x):
    x = jax.nn.relu(_conv(x, params["a"].transpose(3, 2, 0, 1), params["b"][:, None, None], "NCHW"))
    kernel = params["c"].transpose(3, 2, 0, 1)
    x = jax.nn.relu(_conv(x, kernel, params["d"][:, None, None], "NCHW", groups=2))
    return x.mean((2, 3)) @ params["head"]


def _conv(x, kernel, bias, layout, groups=1):
    numbers = (layout, "HWIO" if layout == "NHWC" else "OIHW", layout)
    y = jax.lax.conv_general_dilated(
        *(x, kernel, (1, 1), "SAME"), dimension_numbers=numbers, feature_group_count=groups
    )
    return y + bias


def test_channels_first_is_measured_as_channels_last():
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 3, 2, 64), "b": (64,), "c": (3, 3, 32, 6), "d": (6,), "head": (6, 3)}
    params = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    params["c"] /= 20
    params["b"][:56] = -100  # units that are shut off
    x = rng.standard_normal((8, 5, 6, 2), np.float32)
    last = pj.diagnose(channels_last, params, x)
    first = pj.diagnose(channels_first, params, x.transpose(0, 3, 1, 2))
    assert "dead units" in {finding.verdict for finding in first.findings}
    assert first.summary == last.summary
    assert first.layers[1].input_zero_fraction == pytest.approx(7 / 8)
    for a, b in zip(first.layers, last.layers, strict=True):
        assert (a.window, a.positions, a.input_channels) == (
            b.window,
            b.positions,
            b.input_channels,
        )
        for field in dataclasses.fields(a):
            one, other = getattr(a, field.name), getattr(b, field.name)
            if isinstance(one, float) and not field.name.startswith("gradient"):
                assert one == pytest.approx(other, rel=1e-4, abs=1e-5), (a.name, field.name)
