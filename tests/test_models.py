import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from prelu_jax import activations, arch, compiling, initializers, models
from prelu_jax.decay import decay_mask


def parameter_shapes(model, size, channels=3):
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    return traverse_util.flatten_dict(params, sep="/")


@pytest.mark.parametrize(
    ("net", "millions", "slopes"),
    [
        (arch.MODEL_A, 178.0, 14_688),
        (arch.MODEL_B, 183.3, 15_968),
        (arch.MODEL_C, 330.6, 20_576),
        (arch.VGG_19, 143.7, 13_696),
        (arch.SMALL_14, None, 64 + 4 * 128 + 6 * 256 + 2 * 4096),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_parameter_counts_of_table_1_and_3(net, millions, slopes):
    shapes = parameter_shapes(models.build(net, rectifier="prelu"), 224)
    counts = {path: math.prod(shape.shape) for path, shape in shapes.items()}
    of_slopes = sum(n for path, n in counts.items() if path.endswith("negative_slope"))
    convs = [layer.features for layer in net.layers if isinstance(layer, arch.Conv)]
    assert of_slopes == sum(convs) + 2 * 4096
    assert of_slopes == slopes
    if millions:
        assert round((sum(counts.values()) - of_slopes) / 1e6, 1) == millions


def test_channel_shared_slopes_are_thirteen_in_the_14_layer_network():
    shapes = parameter_shapes(models.build(arch.SMALL_14, rectifier="prelu_shared"), 224)
    slopes = [shape.shape for path, shape in shapes.items() if path.endswith("negative_slope")]
    assert slopes == [()] * 13


@pytest.mark.parametrize(
    ("name", "rectifier"),
    [
        ("small_14", "prelu"),
        ("small_14", "relu"),
        ("small_30", "relu"),
        ("model_a", "prelu"),
        ("model_b", "prelu"),
        ("model_b", "relu"),
        ("model_c", "prelu"),
        ("vgg_19", "relu"),
        ("small_30_reduced", "relu"),
    ],
)
def test_every_parameter_and_its_rule_as_text(name, rectifier, check_golden):
    net = arch.get(name)
    model = models.build(net, 1000, rectifier)
    image = jax.ShapeDtypeStruct((1, net.image_size, net.image_size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    decays = traverse_util.flatten_dict(decay_mask(variables["params"]), sep="/")
    text = "".join(
        f"{row.parameter} {list(row.shape)}: {row.rule}, std {row.std:.4g}, "
        f"{'decays' if decays[row.parameter] else 'no decay'}\n"
        for row in initializers.table(model, variables, image)
    )
    check_golden(f"{name}_{rectifier}.txt", text)


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("small_14", [36, 18]),
        ("small_30", [36, 18]),
        ("model_b", [56, 28, 14]),
        ("vgg_19", [112, 56, 28, 14]),
    ],
)
def test_map_sizes_are_those_of_the_tables(name, sides):
    model = models.build(arch.get(name))
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    run = lambda key, x: model.init_with_output(key, x, capture_intermediates=True)  # noqa: E731
    _, variables = jax.eval_shape(run, jax.random.key(0), image)
    outputs = variables["intermediates"]
    stages = dict.fromkeys(path.split("_")[0] for path in outputs if path.startswith("conv"))
    of_stage = {
        stage: {o["__call__"][0].shape[1] for p, o in outputs.items() if p.startswith(f"{stage}_")}
        for stage in stages
    }
    assert [of_stage[stage] for stage in stages if stage != "conv1"] == [{s} for s in sides]


def second_moments(padding, initializer, keys=6):
    """Return E[y²] of conv3_1 and conv3_22 of the reduced 30-layer net, [keys, 2]."""
    net = arch.with_padding(arch.SMALL_30_REDUCED, padding)
    model = models.build(net, 10, "relu", initializer)
    x = jax.random.normal(jax.random.key(7), (8, 32, 32, 3))

    @compiling.for_few_calls
    def of_key(key):
        _, state = model.init_with_output(key, x, capture_intermediates=True)
        outputs = state["intermediates"]
        first, last = (outputs[name]["__call__"][0] for name in ("conv3_1", "conv3_22"))
        return jnp.array([jnp.mean(first**2), jnp.mean(last**2)])

    return np.array([of_key(key) for key in jax.random.split(jax.random.key(0), keys)])


def test_the_signal_along_stage_3_follows_eq_9_if_borders_lose_nothing():
    he = np.diff(np.log(second_moments("circular", "he_normal")))[:, 0]  # Eq. 10: factors of 1
    xavier = np.diff(np.log(second_moments("circular", "xavier_normal")))[:, 0]
    # At width 32 the log of a product fluctuates and sits below the log of its mean.
    assert -3 < he.mean() < 1.5
    np.testing.assert_allclose(xavier - he, -21 * math.log(2), rtol=1e-4)  # half a layer, exactly


def test_one_sided_padding_of_even_kernels_loses_the_signal():
    same, alternating = (
        np.diff(np.log(second_moments(padding, "he_normal"))).mean()
        for padding in ("same", "alternating")
    )
    assert same < alternating - math.log(100)


def test_rectifiers_stand_after_every_layer_but_the_last():
    model = models.build(arch.MODEL_B_REDUCED, 10, "prelu")
    layers = {path.split("/")[0] for path in parameter_shapes(model, 32)}
    rectified = {layer.removesuffix("_prelu") for layer in layers if layer.endswith("_prelu")}
    assert {layer for layer in layers if not layer.endswith("_prelu")} - rectified == {"fc3"}


def test_a_named_initializer_is_completed_with_mode_and_slope_and_a_given_one_is_not():
    build = lambda **options: models.build(arch.SMALL_14_REDUCED, **options).initializer  # noqa: E731
    assert build(rectifier="prelu") == initializers.he_normal("fan_out", 0.25)
    assert build(rectifier="relu", mode="fan_in") == initializers.he_normal("fan_in")
    assert build(initializer="xavier_normal") == initializers.xavier_normal("fan_out")
    kaiming = build(rectifier="prelu", initializer="kaiming_normal", mode="fan_geo_avg")
    assert kaiming == initializers.he_normal("fan_geo_avg", 0.25)
    assert build(initializer="gaussian") == initializers.gaussian(0.01)
    own = initializers.he_uniform("fan_in")
    assert build(rectifier="prelu", initializer=own) == own


@pytest.mark.parametrize("rectifier", models.RECTIFIERS)
def test_bfloat16_computes_close_to_float32_with_float32_parameters_and_scores(rectifier):
    x = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
    wide = models.build(arch.SMALL_14_REDUCED, 10, rectifier)
    narrow = models.build(arch.SMALL_14_REDUCED, 10, rectifier, dtype="bfloat16")
    variables = narrow.init(jax.random.key(1), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    expected, scores = wide.apply(variables, x), narrow.apply(variables, x)
    assert scores.dtype == jnp.float32
    assert 0 < np.abs(scores - expected).max() < 0.1 * np.abs(expected).max()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="Unknown rectifier 'prulu'. Did you mean 'prelu'"):
        models.build(arch.SMALL_14, rectifier="prulu")
    with pytest.raises(ValueError, match="num_classes is 0"):
        models.build(arch.SMALL_14, num_classes=0)


@pytest.mark.parametrize("learned", [False, True])
def test_a_tailored_rectifier_has_the_slope_of_its_depth(learned):
    net = arch.SMALL_30_REDUCED
    rectifier = "tailored_prelu" if learned else "tailored"
    model = models.build(net, 10, rectifier)
    slope = activations.tailored_slope(29)  # of 30 layers the last has no rectifier
    assert model.initializer.gain == pytest.approx(2 / (1 + slope**2))
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    assert ("conv1_prelu" in shapes) == learned
    small = models.build(arch.with_width(net, 0.25), 10, rectifier)
    params = small.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    for value in small.slopes(params).values():
        np.testing.assert_allclose(value, slope, rtol=1e-6)


def test_a_shallow_network_has_no_tailored_slope():
    net = arch.Arch("shallow", 8, (arch.Conv("conv1", 4, 3), arch.Logits("fc1", stddev=0.1)))
    with pytest.raises(ValueError, match="shallow has 1 rectified layers, too few for a tailored"):
        models.build(net, 10, "tailored", initializers.gaussian(0.1))
