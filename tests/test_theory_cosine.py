"""Predicted cosines of two examples against measured ones, on nets that `models.build` makes."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from prelu_jax import arch, correlations, initializers, models, moment_maps, theory
from prelu_jax.activations import cosine_at_depth
from prelu_jax.arch import Arch, Conv, Dense, Logits
from prelu_jax.correlations import Correlations
from prelu_jax.rectifiers import second_moment_gain
from tests.test_theory import PADDINGS

HE = initializers.he_normal("fan_in")
KEYS, BATCH, SEED = 16, 4, 11
NET = dataclasses.replace(arch.SMALL_30_REDUCED, image_size=16)  # maps of 16², 8² and 4²
RECTIFIERS = [0.0, 0.25, "unequal"]


def slopes(net, slope):
    """Return the slopes of every rectifier: a scalar, or 'unequal' ones of its channels."""
    features = {name: x.features for x in net.layers if (name := x.name) in net.rectified}
    if slope != "unequal":
        return dict.fromkeys(features, slope)
    return {name: np.linspace(0, 0.8, count) for name, count in features.items()}


def predicted(net, slope, **options):
    return theory.predict(net, initializer=HE, negative_slope=slopes(net, slope), **options)


@functools.cache
def compiled(net, channels, what):
    """Compile (params, images) -> ``what(input, output)`` of every weighted layer."""
    model = models.build(net, 10, "prelu")

    @jax.jit
    def run(params, x):
        found = {}

        def meet(call, args, kwargs, context):
            y = call(*args, **kwargs)
            if isinstance(context.module, nn.Conv | nn.Dense):
                found[context.module.name] = what(args[0], y)
            return y

        with nn.intercept_methods(meet):
            model.apply({"params": params}, x)
        return found

    image = jax.ShapeDtypeStruct((BATCH, net.image_size, net.image_size, channels), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    return traverse_util.flatten_dict(params, sep="/"), run


def mean_cosine(x, y):
    """Return the mean cosine of different examples' outputs, as `signal` measures it."""
    del x
    rows = y.reshape(len(y), -1)
    rows = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    return (jnp.sum(jnp.sum(rows, axis=0) ** 2) - len(rows)) / (len(rows) * (len(rows) - 1))


def products(x, y):
    """Return means over channels of examples' products: input ``[a, b, h, w]``, output [a, b]."""
    at_positions = jnp.einsum("a...c,b...c->ab...", x, x) / x.shape[-1]
    return at_positions, jnp.einsum("a...c,b...c->ab", y, y) / math.prod(y.shape[1:])


def images(rng, net, channels, cosine, correlation):
    """Draw images of this cosine at a position and of this correlation between positions."""
    side = net.image_size
    noise = rng.normal(size=(BATCH + 1, side, side, channels))
    flat = rng.normal(size=(BATCH + 1, 1, 1, channels))
    noise = math.sqrt(1 - correlation) * noise + math.sqrt(correlation) * flat
    return math.sqrt(cosine) * noise[:1] + math.sqrt(1 - cosine) * noise[1:]


@functools.lru_cache(maxsize=1)
def normals_of(shapes):
    """Draw arrays of these names and shapes, by key; the same for every slope and padding."""
    generators = [np.random.default_rng([SEED, seed]) for seed in range(KEYS)]
    return [
        {name: rng.standard_normal(shape, np.float32) for name, shape in shapes}
        for rng in generators
    ]


def measured(net, slope, what=mean_cosine, *, channels=3, cosine=0.0, correlation=0.0):
    """Return ``what`` by layer, ``[KEYS, ...]``, for fresh weights and images by key."""
    shapes, run = compiled(net, channels, what)
    stds = {layer.name: layer.stddev for layer in net.layers if hasattr(layer, "stddev")}
    of_rectifiers = slopes(net, slope)

    def scaled(name, normals):
        if name.endswith("_prelu/negative_slope"):
            of_layer = of_rectifiers[name.removesuffix("_prelu/negative_slope")]
            return np.broadcast_to(of_layer, normals.shape).astype(np.float32)
        if name.endswith("/bias"):
            return np.zeros_like(normals)
        std = stds.get(name.removesuffix("/kernel")) or math.sqrt(HE.variance(normals.shape))
        return np.float32(std) * normals

    draws = []
    drawn = normals_of(tuple((name, leaf.shape) for name, leaf in shapes.items()))
    for seed, normals in enumerate(drawn):
        params = {name: scaled(name, of_name) for name, of_name in normals.items()}
        params = traverse_util.unflatten_dict(params, sep="/")
        x = images(np.random.default_rng([SEED, seed, 1]), net, channels, cosine, correlation)
        draws.append(jax.device_get(run(params, jnp.asarray(x, jnp.float32))))
    return jax.tree.map(lambda *values: np.stack(values).astype(np.float64), *draws)


def standard_error(values):
    return np.std(values, ddof=1) / math.sqrt(len(values))


# By hand


def test_dense_layers_follow_the_cosine_map_of_plain_nets():
    layers = (*(Dense(f"fc{i}", 50, 0.1) for i in range(5)), Logits("last", 0.1))
    for slope in RECTIFIERS:
        slope = np.linspace(0, 0.8, 50) if slope == "unequal" else slope
        records = theory.predict(
            Arch("net", 3, layers), initializer=HE, negative_slope=slope, input_cosine=0.2
        )
        expected = [cosine_at_depth(slope, depth, 0.2) for depth in range(6)]
        assert [record.cosine for record in records] == pytest.approx(expected, rel=1e-9)


def test_a_cosine_is_weighted_by_the_positions_second_moments():
    related = Correlations(np.array(0.0), np.array([[0.0, 1.0]]), np.array(0.0))
    assert related.cosine(np.array([[3.0, 1.0]])) == pytest.approx(0.25)
    conv = Conv("conv", 1, 2, padding=(0, 1))
    # Outputs add up the columns (1, 2) and (2,) of the first row.
    same = related.conv(np.array([[3.0, 1.0]]), conv).same
    np.testing.assert_allclose(same, [[1 / 4, 1.0]])


def test_the_same_example_twice_keeps_its_cosine_and_negative_cosines_are_taken():
    for cosine in (1.0, -1.0):
        records = predicted(NET, 0.25, input_cosine=cosine, input_correlation=0.5)
        assert records[0].cosine == pytest.approx(cosine)
        if cosine == 1:
            assert [r.cosine for r in records] == pytest.approx([1] * 30, abs=1e-6)
    assert all(r.cosine is None for r in theory.paper_formulas(NET, initializer=HE))
    with pytest.raises(ValueError, match=r"input_cosine is 1.1, expected .*, from -1 to 1"):
        theory.predict(NET, initializer=HE, input_cosine=1.1)


@pytest.mark.parametrize("options", PADDINGS, ids=str)
def test_large_maps_without_all_pairs_give_the_same_cosines(monkeypatch, options):
    layers = (Conv("a", 4, 3, **options), Conv("b", 4, 3, **options), Logits("fc", 0.1))
    net = Arch("net", 9, layers)
    records = []
    for positions in (400, 0):
        monkeypatch.setattr(correlations, "CORRELATED_POSITIONS", positions)
        moments = np.linspace(0.1, 2, 81).reshape(9, 9)
        records.append(predicted(net, 0.25, input_cosine=0.3, input_second_moment=moments))
    for one, other in zip(*records, strict=True):
        assert one.cosine == pytest.approx(other.cosine, rel=1e-9)


@pytest.mark.parametrize("options", PADDINGS, ids=str)
def test_correlations_of_two_examples_are_those_of_weights_shared_tap_by_tap(options):
    """Compare with the outputs' products, averaged over many draws of the weights."""
    conv = Conv("conv", 21_000, 2, **options)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, 4, 3))
    x[1] += x[0]
    x /= np.sqrt(np.mean(np.square(x), axis=3, keepdims=True))
    moments = rng.uniform(0.5, 2, (4, 4))
    x *= np.sqrt(moments)[..., None]
    deviation = np.sqrt(moments)
    correlation = np.einsum("abc,dec->abde", x[0], x[1]) / 3
    correlation /= np.multiply.outer(deviation, deviation)
    sides = ((0, 0), conv.padding, conv.padding, (0, 0))
    padded = np.pad(x, sides, mode="wrap" if conv.circular else "constant")
    y = jax.lax.conv_general_dilated(
        jnp.asarray(padded, jnp.float32),
        jnp.asarray(rng.normal(size=(2, 2, 3, conv.features)), jnp.float32),
        (conv.stride, conv.stride),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    scale = np.sqrt(moment_maps.conv_forward(moments, conv, 1.0, 3))
    expected = np.einsum("abc,dec->abde", *y) / conv.features
    expected /= np.maximum(np.multiply.outer(scale, scale), 1e-30)
    result = moment_maps.conv_cross_correlation(correlation, moments, conv)
    np.testing.assert_allclose(result, expected, atol=5 / math.sqrt(conv.features))


# Against measurements


@pytest.mark.parametrize("padding", arch.PADDINGS)
@pytest.mark.parametrize("slope", RECTIFIERS)
def test_every_convolution_agrees_with_the_prediction_from_the_layer_before(padding, slope):
    """Compare products of examples with those predicted from the input two convolutions before.

    Given that input, the outputs of the first are Gaussian and the weights of the second are new:
    the measured products over the predicted ones have a mean of exactly 1 at any width, those of
    two examples and those of one. Their difference varies less and has the mean 0.
    """
    net = arch.with_padding(NET, padding)
    found = measured(net, slope, products)
    pairs = list(itertools.combinations(range(BATCH), 2))
    same = [(a, a) for a in range(BATCH)]
    differences = []
    for before, conv in itertools.pairwise(net.layers):
        if isinstance(before, Conv) and isinstance(conv, Conv):
            inputs, outputs = found[before.name][0], found[conv.name][1]
            expected = functools.partial(
                expected_product, before, conv, slopes(net, slope)[before.name]
            )
            two, one = (
                [
                    sum(y[pair] for pair in of_pairs) / sum(expected(x, *pair) for pair in of_pairs)
                    for x, y in zip(inputs, outputs, strict=True)
                ]
                for of_pairs in (pairs, same)
            )
            differences.append(np.subtract(two, one))
    assert len(differences) == 3 + 21
    z = [np.mean(d) / standard_error(d) for d in differences]
    of_all = np.mean(differences, axis=0)
    print(
        f"{padding}, slope {slope}: largest |z| of 24 layers {np.abs(z).max():.1f}; "
        f"mean {of_all.mean():.4f} ± {standard_error(of_all):.4f}"
    )
    assert np.abs(z).max() < 5
    assert standard_error(of_all) < 0.01
    assert abs(of_all.mean()) < 5 * standard_error(of_all)


def expected_product(before, conv, slope, x, a, b):
    """Return E[y_a y_b] over positions of ``conv``, from products ``[a, b, h, w]`` of the input x
    of the convolution before it; He's weights times channels have the variance 2 / k²."""
    ab, aa, bb = (
        moment_maps.conv_forward(x[pair], before, 2 / before.kernel_size**2, 1)
        for pair in ((a, b), (a, a), (b, b))
    )
    scale = np.sqrt(aa * bb)
    related = Correlations(np.array(0.0), ab / scale, np.array(0.0))
    same = related.rectified(slope).conv(scale, conv).same if a != b else 1.0
    squares = second_moment_gain(slope) * scale
    return np.mean(same * moment_maps.conv_forward(squares, conv, 2 / conv.kernel_size**2, 1))


@pytest.mark.parametrize(
    ("options", "kernel_size"),
    [({"padding": (1, 1)}, 3), ({"padding": (0, 1), "circular": True}, 2), ({}, 2)],
    ids=["zero", "circular", "none"],
)
@pytest.mark.parametrize("slope", RECTIFIERS)
@pytest.mark.parametrize("cosine", [0.0, 0.5])
def test_wide_convolutions_without_pools_agree_end_to_end(options, kernel_size, slope, cosine):
    layers = [Conv(f"conv{i}", 192, kernel_size, **options) for i in range(6)]
    net = Arch("convs", 8, (*layers, Dense("fc", 192, math.sqrt(2 / 192)), Logits("last", 0.1)))
    found = measured(net, slope, channels=96, cosine=cosine)
    records = predicted(net, slope, in_channels=96, input_cosine=cosine)
    errors = {r.name: standard_error(found[r.name]) for r in records[:-1]}  # the last: few outputs
    z = [(found[r.name].mean() - r.cosine) / errors[r.name] for r in records[:-1]]
    print(f"largest |z| {np.abs(z).max():.1f}, error {max(errors.values()):.4f}")
    assert np.abs(z).max() < 5
    assert max(errors.values()) < 0.02
    assert records[0].cosine == pytest.approx(cosine)


def with_wide_convs(net):
    """Return a net with eight times the features of its convolutions."""
    layers = (
        dataclasses.replace(layer, features=8 * layer.features)
        if isinstance(layer, Conv)
        else layer
        for layer in net.layers
    )
    return dataclasses.replace(net, layers=tuple(layers))


def log_ratios(net, slope, **options):
    """Return measured over predicted 1 - cosine by layer, as logs, and their standard errors."""
    found = measured(net, slope, **options)
    theirs = {"in_channels": options.get("channels", 3)}
    theirs |= {
        f"input_{name}": options[name] for name in ("cosine", "correlation") & options.keys()
    }
    names, logs, errors = [], [], []
    for record in predicted(net, slope, **theirs):
        apart = 1 - found[record.name]
        names.append(record.name)
        logs.append(math.log(apart.mean() / (1 - record.cosine)))
        errors.append(standard_error(apart) / apart.mean())
    print(f"{net.name}, slope {slope}, {options}")
    for name, log, error in zip(names, logs, errors, strict=True):
        print(f"  {name}: {log:+.3f} ± {error:.3f}")
    return np.array(logs), np.array(errors)


every_rectifier_and_padding = [
    pytest.param(padding, slope, marks=() if i == j else pytest.mark.slow)
    for i, padding in enumerate(arch.PADDINGS)
    for j, slope in enumerate(RECTIFIERS)
]


@pytest.mark.parametrize(("padding", "slope"), every_rectifier_and_padding)
def test_every_layer_of_a_wide_net_is_predicted_end_to_end(padding, slope):
    """Compare 1 - cosine with four standard errors, at most 15 % each, and 10 % for the width."""
    net = with_wide_convs(arch.with_padding(NET, padding))
    logs, errors = (values[:-1] for values in log_ratios(net, slope))  # the last: ten outputs
    assert np.all(np.abs(logs) < 4 * errors + 0.1)
    assert np.all(errors < 0.15)


@pytest.mark.parametrize("padding", arch.PADDINGS)
@pytest.mark.parametrize("slope", RECTIFIERS)
def test_a_narrow_net_keeps_its_examples_farther_apart_within_the_stated_factor(padding, slope):
    """Compare 1 - cosine with the factors that `correlations` states."""
    net = arch.with_padding(NET, padding)
    logs, errors = log_ratios(net, slope)
    assert np.all(logs < 2 * errors + math.log(7 if padding == "circular" else 3.5))
    assert np.all(logs > -4 * errors)


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_correlated_images_are_predicted_through_pools(correlation):
    net = with_wide_convs(dataclasses.replace(arch.SMALL_14_REDUCED, image_size=16))
    options = {"channels": 64, "cosine": 0.5, "correlation": correlation}
    logs, errors = (values[:-1] for values in log_ratios(net, 0.0, **options))
    assert np.all(np.abs(logs) < 4 * errors + 0.1)
    assert np.all(errors < 0.1)
