import math

import jax
import jax.numpy as jnp
import pytest

from prelu_jax import arch, models
from prelu_jax.arch import Conv, Dense, Logits

WEIGHTED = (Conv, Dense, Logits)


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("small_14", 14),
        ("small_30", 30),
        ("model_a", 19),
        ("model_b", 22),
        ("model_c", 22),
        ("vgg_19", 19),
        *((f"small_{depth}_reduced", depth) for depth in (14, 18, 22, 26, 30, 36, 44)),
        ("small_30_reduced_no_dropout", 30),
        ("small_30_reduced_large_outputs", 30),
        ("model_a_reduced", 19),
        ("model_b_reduced", 22),
        ("model_c_reduced", 22),
        ("model_a_narrow", 19),
        ("model_b_narrow", 22),
        ("model_c_narrow", 22),
    ],
)
def test_depth(name, depth):
    layers = arch.get(name).layers
    assert sum(isinstance(layer, WEIGHTED) for layer in layers) == depth
    assert len({layer.name for layer in layers}) == len(layers)


def test_every_network_has_its_depth_checked():
    parameters = test_depth.pytestmark[0].args[1]
    assert {name for name, _ in parameters} == set(arch.REGISTRY)


def test_every_network_as_text(check_golden):
    text = "".join(
        f"{net.name}, {net.image_size} px\n" + "".join(f"  {layer}\n" for layer in net.layers)
        for net in arch.REGISTRY.values()
    )
    check_golden("arch.txt", text)


def map_sizes(net):
    """Return the side of the map of every layer of stages 2 to 4."""
    model = models.build(net, 10, "relu")
    images = jnp.zeros((1, net.image_size, net.image_size, 3))
    _, of = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), images, capture_intermediates=True)
    )
    maps = {name: outputs for name, outputs in of["intermediates"].items() if name[:4] == "conv"}
    return {name: of["__call__"][0].shape[1] for name, of in maps.items() if name != "conv1"}


@pytest.mark.parametrize(
    ("net", "narrow"),
    [
        (arch.MODEL_A, arch.MODEL_A_NARROW),
        (arch.MODEL_B, arch.MODEL_B_NARROW),
        (arch.MODEL_C, arch.MODEL_C_NARROW),
    ],
)
def test_narrow_models_have_the_maps_of_the_paper(net, narrow):
    maps = map_sizes(narrow)
    assert maps == map_sizes(net)
    assert maps["conv4_5"] == 14


def test_even_kernels_are_padded_in_turn_and_odd_ones_on_both_sides():
    pads = [layer.padding for layer in arch.SMALL_30.layers if isinstance(layer, Conv)]
    assert pads[:6] == [(0, 0), (0, 1), (1, 0), (0, 1), (1, 0), (0, 1)]
    assert {layer.padding for layer in arch.MODEL_B.layers[2:8]} == {(1, 1)}


def test_a_narrower_network_keeps_its_shape_and_the_variance_of_its_sums():
    net, narrow = arch.MODEL_B, arch.with_width(arch.MODEL_B, 1 / 16)
    assert [type(layer) for layer in narrow.layers] == [type(layer) for layer in net.layers]
    for layer, of in zip(narrow.layers, net.layers, strict=True):
        if isinstance(layer, Conv | Dense):
            assert layer.features == of.features // 16
        if isinstance(layer, Dense | Logits):
            assert layer.stddev**2 / 16 == pytest.approx(of.stddev**2)
    assert arch.with_width(net, 1) == net
    assert arch.with_width(net, 1e-9).layers[0].features == 1
    for factor in (1 / 7, 1e-9):  # widths that are rounded, and those of one feature
        changed = arch.with_width(net, factor).layers
        inputs = 1.0  # new over old
        for layer, old in zip(changed, net.layers, strict=True):
            if isinstance(layer, Dense | Logits):
                assert inputs * layer.stddev**2 == pytest.approx(old.stddev**2)
            if isinstance(layer, Conv | Dense):
                inputs = layer.features / old.features
    for factor in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="expected a number above 0"):
            arch.with_width(net, factor)


def test_with_padding_changes_only_layers_that_keep_their_size():
    same = arch.with_padding(arch.SMALL_30, "same")
    convs = [layer for layer in same.layers if isinstance(layer, Conv)]
    assert convs[0] == arch.SMALL_30.layers[0]
    assert {layer.padding for layer in convs[1:]} == {(0, 1)}
    circular = arch.with_padding(arch.SMALL_30, "circular")
    assert [c.circular for c in circular.layers if isinstance(c, Conv)] == [False] + [True] * 26
    for net in arch.REGISTRY.values():
        assert arch.with_padding(net, "alternating") == net


def test_errors_about_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match="Unknown arch 'small_31'.*'small_30'"):
        arch.get("small_31")
    with pytest.raises(ValueError, match="Unknown padding 'SAME'"):
        arch.with_padding(arch.SMALL_14, "SAME")


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (arch.VGG_19, 1.963e10),
        (arch.MODEL_A, 1.906e10),
        (arch.MODEL_B, 2.322e10),
        (arch.MODEL_C, 5.346e10),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_multiply_adds_are_those_of_table_3(net, expected):
    assert arch.multiply_adds(net) == pytest.approx(expected, rel=3e-4)


def test_multiply_adds_are_a_kernels_products_for_every_output():
    net = arch.SMALL_14_REDUCED
    model = models.build(net, 10, "relu")
    run = lambda key, x: model.init_with_output(key, x, capture_intermediates=True)  # noqa: E731
    _, variables = jax.eval_shape(run, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    products = 0
    for layer, weights in variables["params"].items():
        output = variables["intermediates"][layer]["__call__"][0].shape
        products += math.prod(output) * math.prod(weights["kernel"].shape[:-1])
    assert arch.multiply_adds(net, 10) == products
