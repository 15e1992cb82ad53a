"""Tests that every planted mistake is found in a small model, and nothing else."""

import math
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import prelu_jax as pj
from prelu_jax import initializers
from prelu_jax.initializers import Layout, parameters
from prelu_jax.tracing import models
from tests.initializers import healthy

WIDTH, HIDDEN, HEADS, SIZE, EXPERTS, DEPTH = 28, 60, 3, 20, 5, 6
X = jax.random.normal(jax.random.key(0), (4, 8, 8, 16))
HE, LECUN = initializers.he_normal(), initializers.lecun_normal()
STACKED = initializers.he_normal(layout=Layout(batch_axis=0))
# [out, in] by its own fan; [in, heads, features] and the experts by theirs
TRANSPOSED = initializers.he_normal(layout=Layout(in_axis=1, out_axis=0))
BY_HEADS = initializers.lecun_normal(layout=Layout(in_axis=0, out_axis=(1, 2)))
GROUPED = initializers.he_normal("fan_avg", layout=Layout(feature_group_count=4))
JAX = jax.nn.initializers
RULES = {
    "conv": (HE, (3, 3, 16, WIDTH)),
    "grouped": (GROUPED, (3, 3, WIDTH // 4, 160)),
    "mix": (HE, (160, WIDTH)),
    "transposed": (TRANSPOSED, (HIDDEN, WIDTH)),
    "back": (HE, (HIDDEN, WIDTH)),
    "heads": (BY_HEADS, (WIDTH, HEADS, SIZE)),
    "joined": (LECUN, (HEADS * SIZE, WIDTH)),
    "experts": (STACKED, (EXPERTS, WIDTH, HIDDEN)),
    "wide": (STACKED, (DEPTH, WIDTH, HIDDEN)),
    "narrow": (STACKED, (DEPTH, HIDDEN, WIDTH)),
    "head": (HE, (HIDDEN, 100)),
}


def net(params, x):
    """Apply layers of every kind, a residual stack among them, before a head."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(
        x, params["conv"], (2, 2), "SAME", dimension_numbers=dimensions
    )
    x = pj.prelu(x + params["bias"], params["slope"])
    x = jax.lax.conv_general_dilated(
        x, params["grouped"], (2, 2), "SAME", dimension_numbers=dimensions, feature_group_count=4
    )
    x = jax.nn.relu(x.mean((1, 2)) @ params["mix"]) * params["scale"]
    x = jax.nn.relu(jax.nn.relu(x @ params["transposed"].T) @ params["back"])
    x = jnp.einsum("bi,ihf->bhf", x, params["heads"]).reshape(len(x), -1) @ params["joined"]

    def block(x, layer):
        wide, narrow = layer
        return x + jax.nn.relu(x @ wide) @ narrow, None

    x, _ = jax.lax.scan(block, x, (params["wide"], params["narrow"]))
    y = jnp.einsum("ebi,eio->ebo", jnp.stack([x] * EXPERTS), params["experts"])
    return jax.nn.relu(y.mean(0)) @ params["head"]


def drawn(seed=0):
    keys = jax.random.split(jax.random.key(seed), len(RULES))
    params = {
        name: rule(key, shape)
        for key, (name, (rule, shape)) in zip(keys, RULES.items(), strict=True)
    }
    return params | {
        "bias": jnp.zeros(WIDTH),
        "slope": jnp.full(WIDTH, 0.25),
        "scale": jnp.ones(WIDTH),
    }


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        zeros = nn.initializers.zeros
        return net({k: self.param(k, zeros, v.shape) for k, v in drawn().items()}, x)


class Nnx(nnx.Module):
    def __init__(self, params):
        self.params = nnx.Dict({name: nnx.Param(value) for name, value in params.items()})

    def __call__(self, x):
        return net({name: value[...] for name, value in self.params.items()}, x)


def audited(way, params, **options):
    if way == "linen":
        return initializers.table(Linen(), {"params": params}, X, **options)
    if way == "nnx":
        return initializers.table(Nnx(params), X, **options)
    return initializers.table(net, params, X, **options)


WAYS = ["linen", "nnx", "plain"]


def key(i):
    return jax.random.key(100 + i)


def of(name, rule):
    """Return the parameters with one of them drawn by another rule."""
    return {name: rule(key(1), RULES[name][1], jnp.float32)}


def uniform(name, limit):
    return {name: jax.random.uniform(key(1), RULES[name][1], minval=-limit, maxval=limit)}


P = drawn()
# case -> (planted mistake, (kind, part of the text, parameters) of the findings)
CASES = {
    "transposed": (
        of("transposed", JAX.he_normal()),
        ("wrong fan", r"stored \[out, in\]", ["transposed"]),
    ),
    "transposed, Xavier by one fan": (
        of("transposed", JAX.variance_scaling(1.0, "fan_in", "truncated_normal")),
        ("wrong fan", r"stored \[out, in\]", ["transposed"]),
    ),
    "experts counted": (
        of("experts", JAX.lecun_normal()),
        ("wrong fan", "counts the 5 kernels that are stacked", ["experts"]),
    ),
    "experts counted, Xavier": (
        of("experts", JAX.xavier_uniform()),
        ("wrong fan", "counts the 5 kernels that are stacked", ["experts"]),
    ),
    "layers of a scan counted": (
        of("wide", JAX.he_normal()),
        ("wrong fan", "counts the 6 kernels that are stacked", ["wide"]),
    ),
    "groups ignored": (
        of("grouped", initializers.gaussian(math.sqrt(2 / (9 * WIDTH)))),
        ("wrong fan", "ignores the 4 groups", ["grouped"]),
    ),
    "heads flattened": (
        of("heads", JAX.lecun_normal()),
        ("wrong fan", "all axes of .* except the last two for a window", ["heads"]),
    ),
    "LeCun's uniform off by √3": (
        uniform("mix", 1 / math.sqrt(160)),
        ("wrong limit", "√3.*PyTorch and Equinox", ["mix"]),
    ),
    "He's uniform off by √3": (
        uniform("mix", math.sqrt(2 / 160)),
        ("wrong limit", "√3", ["mix"]),
    ),
    "a normal with the limit for its std": (
        of("head", initializers.gaussian(math.sqrt(6 / HIDDEN))),
        ("wrong limit", "√3 times too large", ["head"]),
    ),
    "identical": ({"back": P["transposed"]}, ("same draw", "equal to", ["transposed"])),
    "equal up to the sign": (
        {"back": -P["transposed"]},
        ("same draw", "up to the sign", ["transposed"]),
    ),
    "one key for two shapes": (
        {"head": HE(key(7), RULES["head"][1]), "mix": LECUN(key(7), RULES["mix"][1])},
        ("same draw", "factor|order", ["mix"]),
    ),
    "one key for two distributions": (
        {
            "back": HE(key(7), RULES["back"][1]),
            "transposed": initializers.he_uniform(layout=TRANSPOSED.layout)(
                key(7), RULES["transposed"][1]
            ),
        },
        ("same draw", "in the same order", ["transposed"]),
    ),
    "one key for all layers of a scan": (
        {"wide": jnp.stack([P["wide"][0]] * DEPTH)},
        ("same draw", "slice 1 is equal to slice 0, and 4 more", ["wide"]),
    ),
    "one key for two layers of a scan": (
        {"wide": P["wide"].at[3].set(2 * P["wide"][1] / 2)},
        ("same draw", "slice 3 is equal to slice 1", ["wide"]),
    ),
    "units of zeros": (
        {"mix": P["mix"].at[:, 5:7].set(0)},
        ("alike units", r"2 of its 28 outputs are 0, first at \[5\]", ["mix"]),
    ),
    "inputs of one number": (
        {"mix": P["mix"].at[9].set(0.1)},
        ("alike units", r"1 of its 160 inputs are one number, first at \[9\]", ["mix"]),
    ),
    "units of zeros in one layer of a scan": (
        {"wide": P["wide"].at[2, :, 7].set(0)},
        ("alike units", r"1 of its 360 outputs are 0, first at \[2, 7\]", ["wide"]),
    ),
    "a constant kernel": (
        {"mix": jnp.full((160, WIDTH), 0.1)},
        ("alike units", "all its weights are 0.1", ["mix"]),
    ),
    "a mean": ({"mix": P["mix"] + 0.1}, ("mean", r"its mean is 0\.\d+, .* σ off 0", ["mix"])),
    "a kernel of the wrong half scaled with depth": (
        {"wide": P["wide"] / math.sqrt(DEPTH)},
        ("depth scaling", "1/√6 of that by the rule.*no residual sum.*narrow write", ["wide"]),
    ),
    "not finite": (
        {"mix": P["mix"].at[0, 0].set(jnp.nan)},
        ("not finite", "1 of 4480 numbers", ["mix"]),
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_model_as_it_should_be_has_no_findings(way):
    table = audited(way, drawn())
    assert list(map(str, table.findings)) == []
    table.assert_as_declared()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_found_and_nothing_else(case, way):
    planted, (kind, text, names) = CASES[case]
    table = audited(way, drawn() | planted)
    assert [finding.kind for finding in table.findings] == [kind] * len(names), table.findings
    prefix = "params/" if way == "nnx" else ""
    assert [finding.parameter for finding in table.findings] == [prefix + name for name in names]
    with pytest.raises(AssertionError, match=text):
        table.assert_as_declared()
    table.assert_as_declared(ignore="|".join(prefix + name for name in names))


def test_a_writer_that_is_not_scaled_like_its_siblings():
    """One of two kernels that write to the residual stream is scaled with depth."""

    def transformer(params, x):
        for i in range(DEPTH):
            x = x + jax.nn.relu(x @ params[f"wide_{i}"]) @ params[f"narrow_{i}"]
            x = x + jax.nn.relu(x @ params[f"up_{i}"]) @ params[f"down_{i}"]
        return x

    shapes = {"wide": (28, 60), "narrow": (60, 28), "up": (28, 90), "down": (90, 28)}
    params = {
        f"{name}_{i}": LECUN(jax.random.fold_in(key(i), j), shape)
        for i in range(DEPTH)
        for j, (name, shape) in enumerate(shapes.items())
    }
    x = jnp.ones((3, 28))
    assert not initializers.table(transformer, params, x).findings
    both = {n: v / math.sqrt(12) if n[:4] in ("narr", "down") else v for n, v in params.items()}
    assert not initializers.table(transformer, both, x).findings
    one = {n: v / math.sqrt(12) if n.startswith("narrow") else v for n, v in params.items()}
    reported = initializers.table(transformer, one, x).findings
    assert {finding.parameter for finding in reported} == {f"down_{i}" for i in range(DEPTH)}
    assert all(
        "not scaled by 1/√12, unlike narrow_0, narrow_1" in finding.what for finding in reported
    )
    fixed = {
        n: v / v.std() * (0.02 / math.sqrt(12) if n[0] in "wu" else 0.02) for n, v in params.items()
    }
    reported = initializers.table(transformer, fixed, x).findings
    assert {finding.parameter[:2] for finding in reported} == {"wi", "up"}
    assert {finding.kind for finding in reported} == {"depth scaling"}


def test_declared_rules_are_compared_with_the_numbers():
    """Rules come from regular expressions or, in Linen, from the layers."""
    rules = {"mix|back|head": HE, "bias": 0.0, "slope": 0.25}
    table = initializers.table(net, drawn(), X, declared=rules)
    assert not table.findings
    row = next(row for row in table if row.parameter == "mix")
    assert (row.rule, row.std) == (HE.describe(), pytest.approx(math.sqrt(2 / 160)))
    larger = drawn() | {"mix": 1.2 * drawn()["mix"], "slope": jnp.linspace(0.2, 0.3, WIDTH)}
    table = initializers.table(net, larger, X, declared=rules)
    assert [(finding.parameter, finding.kind) for finding in table.findings] == [
        ("mix", "std"),
        ("slope", "std"),
    ]
    assert "by its rule 0.112, 19 σ off" in table.findings[0].what


class Declares(nn.Module):
    """Layers that declare a rule, one of them for other axes."""

    @nn.compact
    def __call__(self, x):
        cut = JAX.truncated_normal(0.05, lower=-100, upper=100)
        x = nn.relu(nn.Dense(60, kernel_init=cut, name="cut")(x))
        x = nn.Einsum((60, 3, 20), "bi,ihf->bhf", kernel_init=JAX.he_normal(), name="heads")(x)
        x = nn.Conv(32, (3,), feature_group_count=4, kernel_init=JAX.he_normal(), name="by_fan_in")(
            x
        )
        by_fan_out = JAX.variance_scaling(2.0, "fan_out", "normal")
        x = nn.Conv(48, (3,), feature_group_count=4, kernel_init=by_fan_out, name="grouped")(x)
        return nn.Dense(10, name="head")(x.mean(1))


def test_the_rules_of_linen_layers_are_held_against_their_products():
    x = jnp.ones((2, 40))
    variables = Declares().init(jax.random.key(0), x)
    variables["params"]["head"]["kernel"] *= math.sqrt(1 / 3)
    table = initializers.table(Declares(), variables, x)
    reported = {finding.parameter: (finding.kind, finding.what) for finding in table.findings}
    assert list(reported) == ["cut/kernel", "grouped/kernel", "head/kernel", "heads/kernel"]
    assert reported["cut/kernel"] == (
        "truncation",
        "its rule cuts a Gaussian at 100 σ, which has no effect",
    )
    assert reported["grouped/kernel"][0] == "wrong fan"
    assert "ignores the 4 groups" in reported["grouped/kernel"][1]
    assert reported["heads/kernel"][0] == "wrong fan"
    assert reported["heads/kernel"][1].startswith("fan_in is 60, its rule takes 180: ")
    assert reported["head/kernel"][0] == "std"


def test_a_declared_cut_that_the_numbers_pass():
    params = drawn() | of("mix", initializers.gaussian(0.05))
    rules = {"mix": JAX.truncated_normal(0.05, lower=-2, upper=2)}
    (reported,) = initializers.table(net, params, X, declared=rules).findings
    assert reported.kind == "truncation"
    assert "cuts a Gaussian at 2 σ, but its numbers reach 3." in reported.what


@pytest.mark.parametrize("way", WAYS)
def test_decay_of_slopes_norms_and_biases(way):
    everything = audited(way, drawn(), decays=lambda params: jax.tree.map(lambda _: True, params))
    assert {finding.kind for finding in everything.findings} == {"decay"}
    names = [finding.parameter.removeprefix("params/") for finding in everything.findings]
    assert sorted(names) == ["bias", "scale", "slope"]
    by_rank = lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)  # noqa: E731
    assert not audited(way, drawn(), decays=by_rank).findings


def test_half_precision_drawn_from_few_bits():
    def net(params, x):
        return jax.nn.relu(x @ params["a"]) @ params["b"]

    shapes = {"a": (100, 200), "b": (200, 100)}
    ours = {
        name: initializers.he_normal()(key(i), shape, jnp.bfloat16)
        for i, (name, shape) in enumerate(shapes.items())
    }
    x = jnp.ones((2, 100), jnp.bfloat16)
    assert not initializers.table(net, ours, x).findings
    theirs = ours | {"a": jax.random.normal(key(5), shapes["a"], jnp.bfloat16) * 0.1}
    (reported,) = initializers.table(net, theirs, x).findings
    assert (reported.parameter, reported.kind) == ("a", "few values")


@pytest.mark.parametrize("name", healthy.MODELS)
def test_healthy_models_have_no_findings(name):
    make, x = healthy.MODELS[name]
    for seed in range(5):
        model, variables = make(jax.random.key(seed))
        given = [] if variables is None else [variables]
        initializers.table(model, *given, x).assert_as_declared()


class Dense(nn.Module):
    """Two dense layers."""

    width: int = 8

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(self.width)(x)))


V = Dense().init(jax.random.key(0), jnp.ones((2, 4)))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((Dense(9), V, jnp.ones((2, 4))), {}, "inputs of this model. ScopeParamShapeError"),
        ((Dense(), V, jnp.ones((2, 5))), {}, "inputs of this model. ScopeParamShapeError"),
        ((Dense(), {"params": {}}, X), {}, "expected the result of model.init"),
        ((net, {"conv": P["conv"]}, X), {}, "inputs of this model. KeyError: 'bias'"),
        ((net, P, X), {"declared": {"nothing": HE}}, "matches no parameter"),
        ((net, P, X), {"declared": {"(": HE}}, "expected a regular expression"),
        ((net, P, X), {"declared": {"mix": net}}, "expected an initialiser"),
        (
            (net, P, X),
            {"decays": {"mix": True}},
            "the mask in decays has another structure.*it lacks back",
        ),
        ((net, P, X), {"decays": jax.tree.map(lambda _: 1, P)}, "holds int, expected bools"),
        ((net, P, X), {"values": [("nothing", 0)]}, "not a parameter's path"),
        (
            (net, P, X),
            {"values": lambda name: np.ones(3)},
            r"have shape \(3,\), expected \(60, 28\)",
        ),
        ((net, P, X), {"values": [("mix", P["mix"])]}, "values lack back, bias, conv"),
    ],
)
def test_bad_input_is_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        initializers.table(*arguments, **options)


def test_a_kernel_of_integers_is_a_finding():
    params = {"w": jnp.ones((4, 3), jnp.int32)}
    table = initializers.table(lambda p, x: x @ p["w"].astype(x.dtype), params, jnp.ones((2, 4)))
    assert [(finding.parameter, finding.kind) for finding in table.findings] == [("w", "type")]


def test_abstract_variables_are_not_as_declared():
    table = initializers.table(net, jax.eval_shape(drawn), X)
    assert not table.findings
    with pytest.raises(AssertionError, match="nothing is measured"):
        table.assert_as_declared()
    with pytest.raises(ValueError, match="ignore is"):
        initializers.table(net, drawn() | CASES["a mean"][0], X).assert_as_declared(ignore="(")


def test_values_are_requested_one_at_a_time():
    """Only one of many large kernels is held at a time, with its temporaries."""

    def deep(params, x):
        for i in range(8):
            x = jax.nn.relu(x @ params[f"w{i}"])
        return x

    side = 1000
    shapes = {f"w{i}": jax.ShapeDtypeStruct((side, side), jnp.float32) for i in range(8)}

    def values(name):
        rng = np.random.default_rng(int(name[1:]))
        return (rng.standard_normal((side, side)) * math.sqrt(2 / side)).astype(np.float32)

    initializers.table(deep, shapes, jnp.ones((2, side)), values=values)  # compiles
    tracemalloc.start()
    table = initializers.table(deep, shapes, jnp.ones((2, side)), values=values)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [row.fits for row in table] == ["normal, He, 2 / fan"] * 8
    assert most < 8 * 4 * side**2  # of the 8 kernels; drawing one takes 5 of them


def test_the_report_in_every_form(check_golden, tmp_path):
    planted = drawn() | CASES["experts counted"][0]
    rules = {"mix": HE}
    table = initializers.table(net, planted, X, declared=rules)
    check_golden("audit.txt", f"{table}\n")
    assert str(table) == repr(table)
    assert "counts the 5 kernels" in table._repr_html_()
    check_golden("audit.md", table.to_markdown())
    table.to_csv(tmp_path / "audit.csv")
    assert len((tmp_path / "audit.csv").read_text().splitlines()) == len(table) + 1
    assert table.to_dict()["findings"][0]["kind"] == "wrong fan"


def test_diagnose_lists_the_findings_about_parameters():
    def deep(params, x):
        for i in range(12):
            x = jax.nn.relu(params[f"w{i}"] @ x.T).T
        return x

    rule = initializers.lecun_uniform(layout=Layout(in_axis=1, out_axis=0))
    params = {f"w{i}": rule(key(i), (50, 50)) / math.sqrt(3) for i in range(12)}
    report = pj.diagnose(deep, params, jax.random.normal(key(20), (8, 50)))
    assert report.verdict == "vanishing"
    assert "Found in the parameters (pj.initializers.table):" in report.summary
    assert "w0: its numbers fit uniform, a third of LeCun" in report.summary
    assert "and 9 more" in report.summary
    assert len(report.to_dict()["of_parameters"]) == 12


class Miscounted(nn.Module):
    """Linen layers whose default rule uses another fan than that of their product."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.ConvLocal(16, (3, 3), name="local")(x))
        x = nn.relu(nn.ConvTranspose(24, (2, 2), transpose_kernel=True, name="transposed")(x))
        x = nn.Einsum((24, 4, 10), "bi,ihf->bhf", name="einsum")(x.mean((1, 2)))
        return nn.DenseGeneral(20, axis=(-2, -1), name="general")(x)


class NnxMiscounted(nnx.Module):
    """The same layers in NNX, which keeps no rules."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 16, (3, 3), rngs=rngs)
        self.transposed = nnx.ConvTranspose(16, 64, (4, 4), transpose_kernel=True, rngs=rngs)
        self.einsum = nnx.Einsum("bi,ihf->bhf", (64, 4, 10), rngs=rngs)
        self.general = nnx.LinearGeneral((4, 10), 20, axis=(-2, -1), rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.transposed(nnx.relu(self.conv(x)))).mean((1, 2))
        return self.general(self.einsum(x))


def test_layers_whose_fans_flax_miscounts():
    """See docs/findings/foreign-models.md, "Audit of installed libraries"."""
    x = jnp.ones((2, 8, 8, 3))
    variables = Miscounted().init(jax.random.key(0), x)
    reported = initializers.table(Miscounted(), variables, x).findings
    assert [(finding.parameter, finding.kind) for finding in reported] == [
        *((f"{name}/kernel", "wrong fan") for name in ("einsum", "local", "transposed")),
    ]
    reported = initializers.table(NnxMiscounted(nnx.Rngs(0)), x).findings
    assert [(finding.parameter, finding.kind) for finding in reported] == [
        *((f"{name}/kernel", "wrong fan") for name in ("einsum", "transposed")),
    ]
    assert "stored [out, in]" in reported[1].what


W = jnp.ones((2, 32))
OI = {"in_axis": 1, "out_axis": 0}


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.WeightNorm(nn.Dense(64))(x)
        return nn.SpectralNorm(nn.Dense(64))(x, update_stats=False)


def of_dense(rule, shape, transposed=False):
    params = {"w": rule(key(3), shape, jnp.float32)}
    model = lambda p, x: x @ (p["w"].T if transposed else p["w"])  # noqa: E731
    fan_in = shape[1] if transposed else shape[0]
    return model, params, jnp.ones((2, fan_in))


def by_index(scaled):
    """Apply blocks that are each scaled by their own depth."""
    params = {}
    for i in range(8):
        params[f"u{i}"] = 0.02 * jax.random.normal(key(i), (48, 96))
        params[f"d{i}"] = 0.02 * jax.random.normal(key(50 + i), (96, 48)) / math.sqrt(scaled(i))

    def model(p, x):
        for i in range(8):
            x = x + jax.nn.relu(x @ p[f"u{i}"]) @ p[f"d{i}"]
        return x

    return model, params, jnp.ones((2, 48))


def conditioned(p, x):
    """Apply blocks that each add the same array, multiplied by their own kernel."""
    context = jax.nn.relu(x @ p["context"])
    x = x @ p["stem"]
    for i in range(6):
        x = x + jax.nn.relu(x @ p[f"a{i}"] + context) @ p[f"b{i}"]
    return x


CONDITIONED = {
    f"{name}{i}": HE(key(2 * i + (name == "b")), (32, 32)) / (math.sqrt(12) if name == "b" else 1)
    for i in range(6)
    for name in "ab"
}

HEALTHY = {
    "the same array added in every block": (
        conditioned,
        CONDITIONED
        | {"context": HE(key(30), (32, 32)) / math.sqrt(12), "stem": HE(key(31), (32, 32))},
        W,
    ),
    "softplus": (lambda p, x: jax.nn.softplus(x @ p["w"]), {"w": HE(key(0), (32, 32))}, W),
    "one plus a layer": (lambda p, x: x * (1.0 + x @ p["w"]), {"w": HE(key(0), (32, 32))}, W),
    "[out, in], twice as many outputs": of_dense(JAX.lecun_normal(**OI), (64, 32), True),
    "by fan_out": of_dense(JAX.variance_scaling(1.0, "fan_out", "truncated_normal"), (100, 10)),
    "half of LeCun's": of_dense(JAX.variance_scaling(0.5, "fan_in", "uniform"), (64, 128)),
    "std 0.1": (
        lambda p, x: jax.lax.scan(lambda x, w: (jax.nn.relu(x @ w) @ w.T, None), x, p["w"])[0],
        {"w": 0.1 * jax.random.normal(key(0), (2, 32, 64))},
        W,
    ),
    "heads scaled as T5's": (
        lambda p, x: jnp.einsum("bd,dhe->bhe", x, p["w"]),
        {"w": jax.random.normal(key(0), (128, 8, 16)) * (128 * 16) ** -0.5},
        jnp.ones((2, 128)),
    ),
    "experts that share an input": (
        lambda p, x: jnp.einsum("bd,edf->ebf", x, p["w"]),
        {"w": JAX.xavier_uniform(batch_axis=0)(key(0), (4, 32, 64))},
        W,
    ),
    "each block by its own depth": by_index(lambda i: 2 * (i + 1)),
    "a width that was rounded up": (
        lambda p, x: x @ p["w"],
        {"w": jnp.pad(LECUN(key(0), (32, 60)), ((0, 0), (0, 4)))},
        W,
    ),
    "the identity with noise": (
        lambda p, x: x @ p["w"],
        {"w": jnp.eye(32) + 0.01 * jax.random.normal(key(0), (32, 32))},
        W,
    ),
    "an array for parameters": (lambda w, x: x @ w, HE(key(0), (32, 32)), W),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_harmless_cases_have_no_findings(name):
    model, params, x = HEALTHY[name]
    table = initializers.table(model, params, x)
    assert list(map(str, table.findings)) == []
    assert table[-1].role == "kernel"


def test_a_kernel_of_another_rule_is_not_called_truncated():
    model, x = nn.Dense(64), jnp.ones((2, 64))
    variables = model.init(key(0), x)
    for factor in (1.41, 0.7, 1e30):
        changed = jax.tree.map(lambda leaf, f=factor: f * leaf, variables)
        (reported,) = initializers.table(model, changed, x).findings
        assert reported.kind == "std"


def test_a_cut_in_weights_instead_of_standard_deviations():
    model = nn.Dense(64, kernel_init=JAX.truncated_normal(0.02, lower=-0.04, upper=0.04))
    variables = model.init(key(0), W)
    (reported,) = initializers.table(model, variables, W).findings
    assert reported.kind == "truncation"
    assert "which leaves a std of 0.00046" in reported.what


def test_normed_layers_keep_other_kernels_than_their_rule_draws():
    variables = Normed().init(key(0), W)
    assert not initializers.table(Normed(), variables, W).findings


@pytest.mark.parametrize("way", ["dict", "prefix", "state", "equinox"])
def test_masks_as_optimisers_take_them(way):
    if way == "equinox":
        eqx = pytest.importorskip("equinox")
        model = eqx.nn.MLP(32, 4, 8, 2, key=key(0))
        mask = jax.tree.map(lambda leaf: leaf.ndim > 1, eqx.filter(model, eqx.is_array))
        table = initializers.table(model, jnp.ones(32), decays=mask)
        assert not [finding for finding in table.findings if finding.kind == "decay"]
        return
    params = {"a": {"kernel": HE(key(0), (32, 32)), "bias": jnp.zeros(32)}}
    model = lambda p, x: x @ p["a"]["kernel"] + p["a"]["bias"]  # noqa: E731
    if way == "state":
        layer = nnx.Linear(32, 32, rngs=nnx.Rngs(0))
        mask = jax.tree.map(lambda leaf: True, nnx.state(layer, nnx.Param))
        (reported,) = initializers.table(layer, W, decays=mask).findings
        assert reported.parameter == "bias"
        return
    mask = {"a": True} if way == "prefix" else {"a": {"kernel": True, "bias": False}}
    reported = initializers.table(model, params, W, decays=mask).findings
    assert [finding.parameter for finding in reported] == (["a/bias"] if way == "prefix" else [])


def test_haiku_with_randomness_and_without_a_key():
    hk = pytest.importorskip("haiku")

    def forward(x):
        return hk.Linear(5)(hk.Linear(32)(x) + jax.random.normal(hk.next_rng_key(), (2, 32)))

    model = hk.transform(forward)
    assert len(initializers.table(model, model.init(key(0), W), W)) == 4
    plain = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(5)(x)))
    assert len(initializers.table(plain, plain.init(key(0), W), W)) == 2
    with_state = hk.transform_with_state(lambda x: hk.Linear(5)(x))
    params, state = with_state.init(key(0), W)
    assert len(initializers.table(with_state, (params, state), W)) == 2
    with pytest.raises(ValueError, match="expected a pair of parameters and state"):
        initializers.table(with_state, params, W)


def test_a_flag_that_is_not_a_keyword_is_named():
    def model(params, x, train):
        return x @ params["w"] if train else x

    with pytest.raises(ValueError, match="Pass flags, such as train=True, as keywords"):
        initializers.table(model, {"w": HE(key(0), (32, 32))}, W, True)


def test_parallel_branches_all_write_to_the_stream():
    def model(p, x):
        for i in range(3):
            x = x + jax.nn.relu(x @ p[f"a{i}"]) @ p[f"b{i}"] + jnp.tanh(x @ p[f"c{i}"]) @ p[f"d{i}"]
        return x

    params = {f"{name}{i}": HE(key(i), (32, 32)) for i in range(3) for name in "abcd"}
    reported = parameters.read(*models.of(model, params), (W,), {})
    branches = {name: finding.branch for name, finding in reported.items()}
    assert {name for name, branch in branches.items() if branch == "last"} == {
        f"{name}{i}" for i in range(3) for name in "bd"
    }
    assert set(branches.values()) == {"inside", "last"}


SLOPES = {
    "select": lambda x, a: jnp.where(x > 0, x, a * x),
    "factor": lambda x, a: jnp.where(x > 0, jnp.ones_like(a), a) * x,
    "max": lambda x, a: jnp.maximum(x, a * x),
    "min": lambda x, a: jnp.maximum(x, 0.0) + a * jnp.minimum(x, 0.0),
    "relu": lambda x, a: jax.nn.relu(x) - a * jax.nn.relu(-x),
    "pj.prelu": pj.prelu,
}
SCALES = {
    "before relu": lambda x, a: jax.nn.relu(x / jnp.sqrt(jnp.mean(x**2)) * a),
    "after relu": lambda x, a: jax.nn.relu(x) * a,
    "masked": lambda x, a: jnp.where(x > 1.0, x * a, -1e9),
    "one more": lambda x, a: x * (1 + a),
}


@pytest.mark.parametrize("name", [*SLOPES, *SCALES])
def test_a_slope_is_distinguished_from_a_scale(name):
    function = {**SLOPES, **SCALES}[name]
    params = {"a": jnp.full(32, 0.25), "w": HE(key(0), (32, 32))}
    table = initializers.table(lambda p, x: function(x @ p["w"], p["a"]), params, W)
    assert table[0].role == ("slope" if name in SLOPES else "scale")


def test_a_constant_is_held_against_its_value():
    table = initializers.table(
        net, drawn() | {"slope": jnp.zeros(WIDTH)}, X, declared={"slope": 0.25}
    )
    (reported,) = table.findings
    assert (reported.parameter, reported.kind) == ("slope", "std")
    assert "all its numbers are 0, by its rule 0.25" in reported.what


def test_a_cut_at_two_places_is_not_taken_for_one():
    rule = JAX.truncated_normal(0.1, lower=-2, upper=4)
    for seed in range(5):
        params = {"w": rule(key(seed), (32, 32), jnp.float32)}
        table = initializers.table(lambda p, x: x @ p["w"], params, W, declared={"w": rule})
        assert not [finding for finding in table.findings if finding.kind == "truncation"]
