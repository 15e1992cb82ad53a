import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from prelu_jax import arch, initializers, models, moment_maps, theory
from prelu_jax.arch import Arch, Conv, Dense, Logits, MaxPool, SpatialPyramid
from prelu_jax.rectifiers import second_moment_gain

HE = initializers.he_normal("fan_in")
RULES = {"he fan_in": HE, "he fan_out": initializers.he_normal("fan_out")}
RULES["xavier"] = initializers.xavier_normal("fan_out")
KEYS, BATCH, SEED = 32, 2, 11
FORMULAS = (theory.predict, theory.paper_formulas)

PADDINGS = [
    *({"padding": (0, 0)}, {"padding": (0, 1)}, {"padding": (1, 0)}, {"padding": (2, 1)}),
    *({"padding": (1, 1), "stride": 2}, {"padding": (0, 1), "circular": True}),
    {"padding": (2, 2), "circular": True, "stride": 3},
]


def by_name(records):
    return {record.name: record for record in records}


# Small cases, by hand and by brute force


@pytest.mark.parametrize("options", PADDINGS, ids=str)
@pytest.mark.parametrize("kernel_size", [2, 3])
def test_maps_are_those_of_a_convolution_with_ones_and_of_its_gradient(options, kernel_size):
    conv = Conv("conv", 5, kernel_size, **options)
    x = np.random.default_rng(0).uniform(0.5, 2, (6, 7))

    def with_ones(x):
        if conv.circular:
            x = jnp.pad(x, (conv.padding, conv.padding), mode="wrap")
        sides = ((0, 0), (0, 0)) if conv.circular else (conv.padding, conv.padding)
        strides, ones = (conv.stride,) * 2, jnp.ones((1, 1, kernel_size, kernel_size), x.dtype)
        return jax.lax.conv_general_dilated(x[None, None], ones, strides, sides)[0, 0]

    y, back = jax.vjp(with_ones, jnp.asarray(x, jnp.float32))
    dy = np.random.default_rng(1).uniform(0.5, 2, y.shape)
    forward = moment_maps.conv_forward(x, conv, 0.3, 4)
    backward = moment_maps.conv_backward(dy, conv, 0.3, x.shape)
    np.testing.assert_allclose(forward, 0.3 * 4 * np.asarray(y), rtol=1e-5)
    (dx,) = back(jnp.asarray(dy, jnp.float32))
    np.testing.assert_allclose(backward, 0.3 * 5 * np.asarray(dx), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "groups"), [*((options, 1) for options in PADDINGS), (PADDINGS[3], 3)], ids=str
)
def test_correlations_are_those_of_weights_shared_tap_by_tap(options, groups):
    """Compare with the outputs' products, averaged over many draws of the weights."""
    conv = Conv("conv", 21_000, 2, **options)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 4, 3)).astype(np.float32)  # one image: its products are the moments
    moments = np.mean(np.square(x), axis=2)
    scale = np.sqrt(moments)
    correlation = np.einsum("abc,dec->abde", x / 3, x)
    correlation /= np.multiply.outer(scale, scale)
    image = jnp.asarray(x)[None]
    if conv.circular:
        sides = ((0, 0), conv.padding, conv.padding, (0, 0))
        image = jnp.pad(image, sides, mode="wrap")
    y = jax.lax.conv_general_dilated(
        image,
        jnp.asarray(rng.normal(size=(2, 2, 3 // groups, conv.features)), jnp.float32),
        (conv.stride, conv.stride),
        ((0, 0), (0, 0)) if conv.circular else (conv.padding, conv.padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )[0]
    products = np.einsum("abc,dec->abde", y, y)
    deviation = np.sqrt(np.einsum("abab->ab", products))
    expected = products / np.maximum(np.multiply.outer(deviation, deviation), 1e-30)
    result = moment_maps.conv_correlation(correlation, moments, conv)
    np.testing.assert_allclose(result, expected, atol=5 / math.sqrt(conv.features))


def test_two_layers_by_hand():
    net = Arch("net", 2, (Conv("a", 4, 2, padding=(0, 1)), Conv("b", 8, 2, padding=(0, 1))))
    # a reads [[4, 2], [2, 1]] of its taps: mean 9/4. b sums a's maps: [[9, 3], [3, 1]], mean 4.
    a, b = theory.predict(net, initializer=initializers.gaussian(1.0), in_channels=3)
    assert a.forward == pytest.approx(3 * 9 / 4)
    assert b.forward == pytest.approx(3 * 4 / 2 * 16 / 4)
    assert b.backward == pytest.approx(1)
    # position (i, j) of a is read by 1, 2, 2 and 4 taps of b
    assert a.backward == pytest.approx(8 / 2 * 9 / 4)
    assert all(record.forward_exact and record.backward_exact for record in (a, b))


def test_fully_connected_layers_by_hand():
    layers = (Conv("conv", 2, 1), Dense("fc1", 5, 0.1), Logits("fc2", 0.2))
    net = Arch("net", 3, layers)
    options = {"initializer": initializers.gaussian(1.0), "in_channels": 1, "num_classes": 7}
    slopes = {"conv": np.array([0.0, 1.0]), "fc1": 0.5}  # gains 3/4 and 5/8
    options |= {"negative_slope": slopes, "input_second_moment": 2.0}
    predicted = by_name(theory.predict(net, **options))
    forward = [2, 2 * 3 / 4 * 9 * 2 * 0.01, 2 * 3 / 4 * 9 * 2 * 0.01 * 5 / 8 * 5 * 0.04]
    assert [r.forward for r in predicted.values()] == pytest.approx(forward)
    backward = [7 * 0.04 * 5 / 8 * 5 * 0.01 * 3 / 4, 7 * 0.04 * 5 / 8, 1]
    assert [r.backward for r in predicted.values()] == pytest.approx(backward)
    # without padding and pooling the paper's formulas are exact, too
    paper = by_name(theory.paper_formulas(net, **options))
    for name, record in predicted.items():
        assert paper[name].forward == pytest.approx(record.forward)
        assert paper[name].backward == pytest.approx(record.backward)


@pytest.mark.parametrize("formula", FORMULAS)
def test_variances_by_name_are_those_of_the_rule_until_one_changes(formula):
    net = arch.MODEL_B_REDUCED
    variances, features = {}, 3
    for layer in net.layers:
        if isinstance(layer, Conv):
            shape = (layer.kernel_size, layer.kernel_size, features, layer.features)
            variances[layer.name] = HE.variance(shape)
            features = layer.features
        elif isinstance(layer, Dense | Logits):
            variances[layer.name] = layer.stddev**2
    by_rule = formula(net, initializer=HE)
    assert formula(net, initializer=variances) == by_rule
    for name in ("conv3_2", "fc2", "fc3"):
        changed = formula(net, initializer=variances | {name: np.float32(4 * variances[name])})
        place = list(variances).index(name)
        for i, (after, before) in enumerate(zip(changed, by_rule, strict=True)):
            factors = after.forward / before.forward, after.backward / before.backward
            assert factors == pytest.approx((4 if i >= place else 1, 4 if i < place else 1))


def test_theory_plain_is_a_deprecated_alias():
    with pytest.warns(DeprecationWarning, match=r"theory\.plain is now theory\.paper_formulas"):
        moments = theory.plain(arch.SMALL_14, initializer=HE)
    assert moments == theory.paper_formulas(arch.SMALL_14, initializer=HE)


def test_the_papers_formula_is_1_per_layer_where_the_paper_claims_it():
    for slope in (0.0, 0.25):
        rules = [initializers.he_normal(mode, slope) for mode in ("fan_in", "fan_out")]
        forward, backward = (
            theory.paper_formulas(arch.SMALL_30, initializer=rule, negative_slope=slope)
            for rule in rules
        )
        first = 1 / second_moment_gain(slope)  # no rectifier precedes it
        convs = [record for record in forward if record.name.startswith("conv")]
        assert [record.forward for record in convs] == pytest.approx([first] * 27)  # Eq. 10
        ratio = by_name(backward)["conv2_1"].backward / by_name(backward)["conv3_22"].backward
        assert ratio == pytest.approx(1)  # Eq. 14
        ratio = by_name(backward)["conv3_22"].forward / by_name(backward)["conv2_1"].forward
        assert ratio == pytest.approx(128 / 256)  # c_2 / d_L, below Eq. 14


def test_wrapped_around_maps_give_the_papers_formula_from_pool_to_pool():
    net = arch.with_padding(arch.SMALL_30_REDUCED, "circular")
    rule = RULES["xavier"]
    records = [by_name(formula(net, initializer=rule)) for formula in FORMULAS]
    for side in ("forward", "backward"):
        ratio = [getattr(r["conv3_22"], side) / getattr(r["conv3_1"], side) for r in records]
        assert ratio[0] == pytest.approx(ratio[1])


@pytest.mark.parametrize("name", arch.REGISTRY)
def test_every_network_is_predicted(name):
    records = theory.predict(arch.get(name), initializer=HE)
    weighted = (Conv, Dense, Logits)
    names = [layer.name for layer in arch.get(name).layers if isinstance(layer, weighted)]
    assert [record.name for record in records] == names
    assert all(record.forward > 0 and record.backward > 0 for record in records)
    pooled = next(i for i, layer in enumerate(arch.get(name).layers) if hasattr(layer, "window"))
    assert [record.forward_exact for record in records] == [i < pooled for i in range(len(names))]
    assert [record.backward_exact for record in records[-4:]] == [False, True, True, True]


def test_bad_input_is_named():
    predict = functools.partial(theory.predict, arch.SMALL_14_REDUCED, initializer=HE)
    with pytest.raises(ValueError, match="has no value for conv2_1, .*fc2; expected one for every"):
        predict(negative_slope={"conv1": 0.1})
    with pytest.raises(ValueError, match="Unknown rectified layer 'conv9'. Did you mean 'conv"):
        predict(negative_slope={"conv9": 0.1})
    with pytest.raises(
        ValueError, match="initializer has no value for conv2_1, .*fc3; expected one"
    ):
        predict(initializer={"conv1": 0.1})
    with pytest.raises(ValueError, match="Unknown weighted layer 'fc9'. Did you mean 'fc"):
        predict(initializer={"fc9": 0.1})
    with pytest.raises(ValueError, match=r"input_second_moment has shape \(3,\), expected a scal"):
        predict(input_second_moment=np.ones(3))
    with pytest.raises(ValueError, match=r"input_correlation is -0.1, expected"):
        predict(input_correlation=-0.1)
    with pytest.raises(ValueError, match="pool2: a map of shape .1, 1. is smaller than one window"):
        predict(input_second_moment=np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"conv: 4 positions, padded by \(0, 0\), are fewer than"):
        theory.predict(Arch("net", 4, (Conv("conv", 1, 5),)), initializer=HE)
    net = Arch("net", 4, (MaxPool("pool", 2), SpatialPyramid("spp", (1,))))
    with pytest.raises(ValueError, match="spp pools maxima"):
        theory.predict(net, initializer=HE)


# Prediction against measurement, on the nets that `models.build` makes


@functools.cache
def compiled(padding, widened):
    """Compile (params, x, cotangent) -> E[y²] and E[Δy²] of every layer, [h, w] each."""
    net = arch.with_padding(arch.SMALL_30_REDUCED, padding)
    layers = tuple(
        dataclasses.replace(layer, features=widened * layer.features)
        if isinstance(layer, Conv)
        else layer
        for layer in net.layers
    )
    net = dataclasses.replace(net, layers=layers)
    model = models.build(net, 10, "prelu")

    def run(params, x, shifts):
        outputs = {}

        def meet(call, args, kwargs, context):
            y = call(*args, **kwargs)
            if isinstance(context.module, nn.Conv | nn.Dense):
                name = context.module.name
                y = outputs[name] = y + shifts[name] if shifts else y
            return y

        with nn.intercept_methods(meet):
            scores = model.apply({"params": params}, x)
        return scores, outputs

    @jax.jit
    def measure(params, x, cotangent):
        shapes = jax.eval_shape(lambda: run(params, x, {})[1])
        zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape), shapes)
        _, back, outputs = jax.vjp(lambda s: run(params, x, s), zeros, has_aux=True)
        (gradients,) = back(cotangent)
        square = lambda y: jnp.mean(y**2, (0, -1))  # noqa: E731
        return jax.tree.map(square, (outputs, gradients))

    image = jax.ShapeDtypeStruct((BATCH, net.image_size, net.image_size, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    return net, params, measure


def measured(padding, slope, rule, keys=KEYS, widened=1):
    """Return the net and two dicts of [keys, h, w], forward and backward, one draw per key.

    NumPy draws the weights, with the variances of the rule: initialisers have their own tests, and
    a jitted draw of sixty parameters compiles longer than the net.
    """
    net, params, measure = compiled(padding, widened)
    stds = {layer.name: layer.stddev for layer in net.layers if hasattr(layer, "stddev")}

    def draw(rng, name, shape):
        if name.endswith("_prelu/negative_slope"):
            return np.full(shape, slope, np.float32)
        if name.endswith("/bias"):
            return np.zeros(shape, np.float32)
        std = stds.get(name.removesuffix("/kernel")) or math.sqrt(rule.variance(shape))
        return np.float32(std) * rng.standard_normal(shape, np.float32)

    draws = []
    for seed in range(keys):
        rng = np.random.default_rng([SEED, seed])
        flat = traverse_util.flatten_dict(params, sep="/")
        flat = {name: draw(rng, name, leaf.shape) for name, leaf in flat.items()}
        images = rng.normal(size=(BATCH, 32, 32, 3)).astype(np.float32)
        cotangent = rng.normal(size=(BATCH, 10)).astype(np.float32)
        draws.append(
            jax.device_get(measure(traverse_util.unflatten_dict(flat, sep="/"), images, cotangent))
        )
    stack = lambda *maps: np.stack(maps).astype(np.float64)  # noqa: E731
    return net, *jax.tree.map(stack, *draws)


measured_with_he = functools.cache(functools.partial(measured, rule=HE))


def z_score(ratios):
    """Return the distance of the mean over keys from 1 in standard errors."""
    return (np.mean(ratios) - 1) / (np.std(ratios, ddof=1) / math.sqrt(len(ratios)))


def pairs_of_convs(net):
    """Return pairs of convolutions that follow one another without pooling between."""
    for before, conv in zip(net.layers, net.layers[1:], strict=False):
        if isinstance(before, Conv) and isinstance(conv, Conv):
            shape = (conv.kernel_size, conv.kernel_size, before.features, conv.features)
            yield before, conv, HE.variance(shape)


every_net = pytest.mark.parametrize("padding", arch.PADDINGS)
every_slope = pytest.mark.parametrize("slope", [0.0, 0.25])


@pytest.mark.compiled("too slow")
@every_net
@every_slope
def test_every_convolution_agrees_with_the_prediction_from_the_measured_map(padding, slope):
    """Compare each layer's moment with the prediction from its neighbour's measured moments.

    From end to end, a product of thirty random factors is so skewed at width 32 that the mean over
    an affordable number of keys tests little. Predicted from the previous layer's measured map, the
    ratio has a mean of exactly 1 at any width, because the weights are new and the signs of the
    input are independent of the squares. Sums of ratios along a net are exact as well, with
    uncorrelated terms. Backward, this holds in the wide limit.
    """
    net, forward, backward = measured_with_he(padding, slope)
    gain = second_moment_gain(slope)
    ahead, back = [], []
    for before, conv, variance in pairs_of_convs(net):
        x, dy = forward[before.name], backward[conv.name]
        y = [moment_maps.conv_forward(gain * m, conv, variance, before.features).mean() for m in x]
        dx = [gain * moment_maps.conv_backward(m, conv, variance, m.shape).mean() for m in dy]
        ahead.append(forward[conv.name].mean(axis=(1, 2)) / y)
        back.append(backward[before.name].mean(axis=(1, 2)) / dx)
    assert len(ahead) == 3 + 21
    for name, ratios in (("forward", np.array(ahead)), ("backward", np.array(back))):
        z = [z_score(of_layer) for of_layer in ratios]
        of_nets = ratios.mean(axis=0)
        of_all, error = z_score(of_nets), np.std(of_nets, ddof=1) / math.sqrt(len(of_nets))
        print(
            f"{padding}, slope {slope}, {name}: largest |z| of 24 layers {np.abs(z).max():.1f}; "
            f"mean ratio {of_nets.mean():.4f} ± {error:.4f}, z {of_all:.1f}"
        )
        assert np.abs(z).max() < 5
        assert abs(of_all) < 5
        assert error < 0.02


def over_pools(net, slope, forward, backward):
    """Return measured over predicted factors of a pool with the layer after it, by key."""
    predicted = by_name(theory.predict(net, initializer=HE, negative_slope=slope))
    for before, behind in (("conv1", "conv2_1"), ("conv2_4", "conv3_1"), ("conv3_22", "fc1")):
        y, dy = (
            {n: m[n].reshape(len(m[n]), -1).mean(axis=1) for n in (before, behind)}
            for m in (forward, backward)
        )
        p, q = predicted[before], predicted[behind]
        ahead = y[behind] / y[before] / (q.forward / p.forward)
        back = dy[before] / dy[behind] / (p.backward / q.backward)
        for side, ratios in (("forward", ahead), ("backward", back)):
            mean, spread = ratios.mean(), ratios.std(ddof=1) / math.sqrt(len(ratios))
            print(f"slope {slope}, {before} to {behind}, {side}: {mean:.3f}±{spread:.3f}")
            yield (behind, side), mean, spread


@every_net
@every_slope
def test_pooling_is_predicted_within_its_stated_error_in_a_narrow_net(padding, slope):
    """Allow for narrow layers: correlations vary between draws, and pooled moments are higher."""
    errors = {("fc1", "forward"): 0.35, ("fc1", "backward"): 0.15}
    net, *moments = measured_with_he(padding, slope)
    for place, mean, spread in over_pools(net, slope, *moments):
        assert abs(mean - 1) < errors.get(place, 0.1) + 3 * spread, place
        assert spread < 0.15


@pytest.mark.slow
@every_net
def test_pooling_is_predicted_closely_in_a_wide_net(padding):
    net, *moments = measured(padding, 0.0, HE, keys=16, widened=4)
    errors = {("fc1", "forward"): 0.15}
    for place, mean, spread in over_pools(net, 0.0, *moments):
        assert abs(mean - 1) < errors.get(place, 0.03) + 4 * spread, place
        assert spread < 0.1


@every_net
@every_slope
@pytest.mark.parametrize("rule", RULES)
def test_every_layer_is_predicted_end_to_end(padding, slope, rule):
    """Compare means over keys with predictions, as means of log-normal variables.

    A product of thirty random factors is nearly log-normal; the log of its mean is the mean of its
    log plus half the variance of its log. A plain mean would need thousands of keys.
    """
    net, forward, backward = measured_with_he(padding, slope)
    predicted = theory.predict(net, initializer=RULES[rule], negative_slope=slope)
    if RULES[rule] != HE:
        # Rules differ in one factor per layer, and so do measurements, draw by draw.
        reference = theory.predict(net, initializer=HE, negative_slope=slope)
        _, *other = measured(padding, slope, RULES[rule], keys=1)
        for moments, he_moments, side in zip(
            other, (forward, backward), ("forward", "backward"), strict=True
        ):
            for p, r in zip(predicted, reference, strict=True):
                ratio = moments[p.name][0].mean() / he_moments[p.name][0].mean()
                assert ratio == pytest.approx(getattr(p, side) / getattr(r, side), rel=1e-3)
        return
    for p in predicted:
        for moments, expected in ((forward, p.forward), (backward, p.backward)):
            ratios = moments[p.name].reshape(KEYS, -1).mean(axis=1) / expected
            logs = np.log(ratios)
            variance = logs.var(ddof=1)
            log_of_mean = logs.mean() + variance / 2
            spread = math.sqrt(variance / KEYS + variance**2 / (2 * (KEYS - 1)))
            assert abs(log_of_mean) < 5 * spread + 0.35, (p, log_of_mean, spread)
            assert spread < 0.7


def test_the_papers_formula_fails_where_borders_lose_the_signal_and_the_maps_hold():
    net, forward, _ = measured_with_he("same", 0.0)
    predicted, paper = (by_name(formula(net, initializer=HE)) for formula in FORMULAS)
    first, last = "conv3_1", "conv3_22"  # 8×8 maps, no pooling between
    fall = [r[last].forward / r[first].forward for r in (predicted, paper)]
    steps = [
        predicted[f"conv3_{i}"].forward / predicted[f"conv3_{i - 1}"].forward for i in range(2, 23)
    ]
    ratios = [
        (forward[f"conv3_{i}"].mean((1, 2)) / forward[f"conv3_{i - 1}"].mean((1, 2))) / steps[i - 2]
        for i in range(2, 23)
    ]
    result = fall[0] * np.exp(np.sum(np.log(np.mean(ratios, axis=1))))
    print(f"conv3_1 to conv3_22: plain {fall[1]:.3g}, maps {fall[0]:.3g}, measured {result:.3g}")
    assert fall[1] == pytest.approx(1)
    assert fall[0] < 1e-2
    assert abs(math.log(result / fall[0])) < math.log(3)


@pytest.mark.parametrize(
    ("argument", "value", "error", "expected"),
    [
        *(("input_second_moment", v, ValueError, "at least 0") for v in (-1, math.nan, math.inf)),
        ("output_gradient_second_moment", math.nan, ValueError, "at least 0"),
        *(("input_cosine", v, ValueError, "from -1 to 1") for v in (None, "a", [0.1, 0.2])),
        *(("num_classes", v, ValueError, "whole number above 0") for v in (0, 1.5)),
        *(("in_channels", v, ValueError, "whole number above 0") for v in (-1, 1.5)),
        ("initializer", "he_normal", TypeError, "one of pj.initializers"),
    ],
)
def test_what_cannot_be_predicted_is_refused(argument, value, error, expected):
    arguments = {"initializer": initializers.he_normal("fan_out"), argument: value}
    message = f"{argument} is .*, expected .*{expected}"
    with pytest.raises(error, match=message):
        theory.predict(arch.SMALL_14_REDUCED, **arguments)
    if argument != "input_cosine":
        with pytest.raises(error, match=message):
            theory.paper_formulas(arch.SMALL_14_REDUCED, **arguments)


def test_an_arch_by_its_name_is_refused():
    with pytest.raises(TypeError, match="arch is 'small_30', expected an Arch"):
        theory.predict("small_30", initializer=initializers.he_normal("fan_out"))
