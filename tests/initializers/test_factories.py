import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prelu_jax import initializers
from prelu_jax.initializers import Layout
from tests.conftest import GOLDEN

TORCH = json.loads((GOLDEN / "torch.json").read_text())


def test_the_numbers_of_the_paper():
    stds = [
        math.sqrt(initializers.he_normal("fan_out").variance((3, 3, 1, d)))
        for d in (64, 128, 256, 512)
    ]
    assert [round(std, 3) for std in stds] == [0.059, 0.042, 0.029, 0.021]  # §2.2
    # VGG model B: the gradient from conv10 to conv2 with std 0.01 over that of He, 1 / (1.7·10⁴).
    ratio = math.prod((std / 0.01) ** n for std, n in zip(stds, (1, 2, 2, 4), strict=True))
    assert round(ratio / 1e4, 1) == 1.7
    gain = initializers.he_normal(negative_slope=0.25).gain  # Eq. 15
    assert gain == pytest.approx(1.882353, abs=1e-6)


def test_channel_slopes_count_by_the_mean_of_their_squares():
    slopes = np.array([0.0, 0.5])
    assert initializers.he_normal(negative_slope=slopes).gain == pytest.approx(2 / 1.125)


def test_slope_1_is_xavier():
    for mode in initializers.MODES:
        assert initializers.he_normal(mode, 1.0) == initializers.xavier_normal(mode)


def test_unnormalised_inputs_shrink_every_layer_by_the_root_of_their_scale():
    plain = initializers.he_normal("fan_out")
    shrunk = initializers.he_normal("fan_out", input_scale=128.0, num_layers=7)
    std = math.sqrt(shrunk.gain / plain.gain)
    assert std == pytest.approx((1 / 128) ** (1 / 7))  # §2.2
    assert std**7 == pytest.approx(1 / 128)


SHAPES = {"dense": (64, 96), "conv": (2, 2, 64, 64), "stacked": (4, 48, 64)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (initializers.he("fan_in", 0.0, "truncated_normal"), "he_normal"),
        (initializers.he_uniform(), "he_uniform"),
        (initializers.xavier("fan_avg", "truncated_normal"), "glorot_normal"),
        (initializers.xavier_uniform(), "glorot_uniform"),
        (initializers.lecun("fan_in", "truncated_normal"), "lecun_normal"),
        (initializers.lecun_uniform(), "lecun_uniform"),
        (initializers.orthogonal(), "orthogonal"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_jax_draws_the_same_where_the_rule_is_the_same(ours, theirs, shape):
    key = jax.random.key(3)
    drawn = getattr(jax.nn.initializers, theirs)()(key, shape, jnp.float32)
    if theirs == "orthogonal":  # drawn in a stack of one: the same up to rounding
        np.testing.assert_allclose(ours(key, shape), drawn, atol=1e-6)
    else:
        np.testing.assert_array_equal(ours(key, shape), drawn)


def test_jaxs_delta_orthogonal_draws_the_same():
    key, shape = jax.random.key(3), (3, 3, 8, 12)
    drawn = jax.nn.initializers.delta_orthogonal()(key, shape, jnp.float32)
    np.testing.assert_allclose(initializers.delta_orthogonal()(key, shape), drawn, atol=1e-6)


@pytest.mark.parametrize("theirs", ["he_normal", "glorot_normal"])
def test_jaxs_normal_is_another_rule(theirs):
    """JAX's 'normal' is truncated at two standard deviations."""
    ours = initializers.get(theirs)(jax.random.key(0), (500, 500))
    drawn = getattr(jax.nn.initializers, theirs)()(jax.random.key(0), (500, 500))
    std = math.sqrt(initializers.get(theirs).variance((500, 500)))
    assert abs(drawn).max() < 2.3 * std < 4 * std < abs(ours).max()


@pytest.mark.parametrize(
    "case",
    TORCH["variances"],
    ids=lambda c: f"{c['rule']}-{c['distribution']}-{c['mode']}-{c['negative_slope']}-{c['layer']}",
)
def test_torch_draws_the_same_variance(case):
    options = {"negative_slope": case["negative_slope"]} if case["rule"] == "kaiming" else {}
    name = {"kaiming": "he", "xavier": "xavier"}[case["rule"]]
    ours = initializers.get(f"{name}_{case['distribution']}", mode=case["mode"], **options)
    d, c, *window = case["shape"]
    expected = ours.variance((*window, c, d))
    spread = math.sqrt((2 if case["distribution"] == "normal" else 0.8) / case["draws"])
    assert abs(case["variance"] / expected - 1) < 5 * spread


def test_the_xaviers_of_the_literature():
    shape = (3, 3, 4, 8)  # fan_in 36, fan_out 72
    variances = {
        name: initializers.get(name).variance(shape)
        for name in ("xavier_uniform", "caffe_xavier", "he2015_xavier", "caffe_msra")
    }
    assert variances == pytest.approx(
        {
            "xavier_uniform": 2 / (36 + 72),
            "caffe_xavier": 1 / 36,
            "he2015_xavier": 1 / 72,
            "caffe_msra": 2 / 36,
        }
    )
    # Caffe's fan_out is count / shape[1] of a blob (d, c / groups, k, k): groups do not divide it.
    grouped = Layout(feature_group_count=2)
    assert initializers.caffe_msra("fan_out", layout=grouped).variance(shape) == 2 / 72
    assert initializers.he_normal("fan_out", layout=grouped).variance(shape) == 2 / 36


def test_rules_in_words(check_golden):
    check_golden(
        "initializers.txt",
        "".join(f"{n}: {initializers.get(n).describe()}\n" for n in initializers.REGISTRY),
    )


def test_errors_about_unknown_names_and_options_list_the_valid_ones():
    with pytest.raises(ValueError, match="Did you mean 'he_normal'.*gaussian"):
        initializers.get("he_norml")
    with pytest.raises(TypeError, match="no option 'mode'.*stddev"):
        initializers.get("gaussian", mode="fan_in")


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("kaiming", "he"),
        ("kaiming_normal", "he_normal"),
        ("kaiming_uniform", "he_uniform"),
        ("glorot_normal", "xavier_normal"),
        ("glorot_uniform", "xavier_uniform"),
        ("msra", "caffe_msra"),
    ],
)
def test_other_names_of_a_rule_are_the_rule(alias, name):
    assert initializers.get(alias, mode="fan_out") == initializers.get(name, mode="fan_out")
    assert getattr(initializers, alias) is getattr(initializers, name)
    assert initializers.options(alias) == initializers.options(name)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("kaiming_nromal", "kaiming_normal"),
        ("kaiming_normal_", "kaiming_normal"),  # torch's
        ("GlorotUniform", "glorot_uniform"),  # Keras's
        ("he2015", "he2015_xavier"),
    ],
)
def test_the_error_about_a_misspelt_name_suggests_the_intended_rule(given, meant):
    with pytest.raises(ValueError, match=f"Did you mean '{meant}'"):
        initializers.get(given)


@pytest.mark.parametrize(
    "given", ["normal", "uniform", "truncated_normal", "random_normal", "trunc_normal", "ones"]
)
def test_no_wrong_rule_is_suggested_for_the_name_of_another(given):
    with pytest.raises(ValueError, match=f"^Unknown initializer '{given}'. Valid: he, "):
        initializers.get(given)
