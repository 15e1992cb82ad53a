"""No unseen weight is called healthy: in transformations, multiplied by hand, complex."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import prelu_jax as pj
from prelu_jax import tracing
from prelu_jax.signal import batches, coverage
from tests.signal import models as others
from tests.signal.nets import drawn, flat, images

pytestmark = pytest.mark.compiled("what is inside jit or scan is not traced")
WIDTH = 6
W = jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)
X = jax.ShapeDtypeStruct((4, WIDTH), jnp.float32)


def role(function, *parameters, x=X):
    """'seen', 'unseen' with the transformations, 'elementwise' or 'unused', of every parameter."""
    names = {f"p{i}": leaf for i, leaf in enumerate(parameters)}
    program = tracing.trace(lambda held, _, x: function(x, *held.values()), names, (), x)
    found = coverage.of(program, names, {})
    kinds = {
        weight.parameter: "/".join(("unseen", *weight.inside)) for weight in found.not_measured
    }
    kinds |= dict.fromkeys(found.elementwise, "elementwise")
    kinds |= dict.fromkeys(found.unused, "unused") | dict.fromkeys(found.seen, "seen")
    return [kinds[name] for name in names]


@jax.custom_vjp
def product(x, w):
    return x @ w


product.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, r[0].T @ g))


def modulated(x, w):
    """A layer of StyleGAN2, with a kernel for each example."""
    kernels = w * x[:, :, None]
    kernels *= jax.lax.rsqrt(jnp.sum(kernels**2, axis=1, keepdims=True))
    return jnp.einsum("bi,bio->bo", x, kernels)


def layer_norm(x, scale):
    factor = jax.lax.rsqrt(jnp.var(x, axis=-1, keepdims=True) + 1e-6) * scale
    return (x - x.mean(-1, keepdims=True)) * factor


def dropped(x, w):
    return x @ jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, w.shape), w, 0)


ROWS = jnp.arange(4)
PRODUCTS = {
    "matmul": (lambda x, w: x @ w, "seen"),
    "transposed": (lambda x, w: x @ w.T, "seen"),
    "einsum": (lambda x, w: jnp.einsum("bi,io->bo", x, w), "seen"),
    "sum": (lambda x, w: (x[:, :, None] * w).sum(1), "unseen"),
    "residual": (lambda x, w: x @ (jnp.eye(WIDTH) + w), "seen"),
    "dropped": (dropped, "seen"),
    "normed": (lambda x, w: x @ (w / jnp.linalg.norm(w, axis=0)), "seen"),
    "modulated": (modulated, "unseen"),
    "table": (lambda x, w: w[jnp.argmax(x, -1)], "seen"),
    "conv": (lambda x, w: jax.lax.conv(x[None, None], w[None, None], (1, 1), "SAME"), "seen"),
    "jit": (lambda x, w: jax.jit(lambda x, w: x @ w)(x, w), "seen"),
    "remat": (jax.checkpoint(lambda x, w: jnp.tanh(x @ w)), "seen"),
    "custom_vjp": (product, "unseen/custom_vjp"),
    "vmap": (lambda x, w: jax.vmap(lambda row: w @ row)(x), "seen"),
    "scan": (
        lambda x, w: jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=2)[0],
        "seen",
    ),
    "while": (
        lambda x, w: jax.lax.while_loop(lambda c: c[0, 0] < 1, lambda c: c @ w, x),
        "unseen/while_loop",
    ),
    "cond": (
        lambda x, w: jax.lax.cond(x.sum() > 0, lambda: x @ w, lambda: x),
        "seen",
    ),
    "generator": (
        lambda x, w: x.sum() * (jax.random.normal(jax.random.key(0), (2, WIDTH)) @ w),
        "unseen",
    ),
    "scale": (lambda x, w: x * w[:1], "elementwise"),
    "of a norm": (lambda x, w: layer_norm(x, w[:1]), "elementwise"),
    "before a product": (lambda x, w: (x * w[:1]) @ x.T, "elementwise"),
    "einsum of a scale": (lambda x, w: jnp.einsum("bi,i->bi", x, w[0]), "elementwise"),
    "positions": (lambda x, w: x + w[:4], "elementwise"),
    "positions looked up": (lambda x, w: x + w[ROWS], "elementwise"),
    "slope": (lambda x, w: jnp.where(x > 0, x, w[:1] * x), "elementwise"),
    # The limit that `Coverage` states: these mix features, and are not recognised.
    "Fourier": (
        lambda x, w: jnp.fft.irfft(jnp.fft.rfft(x) * jnp.fft.rfft(w[0]), WIDTH),
        "elementwise",
    ),
    "tropical": (lambda x, w: (x[:, :, None] + w).max(1), "elementwise"),
    "distances": (
        lambda x, w: jnp.exp(-((x[:, None] - w) ** 2).sum(-1)),
        "elementwise",
    ),
    "unused": (lambda x, w: x, "unused"),
    "passed on": (lambda x, w: jax.jit(lambda x, w: (x, w))(x, w)[0], "unused"),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_what_is_multiplied_with_the_signal_is_a_weight(name):
    function, expected = PRODUCTS[name]
    assert role(function, W) == [expected]


def test_a_norms_scale_before_a_product_does_not_become_a_weight():
    assert role(lambda x, scale, w: layer_norm(x, scale[:1]) @ w, W, W) == ["elementwise", "seen"]


def by_sums(x, *weights):
    for w in weights:
        x = nn.relu((x[:, :, None] * w).sum(1))
    return x


def by_rows(x, *weights):
    for w in weights:
        x = jnp.tanh((w.T * x[:, None, :]).mean(-1))
    return x


def by_running_sums(x, *weights):
    for w in weights:
        x = x + jnp.cumsum(x[:, :, None] * w, axis=1)[:, -1]
    return x


@pytest.mark.parametrize("function", [by_sums, by_rows, by_running_sums])
def test_every_product_of_a_chain_by_multiplication_and_summation_is_seen(function):
    assert role(function, W, W, W) == ["unseen"] * 3


def test_only_parameters_of_two_axes_count():
    vector = jax.ShapeDtypeStruct((WIDTH,), jnp.float32)
    assert role(lambda x, w: x @ w, vector) == ["elementwise"]


# --- Whole models ------------------------------------------------------------------------------


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return nn.relu(nn.Dense(32)(x)), None


class Deep(nn.Module):
    """Five blocks between two layers in the open."""

    how: str

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(32, name="before")(x)
        if self.how == "scan":
            body = nn.scan(
                nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=5
            )
            x, _ = body(name="blocks")(x, None)
        else:
            for i in range(5):
                x = nn.relu(x @ self.param(f"w{i}", nn.initializers.normal(), (32, 32)))
        return nn.Dense(10, name="after")(x)


DEEP_X = images(16, 32)


def deep(how, std):
    """Return the model, and its variables with kernels of this std inside, drawn by NumPy."""
    model = Deep(how)
    kernels = flat(drawn(model, DEEP_X))
    for name, kernel in kernels.items():
        in_the_open = name.startswith(("before", "after"))
        wanted = 32**-0.5 if in_the_open else std
        kernel *= 0 if name.endswith("bias") else wanted / kernel.std()
    return model, {"params": flax.traverse_util.unflatten_dict(kernels, sep="/")}


@pytest.mark.parametrize(("how", "first"), [("scan", "blocks/Dense_0[2]"), ("hand", "w2")])
def test_a_dead_signal_inside_is_found_at_its_first_layer(how, first):
    report = pj.diagnose(*deep(how, 0.09), DEEP_X)
    assert report.verdict == "vanishing"
    assert f"from {first} on" in report.summary
    with pytest.raises(AssertionError, match="vanishing"):
        report.assert_healthy(allow_unseen=True)
    report = pj.diagnose(*deep(how, 0.25), DEEP_X)
    assert report.verdict == "healthy"
    assert len(report.layers) == 7
    assert (report.measurement.coverage.share, report.measurement.not_measured) == (1.0, ())
    report.assert_healthy()


@pytest.mark.parametrize("how", ["scan", "hand"])
def test_a_dead_signal_inside_is_calibrated(how):
    model, dead = deep(how, 0.09)
    variables, calibrated = pj.calibrate(model, dead, DEEP_X, method="lsuv")
    assert len(calibrated.stages[0].layers) == 7
    assert max(row.error for row in calibrated.stages[0].layers) < 1e-3
    assert pj.diagnose(model, variables, DEEP_X).verdict == "healthy"
    pattern = "^blocks" if how == "scan" else "^w"
    _, calibrated = pj.calibrate(model, variables, DEEP_X, except_=pattern)
    assert [row.layer for row in calibrated.stages[0].layers] == ["before", "after"]


class Transformed(nnx.Module):
    """A block inside an NNX or JAX transformation, between two layers in the open."""

    def __init__(self, how, rngs):
        self.how = how
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.block = nnx.Linear(4, 4, rngs=rngs)
        self.last = nnx.Linear(4, 2, rngs=rngs)
        self.idle = nnx.Linear(4, 4, rngs=rngs)
        if how in ("scan", "vmap"):
            make = nnx.vmap(lambda rngs: nnx.Linear(4, 4, rngs=rngs), in_axes=0, out_axes=0)
            self.block = make(nnx.Rngs(0).split(3))
        if how == "rnn":
            self.block = nnx.RNN(nnx.SimpleCell(4, 4, rngs=rngs))

    def __call__(self, x):
        x = self.first(x)
        run = lambda block, x: nnx.relu(block(x))  # noqa: E731
        match self.how:
            case "remat":
                x = nnx.remat(run)(self.block, x)
            case "jit":
                x = nnx.jit(run)(self.block, x)
            case "scan":
                step = nnx.scan(lambda x, b: run(b, x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
                x = step(x, self.block)
            case "vmap":
                x = nnx.vmap(run, in_axes=(0, None))(self.block, x).mean(0)
            case "rnn":
                x = self.block(x[:, None])[:, 0]
            case "cond":
                # Not so once `first` is calibrated: the sum is then 0, but for rounding.
                x = nnx.cond(x.sum() > 1, run, lambda b, x: x, self.block, x)
            case "jax.jit":
                x = jax.jit(lambda x: run(self.block, x))(x)
            case "jax.checkpoint":
                x = jax.checkpoint(lambda x: run(self.block, x))(x)
            case "hand":
                x = x @ self.block.kernel[...]
        return self.last(x)


HOWS = ["remat", "jit", "scan", "vmap", "rnn", "cond", "jax.jit", "jax.checkpoint", "hand"]


@pytest.mark.parametrize("how", HOWS)
def test_calibrate_sees_into_the_transformations_of_nnx(how):
    model = Transformed(how, nnx.Rngs(0))
    kernels = [path for path in _kernels(model) if path.startswith("block")]
    report = pj.calibrate(model, images(8, 3))
    rows = report.stages[0].layers
    assert {row.parameter for row in rows} == {*kernels, "first/kernel", "last/kernel"}
    ran = [row for row in rows if not any("did not run" in note for note in row.notes)]
    assert len(rows) - len(ran) == (how == "cond")
    assert max(row.error for row in ran) < 1e-3
    assert report.coverage.unused == ("idle/kernel",)
    report = pj.calibrate(model, images(8, 3), except_="block")
    assert [row.layer for row in report.stages[0].layers] == ["first", "last"]
    assert {*kernels, "idle/kernel"} == {row.parameter for row in report.skipped}


def _kernels(model):
    return [
        "/".join(map(str, path))
        for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))
        if path[-1] == "kernel"
    ]


class Fourier(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.Dense(8, dtype=jnp.complex64, param_dtype=jnp.complex64, name="complex")(x)
        return nn.Dense(2, name="real")(jnp.abs(y))


def test_complex_layers_are_listed_and_refused():
    x = images(4, 5)
    variables = jax.jit(Fourier().init)(jax.random.key(0), x)
    report = pj.diagnose(Fourier(), variables, x)
    assert report.verdict == "not judged"
    assert "complex" in report.summary
    assert report.measurement.not_measured == ("complex/kernel",)
    with pytest.raises(ValueError, match="complex/kernel: complex"):
        pj.calibrate(Fourier(), variables, x)
    _, calibrated = pj.calibrate(Fourier(), variables, x, except_="complex")
    assert "complex" in calibrated.skipped[0].why


class Norms(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.SpectralNorm(nn.Dense(8))(x, update_stats=False))
        x = x * self.param("scale", nn.initializers.ones, (1, 8))
        x = x + self.param("positions", nn.initializers.zeros, (4, 8))
        return nn.WeightNorm(nn.Dense(3))(x)


def test_scales_positions_and_normed_weights_leave_a_net_healthy():
    x = images(4, 5)
    report = pj.diagnose(Norms(), jax.jit(Norms().init)(jax.random.key(0), x), x)
    report.assert_healthy()
    assert report.measurement.coverage.share == 1
    assert {"scale", "positions"} <= set(report.measurement.coverage.elementwise)


class Frozen(nn.Module):
    """Kernels of another collection than 'params', between two layers in the open."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(32, name="before")(x)
        for i in range(3):
            draw = lambda: 0.35 * images(32, 32)  # noqa: E731
            x = nn.relu(x @ self.variable("frozen", f"w{i}", draw).value)
        return nn.Dense(10, name="after")(x)


class FrozenNnx(nnx.Module):
    def __init__(self, rngs):
        self.before = nnx.Linear(32, 32, rngs=rngs)
        self.w = nnx.Variable(0.35 * images(32, 32))
        self.after = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):
        return self.after(nnx.relu(self.before(x) @ self.w[...]))


@pytest.mark.parametrize("freeze", [False, True])
def test_a_kernel_outside_of_the_parameters_is_a_weight(freeze):
    x = images(16, 32)
    variables = jax.jit(Frozen().init)(jax.random.key(0), x)
    dead = {**variables, "frozen": jax.tree.map(lambda w: 0.06 * w, variables["frozen"])}
    assert pj.diagnose(Frozen(), dead, x).verdict == "vanishing"
    variables = flax.core.freeze(variables) if freeze else variables
    names = ("frozen/w0", "frozen/w1", "frozen/w2")
    report = pj.diagnose(Frozen(), variables, x)
    assert report.verdict == "healthy"
    assert set(names) <= set(report.measurement.coverage.seen)
    assert [row.name for row in report.layers] == ["before", *names, "after"]
    changed, calibrated = pj.calibrate(Frozen(), variables, x)
    assert tuple(row.parameter for row in calibrated.skipped) == names
    assert "not one of the model's parameters" in calibrated.skipped[0].why
    jax.tree.map(np.testing.assert_array_equal, changed["frozen"], variables["frozen"])


def test_a_variable_of_nnx_that_is_no_param_is_a_weight():
    model = FrozenNnx(nnx.Rngs(0))
    report = pj.diagnose(model, images(16, 32))
    assert report.verdict == "healthy"
    assert [row.name for row in report.layers] == ["before", "w", "after"]
    before = model.w[...]
    pj.calibrate(model, images(16, 32))
    np.testing.assert_array_equal(model.w[...], before)


class Stateful(nn.Module):
    """Statistics, a cache that is written, one that is only read, and a table of positions."""

    @nn.compact
    def __call__(self, x):
        x = nn.SpectralNorm(nn.Dense(8))(x, update_stats=True)
        x = nn.BatchNorm(use_running_average=False)(x)
        x = x + self.variable("tables", "positions", lambda: images(1, 5, 8)).value
        x = nn.MultiHeadAttention(2, decode=True, name="attention")(x[:, :1])
        past = self.variable("cache", "past", lambda: images(len(x), 5, 8)).value
        own = self.variable("own", "past", lambda: images(len(x), 5, 8)).value.at[:, :1].set(x)
        x = jnp.einsum("bqc,bkc,bkd->bqd", x, past, past)
        return nn.Dense(3)(jnp.einsum("bqc,bkc,bkd->bqd", x, own, own))


class StatefulNnx(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(6, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=True, rngs=rngs)
        self.attention.init_cache((4, 5, 8))
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.past = nnx.Cache(images(4, 5, 8))

    def __call__(self, x):
        x = self.dropout(self.attention(self.norm(self.first(x))[:, :1]))
        return jnp.einsum("bqc,bkc,bkd->bqd", x, self.past[...], self.past[...])


def test_statistics_caches_and_random_streams_are_no_weights():
    x = images(4, 5, 6)
    variables = jax.jit(Stateful().init)({"params": jax.random.key(0)}, x)
    found = pj.diagnose(Stateful(), variables, x).measurement.coverage
    assert (found.not_measured, found.share) == ((), 1.0)
    assert not [name for name in found.seen if "batch_stats" in name]
    found = pj.diagnose(StatefulNnx(nnx.Rngs(0)), x).measurement.coverage
    assert (found.not_measured, found.unused, found.share) == ((), (), 1.0)


class TiedHead(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(9, 6, name="embed")
        x = nn.Dense(6, name="dense")(embed(tokens))
        return x @ embed.embedding.T


def test_a_head_tied_to_an_embedding_by_hand_is_no_obstacle():
    tokens = jnp.arange(12).reshape(4, 3) % 9
    variables = drawn(TiedHead(), tokens)
    assert pj.diagnose(TiedHead(), variables, tokens).measurement.coverage.share == 1
    _, report = pj.calibrate(TiedHead(), variables, tokens)
    assert [row.layer for row in report.stages[0].layers] == ["dense"]


# --- The number of examples --------------------------------------------------------------------

MASK, SCALAR = np.ones((1, 1, 6, 6), bool), np.float32(2)
KEY_DATA = np.zeros(2, np.uint32)


@pytest.mark.parametrize(
    ("batch", "outputs", "expected"),
    [
        ({"causal_mask": MASK, "x": np.ones((16, 6, 8))}, np.ones((16, 3)), 16),
        ((MASK, np.ones((16, 6))), np.float32(0), 16),
        ((SCALAR, np.ones((5, 2))), np.ones((5, 2)), 5),
        ((KEY_DATA, np.ones((5, 2))), np.ones((5, 2)), 5),
        ((KEY_DATA, np.ones((5, 2))), None, 5),  # a tie: the largest
        ((np.ones((7, 2)), np.ones((5, 2)), np.ones(5)), np.ones((35, 2)), 5),
        ((np.ones((1, 3)), np.ones((1, 2))), np.ones((1, 3)), 1),
        ((jax.random.key(0), np.ones((5, 2))), np.ones((5, 2)), 5),
    ],
)
def test_the_examples_are_counted_where_the_outputs_or_most_arrays_have_them(
    batch, outputs, expected
):
    batches.check(batch)
    assert batches.examples(batch, outputs).number == expected


def test_a_tie_is_named_and_an_argument_overrides():
    batch = {"a": np.ones((4, 2)), "b": np.ones((3, 9))}
    found = batches.examples(batch)
    assert found.number == 3
    assert "3, 4 are equally common" in found.chosen
    assert batches.examples(batch, given=4) == (4, "as batch_size says")
    with pytest.raises(ValueError, match=r"batch_size is 9.*leading sizes .* \[3, 4\]"):
        batches.examples(batch, given=9)
    with pytest.raises(TypeError, match="batch_size is '4', expected a whole number"):
        batches.examples(batch, given="4")


class Masked(nn.Module):
    @nn.compact
    def __call__(self, batch):
        x = nn.Dense(8, name="in")(batch["x"])
        attention = nn.MultiHeadDotProductAttention(2, name="attention")
        return nn.Dense(8, name="out")(attention(x, mask=batch["causal_mask"]))


def test_a_dict_with_a_mask_has_its_examples():
    batch = {"causal_mask": jnp.tril(jnp.ones((1, 1, 6, 6), bool)), "x": images(16, 6, 8)}
    variables = drawn(Masked(), batch)
    report = pj.diagnose(Masked(), variables, batch)
    assert all(row.cosine is not None for row in report.layers)
    assert "Examples: 16, the leading size of the outputs." in str(report)
    parts = iter([batch, {**batch, "x": batch["x"][:5]}])
    _, calibrated = pj.calibrate(Masked(), variables, parts)
    assert calibrated.examples.number == 21
    assert "Examples: 21" in str(calibrated)
    other = {**batch, "causal_mask": ~batch["causal_mask"]}
    with pytest.raises(ValueError, match="differ and do not have the examples"):
        pj.calibrate(Masked(), variables, iter([batch, other]))


# --- Axes of devices, and NNX objects as arguments -----------------------------------------------


class Several(nn.Module):
    """Written for devices: BatchNorm over two axes, and collectives by hand."""

    bound: bool = True

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(8, name="a")(x)
        for name in ("batch", ("hosts", "chips")):
            norm = nn.BatchNorm(
                use_running_average=not train, axis_name=name if self.bound else None
            )
            x = norm(x)
        x = nn.Dense(8, name="b")(nn.relu(x))
        if self.bound:
            x = jax.lax.pmean(x, "mean") * (1 + jax.lax.axis_index("index")).astype(x.dtype)
        return nn.Dense(3, name="c")(x)


def test_axes_that_a_model_asks_for_have_one_device():
    x = images(8, 5)
    variables = drawn(Several(bound=False), x, train=True)
    kwargs = {"call_kwargs": {"train": True}}
    found = pj.diagnose(Several(), variables, x, **kwargs).layers
    expected = pj.diagnose(Several(bound=False), variables, x, **kwargs).layers
    for a, b in zip(found, expected, strict=True):
        assert a.second_moment == pytest.approx(b.second_moment, rel=1e-5)
        assert a.change_rate == pytest.approx(b.change_rate, rel=1e-4)
    method = ["within_layer", "between_layer"]
    (a, _), (b, _) = (
        pj.calibrate(Several(bound), variables, x, method=method, **kwargs)
        for bound in (True, False)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), a, b)
    assert len(pj.initializers.table(Several(), variables, x, train=True)) == 10


class TakesRngs(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)
        self.norm = nnx.BatchNorm(8, axis_name="batch", rngs=rngs)
        self.last = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x, rngs, cache=None):
        x = self.dropout(nnx.relu(self.norm(self.first(x))), rngs=rngs)
        if cache is not None:
            cache["sum"][...] += x
            x = cache["sum"][...]
        return self.last(x)


class TakesModule(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.last = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x, adapter):
        return self.last(adapter(self.first(x)))


@pytest.mark.parametrize("by", ["position", "keyword"])
def test_the_weights_of_a_module_given_as_an_argument_are_unseen(by):
    model, adapter = TakesModule(nnx.Rngs(0)), nnx.Linear(4, 4, rngs=nnx.Rngs(1))
    batch, kwargs = {
        "position": ((images(8, 3), adapter), {}),
        "keyword": (images(8, 3), {"adapter": adapter}),
    }[by]
    name = {"position": "argument 1/kernel", "keyword": "argument 1/adapter/kernel"}[by]
    report = pj.diagnose(model, batch, call_kwargs=kwargs)
    assert report.verdict == "not judged"
    assert report.measurement.not_measured == (name,)
    with pytest.raises(ValueError, match=f"{name}: inside a module given as an argument"):
        pj.calibrate(model, batch, call_kwargs=kwargs)
    pj.calibrate(model, batch, call_kwargs=kwargs, except_="adapter|argument")


@pytest.mark.parametrize("by", ["position", "keyword"])
def test_nnx_objects_are_taken_as_arguments_and_stay_as_they_are(by):
    model, rngs = TakesRngs(nnx.Rngs(0)), nnx.Rngs(0)
    cache = {"sum": nnx.Cache(jnp.ones((16, 8)))}
    x = images(16, 3)
    batch, kwargs = {
        "position": ((x, rngs, cache), {}),
        "keyword": (x, {"rngs": rngs, "cache": cache}),
    }[by]
    report = pj.diagnose(model, batch, call_kwargs=kwargs)
    assert [row.name for row in report.layers] == ["first", "last"]
    assert report.measurement.examples.number == 16
    method = ["within_layer", "between_layer"]
    stage, _ = pj.calibrate(model, batch, call_kwargs=kwargs, method=method).stages
    assert max(row.error for row in stage.layers) < 1e-4
    assert rngs.default.count[...] == 0
    np.testing.assert_array_equal(cache["sum"][...], 1)
    with pytest.raises(TypeError, match="rngs is a Rngs, expected a dict of keys"):
        pj.diagnose(model, x, rngs=rngs)


TOKENS = np.arange(24 * 3).reshape(24, 3) * 7 % others.VOCABULARY
OTHERS = {
    "vit": (others.Vit(), images(24, 6, 6, 2), 1 + 2 * 6 + 1),
    "decoder": (others.Decoder(), TOKENS, 2 + 2 * 6),
    "nnx": (others.NnxStack(nnx.Rngs(0)), images(24, 4, others.WIDTH), 2 * 6 + 1),
    "classifier": (others.Classifier(), TOKENS, 1 + 2 * 3 * 2 + 1),
    "fused": (others.FusedBlock(), images(24, 5, others.WIDTH), 4),
    "experts": (others.Experts(), images(64, others.WIDTH), 4),
}


@pytest.mark.parametrize("name", OTHERS)
def test_all_weights_of_models_as_others_write_them_are_seen_and_calibrated(name):
    model, x, rows = OTHERS[name]
    given = () if isinstance(model, nnx.Module) else (drawn(model, x),)
    measured = pj.diagnose(model, *given, x).measurement
    assert (measured.coverage.share, measured.coverage.not_measured) == (1.0, ())
    assert len(measured.layers) == rows
    calibrated = pj.calibrate(model, *given, x)
    report = calibrated if isinstance(model, nnx.Module) else calibrated[1]
    assert max(row.error for row in report.stages[0].layers) < 1e-3
    assert not any("follow" in note for row in report.stages[0].layers for note in row.notes)
