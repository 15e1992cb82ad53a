import dataclasses
import math

import jax
import numpy as np
import pytest
from flax import linen as nn

from prelu_jax import diagnosis, signal
from prelu_jax.signal import NotMeasured, Report, drift, verdict
from tests.signal.rows import each, measurement, moments


def judged(changes, predicted=None, **options):
    """(verdict, direction, layer) of every finding."""
    found = verdict.judge(measurement(changes, **options), predicted)
    return [(f.verdict, f.direction, f.layer) for f in found]


def test_nothing_is_wrong_with_a_healthy_signal():
    assert judged({}) == []


@pytest.mark.parametrize(
    ("moments", "expected"),
    [
        ([9, 1, 1, 1e-3, 1e-4], [("vanishing", "forward", "c")]),
        ([9, 1, 1, 1e-3, 1], []),  # it recovers
        ([9, 1, 1e4, 1, 1e3], [("exploding", "forward", "d")]),
        ([1e9, 1, 1, 1, 1], []),  # the data's own scale
        ([9, 1, 0.1, 0.05, 0.011], []),
        ([9, 1, 1, 0, 0], [("vanishing", "forward", "c")]),
    ],
)
def test_forward_what_hidden_layers_read_is_compared(moments, expected):
    assert judged(each("input_second_moment", moments)) == expected


@pytest.mark.parametrize(
    ("moments", "expected"),
    [
        ([1e-4, 1e-3, 1, 1, 9], [("vanishing", "backward", "b")]),
        ([1, 1e-3, 1, 1, 9], []),
        ([1e3, 1, 1, 1, 9], [("exploding", "backward", "a")]),
        ([1, 1, 1, 1, 1e9], []),  # the last layer's own
        ([0, 0, 1, 1, 1], [("vanishing", "backward", "b")]),
        ([0, 0, 0, 0, 1], [("vanishing", "backward", "d")]),
    ],
)
def test_backward_the_gradients_of_hidden_layers_are_compared(moments, expected):
    assert judged(each("gradient_second_moment", moments)) == expected


@pytest.mark.parametrize(
    ("first", "last", "shape", "expected"),
    [
        (1.0, 4.7e-8, (16, 100), "vanishing"),
        (1.0, 1e6, (16, 100), "exploding"),
        (1.0, 0.5, (16, 100), None),
        (1e5, 0.5, (16, 100), None),  # a norm, or a tanh: to a scale of 1
        (1e-6, 1.0, (16, 100), None),
        (1e-3, 1e-8, (16, 100), "vanishing"),
        (1.0, 2e-4, (16, 100), "vanishing"),
        (1.0, 2e-4, (16, 64, 100), None),  # the mean over 64 positions may divide by 64
    ],
)
def test_two_rows_are_enough_to_judge_the_factor_between_them(first, last, shape, expected):
    before, after = (measurement().layers[i] for i in (0, 4))
    before = dataclasses.replace(before, second_moment=first, shape=shape)
    after = dataclasses.replace(after, input_second_moment=last, input_shape=(16, 100))
    pair = dataclasses.replace(measurement(), layers=(before, after))
    findings = verdict.judge(pair)
    assert [f.verdict for f in findings] == ([expected] if expected else [])
    if expected:
        assert f"times E[y²] of {before.name}" in findings[0].what
        assert findings[0].layer == before.name


def test_a_fall_behind_the_first_row_counts_where_weights_are_unseen():
    changes = each("input_second_moment", [1, 1e-8, 1e-8, 1e-8, 1e-8])
    assert judged(changes) == []  # what hidden layers read stays as it is
    unseen = (NotMeasured("cell/kernel", 300, ("scan",)),)
    assert judged(changes, unseen=unseen) == [("vanishing", "forward", "a")]


def test_layers_that_read_the_batch_do_not_count_forward():
    changes = each("input_second_moment", [1, 1, 1e-3, 1e-3, 1e-3])
    assert judged(changes) == [("vanishing", "forward", "b")]
    changes["b"]["previous"] = None  # as a recurrent cell reads it again
    assert judged(changes) == []


@pytest.mark.parametrize(
    ("between", "factor", "last", "expected"),
    [
        (("mean",), 1 / 400, 1e-3, []),
        (("tanh", "average pool"), 1 / 500, 1e-3, []),
        (("mean",), 0.5, 1e-3, [("vanishing", "forward", "d")]),  # a small kernel, not the mean
        (("mean",), 1 / 400, 1e-5, [("vanishing", "forward", "d")]),
        (("tanh",), 1 / 400, 1e-3, [("vanishing", "forward", "d")]),
    ],
)
def test_a_mean_over_positions_may_divide_by_their_number(between, factor, last, expected):
    changes = each("input_second_moment", [9, 1, 1, 1, last])
    changes["d"] = {"shape": (16, 20, 20, 10), **changes["d"]}
    changes["e"] = {"input_shape": (16, 10), "between": between, **changes["e"]}
    of = measurement(changes)
    *rest, head = of.layers
    of = dataclasses.replace(of, layers=(*rest, dataclasses.replace(head, between_factor=factor)))
    findings = verdict.judge(of)
    assert [(f.verdict, f.direction, f.layer) for f in findings] == expected
    if expected and "mean" in between:
        assert findings[0].what.endswith("without the means over positions")


def test_means_that_are_left_out_do_not_explode():
    changes = each("input_second_moment", [9, 1, 1, 1, 1])  # He makes up for rectifier and mean
    for name in "bcde":
        changes[name] |= {"between": ("rectifier", "average pool"), "input_shape": (16, 2, 2, 10)}
    of = measurement(changes)
    rows = [
        dataclasses.replace(row, between_factor=0.05, shape=(16, 8, 8, 10)) for row in of.layers
    ]
    assert verdict.judge(dataclasses.replace(of, layers=tuple(rows))) == ()


class Pooled(nn.Module):
    @nn.compact
    def __call__(self, x):
        if x.ndim == 3:
            return nn.Dense(5)(nn.RNN(nn.OptimizedLSTMCell(32))(x).mean(1))
        for _ in range(3):
            x = nn.tanh(nn.Conv(16, (2, 2), padding="CIRCULAR")(x))
        return nn.Dense(5)(x.mean((1, 2)))


@pytest.mark.parametrize("shape", [(8, 20, 12), (8, 24, 24, 3)])
def test_a_mean_over_the_outputs_of_a_healthy_net_is_healthy(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    variables = jax.jit(Pooled().init)(jax.random.key(1), x)
    report = diagnosis.diagnose(Pooled(), variables, x)
    assert report.verdict == "healthy"


def test_a_batch_of_zeros_is_named_for_what_it_is():
    found = Report("Net", measurement(each("input_second_moment", [0.0] * 5)))
    assert found.verdict == "vanishing"
    assert "from a on: its input is all zeros" in found.summary
    assert "Advice: give a batch of data" in found.summary


def test_an_initial_state_of_zeros_is_no_batch_of_zeros():
    changes = {"a": {"input_second_moment": 0.0}, "b": {"previous": None}}
    assert judged(changes) == []
    changes["b"]["input_second_moment"] = 0.0
    assert ("vanishing", "forward", "a") in judged(changes)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_not_healthy(loss):
    (finding,) = verdict.judge(measurement(loss=loss))
    assert (finding.verdict, finding.layer) == ("not finite", "e")
    assert f"the loss is {loss}" in finding.what


def test_a_loss_that_sends_nothing_back_is_not_healthy():
    found = Report("Net", measurement(each("gradient_second_moment", [0.0] * 5), loss=1.0))
    assert found.verdict == "vanishing"
    assert "the loss sends no gradient back" in found.summary
    assert "Advice: check whether the loss depends on the model's outputs" in found.summary


def test_a_head_of_zeros_is_by_design():
    changes = each("gradient_second_moment", [0, 0, 0, 0, 1])
    for row in changes.values():
        row["gradient_to_decay"] = 0.0
    changes["e"] |= {"kernel_rms": 0.0, "gradient_to_decay": math.nan}
    assert judged(changes) == []


def test_a_gradient_spread_over_more_positions_has_not_vanished():
    changes = each("gradient_second_moment", [1e-3, 1, 1, 1, 1])
    assert judged(changes) == [("vanishing", "backward", "a")]
    changes["a"]["shape"] = (16, 128, 128, 100)  # 256 times as many as after it
    assert judged(changes) == []


def test_of_the_layers_that_no_layer_feeds_those_without_a_gradient_do_not_count():
    changes = each("gradient_second_moment", [0, 1, 1, 1, 1])
    assert judged(changes) == [("vanishing", "backward", "a")]
    changes["b"]["previous"] = None  # it reads the batch too
    assert judged(changes) == []
    changes["b"]["gradient_second_moment"] = 1e-6
    assert judged(changes) == [("vanishing", "backward", "b")]
    changes["b"]["gradient_second_moment"] = 0
    assert judged(changes) == [("vanishing", "backward", "b")]


def test_before_a_norm_a_large_gradient_of_a_small_output_has_not_exploded():
    changes = each("gradient_second_moment", [1e3, 1, 1, 1, 1])
    changes["a"]["second_moment"] = 2e-3  # of 2 after it
    assert judged(changes) == [("exploding", "backward", "a")]
    assert judged(changes, kinds=("Dense", "WeightNorm")) == [("exploding", "backward", "a")]
    assert judged(changes, kinds=("Dense", "NormFreeNet")) == [("exploding", "backward", "a")]
    assert judged(changes, kinds=("Dense", "LayerNorm")) == []
    changes["a"]["second_moment"] = 2.0
    assert judged(changes, kinds=("Dense", "LayerNorm")) == [("exploding", "backward", "a")]


def test_the_factor_is_a_geometric_mean_and_the_sentence_tells_it():
    finding, *_ = verdict.judge(measurement(each("input_second_moment", [1, 8, 1, 0.1, 8e-6])))
    assert finding.factor == pytest.approx(0.01)
    assert finding.what == "E[x²] is multiplied by 1.0e-06 over 3 layers, by 0.01 a layer"
    assert drift.power_of_ten(-1000 * math.log(10)) == "1.0e-1000"
    assert drift.power_of_ten(math.log(2500)) == "2.5e+03"
    assert drift.power_of_ten(math.log(1000)) == "1.0e+03"
    assert drift.power_of_ten(math.log(9970)) == "1.0e+04"


def test_chance_is_no_finding_but_a_prediction_has_none():
    changes = each("input_second_moment", [1, 1, 0.3, 0.03, 0.005])
    assert judged(changes) == [("vanishing", "forward", "d")]
    for row in changes.values():
        row["input_channel_spread"] = 50.0  # a standard deviation of √1.5 in the log
    assert judged(changes) == []
    fall = dict(zip("abcde", [moments(m, 1) for m in (1, 0.3, 0.05, 0.003, 1)], strict=True))
    assert judged(changes, fall) == [("vanishing", "forward", "d")]
    stays = dict.fromkeys("abcde", moments(1, 1))
    assert judged(changes, stays) == []
    rises = dict(zip("abcde", [moments(m, 1) for m in (1, 3, 30, 300, 1)], strict=True))
    assert judged(changes, rises) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"input_zero_fraction": 0.72}, []),  # half ± 4.5 standard deviations of 100 channels
        ({"input_zero_fraction": 0.73}, [("dead units", "forward", "b")]),
        (
            {"input_zero_fraction": 0.73, "input_shape": (4, 100), "input_channels": 100},
            [],
        ),  # of four examples
        ({"input_zero_fraction": 0.73, "input_shape": (16, 16), "input_channels": 16}, []),
        (
            {"input_zero_fraction": 1.0, "input_shape": (16, 16), "input_channels": 16},
            [("dead units", "forward", "b")],
        ),
        ({"input_zero_fraction": 1.0, "previous": None}, []),  # no layer feeds it
    ],
)
def test_dead_units_are_those_beyond_chance(change, expected):
    assert judged({"c": change}) == expected


@pytest.mark.parametrize(
    ("cosines", "expected"),
    [
        ([0.5, 0.9, 0.9999, 0.9999, 0.9999], [("collapsing", "forward", "c")]),
        ([0.5, 0.9, 0.9999, 0.9, 0.9], []),
        ([None, 1.0, math.nan, 0.9999, None], [("collapsing", "forward", "d")]),
        ([None] * 5, []),
    ],
)
def test_collapse_is_seen_where_it_lasts(cosines, expected):
    assert judged(each("cosine", cosines)) == expected


def test_a_stall_is_one_of_most_kernels():
    assert judged(each("gradient_to_decay", [9, 0.01, 0.02, 0.03, 9])) == [
        ("stalled", "backward", "b")
    ]
    assert judged(each("gradient_to_decay", [9, 9, 0.02, 0.03, 9])) == []
    assert judged(each("gradient_to_decay", [None] * 5)) == []


@pytest.mark.parametrize(
    ("layer", "field", "direction", "what"),
    [
        ("a", "input_second_moment", "forward", "its input"),
        ("c", "kernel_rms", "forward", "its kernel holds"),
        ("c", "second_moment", "forward", "its output"),
        ("d", "gradient_second_moment", "backward", "the gradient that reaches it"),
        ("b", "kernel_gradient_rms", "backward", "its kernel's gradient"),
    ],
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_number_that_is_not_finite_is_the_one_finding(
    layer, field, direction, what, value
):
    later = {"a": {"gradient_second_moment": value}, "e": {"second_moment": value}}
    changes = later if direction == "forward" else {"a": {"gradient_second_moment": value}}
    changes = {**changes, layer: {**changes.get(layer, {}), field: value}}
    (finding,) = verdict.judge(measurement(changes))
    assert (finding.verdict, finding.layer, finding.direction) == ("not finite", layer, direction)
    assert what in finding.what


def test_the_gravest_comes_first():
    changes = each("gradient_to_decay", [0.01] * 5)
    changes["e"]["input_second_moment"] = 1e-6
    changes["a"]["gradient_second_moment"] = 1e6
    assert [v for v, *_ in judged(changes)] == ["exploding", "vanishing", "stalled"]


# Against random nets: how often is a verdict wrong?

WIDTH, KEYS, BATCH = 64, 200, 8


class Plain(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth - 1):
            x = nn.relu(nn.Dense(WIDTH, use_bias=False)(x))
        return nn.Dense(10, use_bias=False)(x)


def measured(depth, gain):
    """The measurements of `KEYS` nets with weights of variance gain / fan_in."""
    model, rng = Plain(depth), np.random.default_rng(depth)
    x = rng.standard_normal((KEYS, BATCH, WIDTH), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x[0])
    draws = jax.tree.map(
        lambda leaf: math.sqrt(gain / WIDTH) * rng.standard_normal((KEYS, *leaf.shape), np.float32),
        shapes,
    )
    probe = signal.prepare(model, shapes, x[0])
    keys = jax.random.split(jax.random.key(depth), KEYS)
    run = jax.jit(lambda *args: jax.lax.map(lambda a: probe.statistics(*a), args))
    raw = jax.device_get(run(draws, x, keys))
    return [probe.read(jax.tree.map(lambda leaf, i=i: leaf[i], raw)) for i in range(KEYS)]


@pytest.mark.compiled("too slow")
def test_no_false_alarm_in_200_healthy_nets_of_50_layers_and_the_noise_is_what_is_said():
    nets = measured(50, 2.0)
    assert [verdict.judge(net) for net in nets] == [()] * KEYS
    for moment, noise, places in (
        ("second_moment", drift.forward_noise, (10, 25, 48)),
        ("gradient_second_moment", drift.backward_noise, (38, 23, 0)),
    ):
        logs = np.log([[getattr(row, moment) for row in net.layers] for net in nets])
        said = np.mean([np.square(noise(net.layers)) for net in nets], axis=0)
        for at in places:
            # The variance over nets against the mean of each net's own estimate.
            ratio = np.var(logs[:, at], ddof=1) / said[at]
            assert ratio == pytest.approx(1, abs=5 * math.sqrt(2 / KEYS) + 0.1), (moment, at)


@pytest.mark.compiled("too slow")
def test_xavier_with_relu_is_caught_in_each_of_200_nets_of_12_layers():
    verdicts = [[f.verdict for f in verdict.judge(net)] for net in measured(12, 1.0)]
    assert all("vanishing" in of_net for of_net in verdicts)
