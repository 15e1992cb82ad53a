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
from prelu_jax import theory
from prelu_jax.arch import Arch, Conv, Dense, Logits, MaxPool
from tests.signal.nets import NETS, NnxCnn, drawn, images
from tests.signal.test_probe import twin

NET = Arch(
    "net",
    8,
    (
        Conv("conv1", 40, 3, padding=(1, 1)),
        MaxPool("pool1", 2),
        *(Conv(f"conv2_{i}", 40, 2, padding=(0, 1)) for i in range(4)),
        Dense("fc1", 50, stddev=0.1),
        Logits("fc2", stddev=0.1),
    ),
)


@functools.cache
def example(rectifier="prelu"):
    model = pj.models.build(NET, 10, rectifier, pj.initializers.he_normal("fan_in", 0.25))
    x = 3 * images(16, 8, 8, 2) + 1
    return model, jax.jit(model.init)(jax.random.key(0), x), x


def test_a_network_of_the_library_is_predicted_from_its_weights_its_slopes_and_the_batch():
    model, variables, x = example()
    report = pj.diagnose(model, variables, x)
    assert report.model == "RectifierNet"
    assert list(report.predicted) == [row.name for row in report.layers]
    for row in report.rows():
        for moment, noise in (("second_moment", ""), ("gradient_second_moment", "gradient_")):
            log = math.log(row[moment] / row[f"predicted_{moment}"])
            assert abs(log) < 4 * row[f"{noise}log_noise"] + 0.2, (row["name"], moment)
        assert row["predicted_cosine"] == report.predicted[row["name"]].cosine
        # Forty channels, one draw.
        apart = (1 - row["cosine"]) / (1 - row["predicted_cosine"])
        assert 1 / 2 < apart < 2, row["name"]
    assert report.predicted["conv1"].cosine == pytest.approx(
        report.layers[0].input_cosine, abs=1e-6
    )
    # The input's scale, the kernels and the slopes are taken from the model.
    first = report.predicted["conv1"].forward
    assert pj.diagnose(model, variables, 2 * x).predicted["conv1"].forward == pytest.approx(
        4 * first, rel=1e-5
    )
    params = dict(variables["params"])
    params["conv1"] = {**params["conv1"], "kernel": 2 * params["conv1"]["kernel"]}
    params["fc1_prelu"] = {"negative_slope": jnp.ones(50)}
    changed = pj.diagnose(model, {"params": params}, x).predicted
    assert changed["conv2_0"].forward == pytest.approx(
        4 * report.predicted["conv2_0"].forward, rel=1e-5
    )
    gain = 4 * 2 / (1 + 0.25**2)
    assert changed["fc2"].forward == pytest.approx(gain * report.predicted["fc2"].forward, rel=1e-5)


@pytest.mark.parametrize(("rectifier", "slope"), [("relu", 0.0), ("leaky_relu", 0.25)])
def test_fixed_slopes_are_known(rectifier, slope):
    model = pj.models.build(NET, 10, rectifier)
    _, variables, x = example()
    kernels = {k: v for k, v in variables["params"].items() if "prelu" not in k}
    measured = pj.diagnose(model, {"params": kernels}, x)
    expected = theory.predict(
        NET,
        initializer={row.name: row.kernel_rms**2 for row in measured.layers},
        in_channels=2,
        negative_slope=slope,
        input_second_moment=np.mean(np.square(x, dtype=np.float64), (0, 3)),
    )
    assert measured.predicted["conv1"].forward == pytest.approx(expected[0].forward, rel=1e-6)
    last = expected[-2].backward / expected[-1].backward
    ratio = measured.predicted["fc1"].backward / measured.predicted["fc2"].backward
    assert ratio == pytest.approx(last, rel=1e-6)


def test_any_model_is_predicted_to_keep_the_cosines_of_its_layers_inputs():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for features in (256, 256, 256):
                x = nn.relu(nn.Dense(features)(x))
            x = nn.relu(nn.Conv(256, (3, 3), padding="CIRCULAR")(x))
            return nn.Dense(256)(x.reshape(len(x), -1))

    x = jax.random.normal(jax.random.key(0), (8, 4, 4, 64)) + 0.3
    report = pj.diagnose(Net(), jax.jit(Net().init)(jax.random.key(1), x), x)
    assert report.predicted == {}
    rows = list(report.rows())
    assert [row["predicted_cosine"] for row in rows] == [row.input_cosine for row in report.layers]
    assert rows[0]["input_cosine"] < 0.2 < 0.6 < rows[-1]["input_cosine"]
    for row in rows:
        apart = (1 - row["cosine"]) / (1 - row["predicted_cosine"])
        assert 0.9 < apart < 1.1, row["name"]


@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_linen_and_nnx_give_one_report(name):
    net = NETS[name]
    x = images(*net.shape)
    variables = drawn(net.linen, x)
    loss = lambda y: jnp.mean(jnp.square(y - 1))  # noqa: E731
    linen = pj.diagnose(net.linen, variables, x, loss=loss, weight_decay=0.1)
    nnx_ = pj.diagnose(twin(net, variables), x, loss=loss, weight_decay=0.1)
    assert (linen.model, nnx_.model) == (type(net.linen).__name__, net.nnx.__name__)
    assert linen.predicted == nnx_.predicted == {}
    assert [row.name for row in linen.layers] == [row.name for row in nnx_.layers]
    for a, b in zip(linen.layers, nnx_.layers, strict=True):
        for field in dataclasses.fields(a):
            of_a, of_b = getattr(a, field.name), getattr(b, field.name)
            if isinstance(of_a, float):
                assert of_a == pytest.approx(of_b, rel=1e-4, abs=1e-6), (a.name, field.name)
    assert linen.verdict == nnx_.verdict


@pytest.mark.parametrize("where", ["batch", "kernel"])
def test_numbers_that_are_not_finite_are_reported_not_raised(where):
    model, variables, x = example()
    variables = jax.tree.map(np.array, variables)
    if where == "batch":
        x = x.at[3, 1, 1, 0].set(jnp.nan)
    else:
        variables["params"]["conv2_1"]["kernel"][0, 0, 0, 0] = np.nan
    report = pj.diagnose(model, variables, x)
    assert report.verdict == "not finite"
    layer = {"batch": "conv1", "kernel": "conv2_1"}[where]
    assert f"from {layer} on" in report.summary
    assert "nan" in str(report)
    with pytest.raises(AssertionError, match=f"not finite .* from {layer} on"):
        report.assert_healthy()


def test_a_network_that_the_theory_cannot_do_is_reported_without_it():
    pools = Arch(
        "pools", 8, (Conv("conv", 4, 3), MaxPool("a", 2), MaxPool("b", 2), Logits("fc", 0.1))
    )
    model = pj.models.build(pools, 3, "relu")
    x = images(4, 8, 8, 2)
    report = pj.diagnose(model, drawn(model, x), x)
    assert [row.name for row in report.layers] == ["conv", "fc"]
    assert report.predicted == {}


def test_collapse_dead_units_and_a_stall_are_found_in_real_nets():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for i in range(3):
                x = nn.relu(nn.Dense(64, name=f"dense_{i}")(x))
            return nn.Dense(10, name="head")(x)

    x = images(32, 64)
    variables = jax.jit(Net().init)(jax.random.key(0), x)
    for bias, expected in ((1e3, "collapsing"), (-1e3, "dead units")):
        biased = {
            name: {**layer, "bias": layer["bias"] + np.float32(bias * name.startswith("dense"))}
            for name, layer in variables["params"].items()
        }
        verdicts = [f.verdict for f in pj.diagnose(Net(), {"params": biased}, x).findings]
        assert expected in verdicts, (bias, verdicts)
    report = pj.diagnose(
        Net(), variables, x, loss=lambda y: jnp.mean(jnp.square(y)), weight_decay=100.0
    )
    assert report.verdict == "stalled"
    assert "footnote 2" in report.summary


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda: (*example(), 1), "was given 4 positional arguments; expected diagnose(model, v"),
        (lambda: (NnxCnn(nnx.Rngs(0)), {}, images(2, 6, 6, 2)), "was given 3 positional"),
        (lambda: example()[:2], "was given 2 positional"),
    ],
)
def test_the_error_about_a_wrong_number_of_arguments_shows_both_forms(arguments, message):
    with pytest.raises(TypeError) as raised:
        pj.diagnose(*arguments())
    assert message in str(raised.value)


def by_hand(params, x):
    return jax.nn.relu(x @ params["first"]) @ params["last"]


PARAMS = {"first": jnp.full((3, 4), 0.5), "last": jnp.full((4, 2), 0.5)}


def test_a_plain_function_is_diagnosed_by_its_parameters():
    x = jax.random.normal(jax.random.key(0), (5, 3))
    report = pj.diagnose(by_hand, PARAMS, x)
    assert [row.path for row in report.layers] == ["first", "last"]
    assert report.layers[1].second_moment == pytest.approx(
        float(jnp.mean(jnp.square(by_hand(PARAMS, x)))), rel=1e-5
    )
    assert str(report).startswith("by_hand: unit noise sent back")
    with pytest.raises(ValueError, match="'by_hand' is a function and no variables are given"):
        pj.diagnose(by_hand, x)


def test_an_equinox_module_holds_its_own_parameters():
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        layer: eqx.nn.Linear

        def __call__(self, x):
            return jax.vmap(self.layer)(x)

    net = Net(eqx.nn.Linear(3, 2, key=jax.random.key(0)))
    report = pj.diagnose(net, jax.random.normal(jax.random.key(1), (5, 3)))
    assert [row.path for row in report.layers] == ["layer"]
    assert report.measurement.coverage.share == 1


def test_a_branch_that_does_not_run_has_no_rows_and_its_weights_are_not_seen():
    def branches(params, x):
        first = lambda: x @ params["first"]  # noqa: E731
        return jax.lax.cond(x.sum() > 1e9, lambda: 2 * x @ params["other"], first) @ params["last"]

    x = jax.random.normal(jax.random.key(0), (5, 3))
    report = pj.diagnose(branches, {**PARAMS, "other": PARAMS["first"]}, x)
    assert [row.path for row in report.layers] == ["first", "last"]
    assert report.verdict == "not judged"
    assert "inside a branch that did not run: other" in report.summary
    assert report.measurement.coverage.share == pytest.approx(20 / 32)


def in_a_while(params, x):
    return jax.lax.while_loop(lambda x: x.sum() > 1e9, lambda x: x @ params["square"], x)


def through_numpy(params, x):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.pure_callback(lambda w, x: np.asarray(x) @ np.asarray(w), shape, params["square"], x)


@pytest.mark.parametrize("inside", [in_a_while, through_numpy])
def test_operations_without_a_backward_pass_are_named(inside):
    def function(params, x):
        return inside(params, x @ params["first"]) @ params["last"]

    params = {**PARAMS, "square": jnp.eye(4)}
    with pytest.raises(ValueError, match="no backward pass. .*weights are inside .*: square"):
        pj.diagnose(function, params, jnp.ones((5, 3)))


def test_a_maximum_that_jax_does_not_know_for_one_is_named():
    def from_zero(params, x):
        y = jax.nn.relu(x @ params["first"])
        y = jax.lax.reduce_window(y, 0.0, jax.lax.max, (1, 2), (1, 1), "SAME")
        return y @ params["last"]

    with pytest.raises(ValueError, match=r"no backward pass.* has to start from -jnp\.inf"):
        pj.diagnose(from_zero, PARAMS, jnp.ones((5, 3)))


def test_a_batch_with_one_image_that_is_not_zero_is_diagnosed():
    model, variables, x = example()
    batch = jnp.zeros(x.shape).at[0].set(1.0)
    report = pj.diagnose(model, variables, batch)
    assert math.isnan(report.layers[0].input_cosine)
    assert next(report.rows())["predicted_cosine"] == pytest.approx(0)
