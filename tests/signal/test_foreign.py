"""Models written by others: Flax's own recurrent cells and attention, models in models."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from prelu_jax import signal
from prelu_jax.diagnosis import diagnose
from tests.signal.nets import drawn, images


class Head(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.tanh(nn.Dense(3)(x))


class AppliesAnother(nn.Module):
    """A model inside, applied to parameters of this one or to what another layer computed."""

    computed: bool

    @nn.compact
    def __call__(self, x):
        head = Head(parent=None)
        x = nn.Dense(3)(x)
        if self.computed:
            kernel = nn.Dense(9)(x).mean(0).reshape(3, 3)
            params = {"Dense_0": {"kernel": kernel, "bias": jnp.zeros(3)}}
        else:
            params = self.param("head", lambda key: head.init(key, x)["params"])
        return head.apply({"params": params}, x)


@pytest.mark.parametrize("computed", [True, False])
def test_a_model_applied_inside_another_has_a_place_and_a_kernel_of_its_own(computed):
    x = images(4, 3)
    model = AppliesAnother(computed)
    variables = drawn(model, x)
    rows = {row.path: row for row in signal.measure(model, variables, x).layers}
    # A kernel that the model computes from the batch is no weight of its own.
    assert list(rows) == ["Dense_0", "Dense_1" if computed else "head/Dense_0"]
    if not computed:
        kernel = variables["params"]["head"]["Dense_0"]["kernel"]
        expected = np.sqrt(np.mean(np.square(kernel)))
        assert rows["head/Dense_0"].kernel_rms == pytest.approx(expected, rel=1e-5)


class WeightNormed(nn.Module):
    """Flax transforms the layer's variables; its calls are in the open nevertheless."""

    inside: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.WeightNorm(nn.Dense(3))(x)
        if self.inside:
            head = WeightNormed(parent=None)
            params = self.param("head", lambda key: head.init(key, x)["params"])
            x = head.apply({"params": params}, x)
        return x


def test_a_layer_with_normed_weights_keeps_its_path_and_has_the_kernel_that_it_multiplies():
    x = images(4, 3)
    model = WeightNormed(inside=True)
    variables = drawn(model, x)
    found = signal.measure(model, variables, x)
    assert [row.path for row in found.layers] == ["Dense_0", "head/Dense_0"]
    # The kernel that is multiplied has columns of norm 1, times the scales.
    for row, params in zip(
        found.layers, (variables["params"], variables["params"]["head"]), strict=True
    ):
        (scale,) = params["WeightNorm_0"].values()
        kernel = params["Dense_0"]["kernel"]
        normed = kernel / jnp.linalg.norm(kernel, axis=0) * scale
        assert row.kernel_rms == pytest.approx(float(jnp.sqrt(jnp.mean(normed**2))), rel=1e-4)
    assert found.not_measured == ()
    assert {"Dense_0/kernel", "head/Dense_0/kernel"} <= set(found.coverage.seen)


def test_a_computed_kernel_changes_as_its_parameters_follow_their_gradients():
    def loss(y):
        return jnp.mean(jnp.square(y))

    def kernel_of(params):
        return params["w"] / jnp.std(params["w"]) * params["scale"]

    x = images(4, 3)
    params = {"w": jax.random.normal(jax.random.key(0), (3, 5)), "scale": jnp.full(5, 0.7)}
    function = lambda params, x: x @ kernel_of(params)  # noqa: E731
    (row,) = signal.measure(function, params, x, loss=loss).layers
    gradient = jax.grad(lambda params: loss(function(params, x)))(params)
    change = jax.jvp(kernel_of, (params,), (gradient,))[1]
    expected = float(jnp.sqrt(jnp.mean(jnp.square(change))))
    assert row.kernel_gradient_rms == pytest.approx(expected, rel=1e-5)


class Tokens(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(9, 4)(tokens)
        x = nn.RNN(nn.LSTMCell(5))(x)
        return nn.Dense(2)(x)


TOKENS = jnp.arange(128).reshape(32, 4) * 7 % 9


def test_a_recurrent_cell_has_a_row_for_every_product_and_step():
    found = signal.measure(Tokens(), drawn(Tokens(), TOKENS), TOKENS)
    names = [row.name for row in found.layers]
    assert (names[0], names[-1], len(names)) == ("Embed_0", "Dense_0", 2 + 4 * 8)
    cell = names[1].rpartition("/")[0]
    assert {f"{cell}/hf", f"{cell}/hf[3]", f"{cell}/ii[1]"} <= set(names)
    assert found.not_measured == ()


def test_the_initial_state_of_a_recurrent_cell_is_no_dead_unit():
    report = diagnose(Tokens(), drawn(Tokens(), TOKENS), TOKENS)
    first = next(row for row in report.measurement.layers if row.name.endswith("/hf"))
    assert (first.input_zero_fraction, first.previous) == (1.0, None)
    assert report.verdict == "healthy"


def test_a_gate_on_an_initial_state_of_zeros_has_no_vanishing_gradient():
    """The reset gate of a GRU multiplies the state's product with a kernel: 0 in the first step."""
    model, x = nn.RNN(nn.GRUCell(16)), jax.random.normal(jax.random.key(0), (16, 2, 16))
    report = diagnose(model, jax.jit(model.init)(jax.random.key(1), x), x)
    first = report.layers[0]
    assert (first.gradient_second_moment, first.previous) == (0.0, None)
    assert report.verdict == "healthy"


class Pair(NamedTuple):
    x: jax.Array
    y: jax.Array


class TakesPair(nn.Module):
    returns: str = "floats"

    @nn.compact
    def __call__(self, pair):
        y = nn.Dense(2)(pair.x + pair.y)
        return {"floats": y, "text": {"y": y, "note": "a"}, "complex": (y, jax.lax.complex(y, y))}[
            self.returns
        ]


def test_a_named_tuple_is_one_argument():
    pair = Pair(images(3, 4), images(3, 4))
    variables = drawn(TakesPair(), pair)
    (row,) = signal.measure(TakesPair(), variables, pair).layers
    assert row.input_second_moment == pytest.approx(float(jnp.mean(4 * pair.x**2)), rel=1e-5)
    assert signal.measure(TakesPair("complex"), variables, pair).layers == (row,)
    with pytest.raises(TypeError, match="returned a str, expected arrays, or a pytree of them"):
        signal.measure(TakesPair("text"), variables, pair)


class Fourier(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.Dense(3, dtype=jnp.complex64, param_dtype=jnp.complex64, name="complex")(x)
        return nn.Dense(2, name="real")(jnp.abs(y))


def test_layers_of_complex_numbers_pass_unmeasured():
    x = images(4, 5)
    variables = jax.jit(Fourier().init)(jax.random.key(0), x)
    assert [row.path for row in signal.measure(Fourier(), variables, x).layers] == ["real"]


class ByKeyword(nn.Module):
    """Use the form of Flax's example nlp_seq, which takes no argument by position."""

    @nn.compact
    def __call__(self, *, inputs, train, scale):
        return nn.Dense(2)(inputs * scale[:, None] if train else inputs)


def test_a_model_that_takes_keywords_only_is_given_them_in_their_order():
    x, scale = images(3, 4), jnp.arange(3.0)
    kwargs = {"train": True}
    variables = drawn(ByKeyword(), inputs=x, scale=scale, **kwargs)
    (row,) = signal.measure(ByKeyword(), variables, (x, scale), call_kwargs=kwargs).layers
    assert row.input_second_moment == pytest.approx(
        float(jnp.mean((x * scale[:, None]) ** 2)), rel=1e-5
    )
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'scale'"):
        signal.measure(ByKeyword(), variables, x, call_kwargs=kwargs)
    with pytest.raises(TypeError, match="takes 1 positional argument but"):
        signal.measure(ByKeyword(), variables, (x, scale, scale), call_kwargs=kwargs)


class Normed(nn.Module):
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6)(x)
        x = nn.BatchNorm(use_running_average=False, axis_name=self.axis_name)(x)
        return nn.Dense(2)(x)


@pytest.mark.compiled("jax.pmap over several devices")
def test_batch_norm_in_training_normalises_over_all_devices():
    x = images(8, 3)
    variables = drawn(Normed(), x)
    whole = signal.measure(Normed(), variables, x)
    probe = signal.prepare(Normed("devices"), variables, x[:2], axis_name="devices")
    run = jax.pmap(probe.statistics, axis_name="devices", in_axes=(None, 0))
    raw = run(variables, x.reshape(4, 2, 3))
    parts = probe.read(jax.tree.map(lambda leaf: leaf[0], raw))
    for a, b in zip(parts.layers, whole.layers, strict=True):
        for field in ("second_moment", "input_second_moment", "gradient_second_moment"):
            assert getattr(a, field) == pytest.approx(getattr(b, field), rel=1e-4), field
    assert whole.normalises
    with pytest.raises(ValueError, match="asks for an axis.*axis_name is 'other'.*name: devices"):
        signal.prepare(Normed("devices"), variables, x[:2], axis_name="other")


def test_nnx_attention_einsum_and_lora_have_their_rows():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(9, 4, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
            self.mix = nnx.Einsum("btd,df->btf", (4, 6), (6,), rngs=rngs)
            self.lora = nnx.LoRALinear(6, 4, lora_rank=2, rngs=rngs)

        def __call__(self, tokens):
            x = self.attention(self.embed(tokens))
            return self.embed.attend(self.lora(self.mix(x)))

    tokens = jnp.arange(12).reshape(3, 4) % 9
    found = signal.measure(Model(nnx.Rngs(0)), None, tokens)
    names = [f"attention/{name}" for name in ("query", "key", "value", "out")]
    lora = ["lora", "lora/lora/lora_a", "lora/lora/lora_b"]
    rows = {row.name: row.channels for row in found.layers}
    assert set(rows) == {"embed", *names, "mix", *lora, "embed[1]"}
    assert [rows[name] for name in ("embed", *names, "mix", *lora, "embed[1]")] == [
        *(4, 4, 4, 4, 4, 6),
        *(4, 2, 4, 9),
    ]
    assert found.not_measured == ()
    assert {"lora/lora/lora_a", "lora/lora/lora_b"} <= set(found.coverage.seen)


def test_weights_of_integers_are_measured_and_have_no_gradient():
    def quantised(params, x):
        return (x @ params["w"].astype(x.dtype)) * params["scale"]

    params = {"w": jnp.arange(12, dtype=jnp.int8).reshape(3, 4), "scale": jnp.ones(4)}
    (row,) = signal.measure(quantised, params, images(4, 3)).layers
    assert (row.path, row.kernel_rms, row.change_rate) == ("w", None, None)
    assert row.second_moment > 0
