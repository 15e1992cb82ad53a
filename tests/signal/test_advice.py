"""The advice for each cause, and that following it helps, on real nets."""

import functools
import re

import jax
import numpy as np
import pytest
from flax import linen as nn

import prelu_jax as pj
from prelu_jax import signal
from prelu_jax.signal import Report, advice, verdict
from prelu_jax.signal.verdict import Finding
from tests.signal.rows import each, measurement

WIDTH = 128


class Deep(nn.Module):
    """Twelve layers of one kind, slopes of 0.25 after them."""

    slope: float = 0.0

    @nn.compact
    def __call__(self, x):
        for i in range(11):
            x = pj.leaky_relu(nn.Dense(WIDTH, use_bias=False, name=f"dense_{i}")(x), self.slope)
        return nn.Dense(10, use_bias=False, name="head")(x)


@functools.cache
def probe_of(slope):
    model = Deep(slope)
    x = np.random.default_rng(0).standard_normal((16, WIDTH), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    probe = signal.prepare(model, shapes, x)
    return shapes, x, probe, jax.jit(probe.statistics)


def report(slope, stddev_of):
    """Return the report of a net with kernels of standard deviation ``stddev_of(name, shape)``."""
    shapes, x, probe, run = probe_of(slope)
    rng = np.random.default_rng(1)
    params = {
        name: {
            "kernel": stddev_of(name, leaf["kernel"].shape)
            * rng.standard_normal(leaf["kernel"].shape, np.float32)
        }
        for name, leaf in shapes["params"].items()
    }
    return Report("Deep", probe.read(run({"params": params}, x)))


def test_kernels_that_are_too_small_are_told_the_rule_and_the_slope():
    xavier = pj.initializers.xavier_normal()
    small = report(0.25, lambda name, shape: xavier.variance(shape) ** 0.5)
    assert [f.verdict for f in small.findings] == ["vanishing", "vanishing"]
    # One advice for both directions: either rule will do.
    assert small.summary.count("Advice: ") == 1
    assert re.search(r"0\.5\d? a layer forward and by 0\.5\d? backward: ", small.summary)
    assert "Either will do (He et al. 2015, §2.2); prefer the first" in small.summary
    one, other = small.to_dict()["findings"]
    assert one["advice"] == other["advice"]
    advised = re.findall(r"pj\.initializers\.(he_normal\(.*?\))", small.summary)
    expected = [f"he_normal('{mode}', negative_slope=0.25)" for mode in ("fan_out", "fan_in")]
    assert advised == expected
    for line in advised:  # following it helps
        rule = eval(f"pj.initializers.{line}", {"pj": pj})
        assert report(0.25, lambda _, shape, r=rule: r.variance(shape) ** 0.5).findings == ()


def test_kernels_that_are_too_large_are_told_so():
    large = report(0.0, lambda name, shape: 0.2)  # 2.5 times He's variance
    assert [f.verdict for f in large.findings] == ["exploding", "exploding"]
    assert re.search(r"by 2\.\d+ a layer forward.*he_normal\('fan_in'\)", large.summary)


def test_one_layer_that_does_it_alone_is_named():
    he = pj.initializers.he_normal()

    def stddev(name, shape):
        return 1e-4 if name == "dense_7" else he.variance(shape) ** 0.5

    found = report(0.0, stddev)
    assert [(f.verdict, f.direction, f.layer) for f in found.findings] == [
        ("vanishing", "forward", "dense_7"),
        ("vanishing", "backward", "dense_6"),
    ]
    # In both directions its kernel has the same factor, 128 · 1e-8, so that one advice will do.
    assert found.summary.count("one layer does most of it: dense_7 multiplies") == 1
    assert re.search(r"multiplies the second moment by 1\.[123]e-06", found.summary)


def test_padding_that_loses_the_signal_is_named():
    net = pj.arch.with_padding(
        pj.arch.Arch(
            "stack", 6, tuple(pj.arch.Conv(f"conv_{i}", 64, 2, padding=(0, 1)) for i in range(20))
        ),
        "same",
    )

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            for layer in net.layers:
                x = nn.relu(nn.Conv(layer.features, (2, 2), use_bias=False, name=layer.name)(x))
            return x.mean(axis=(1, 2))

    x = np.random.default_rng(0).standard_normal((4, 6, 6, 8), np.float32)
    shapes = jax.eval_shape(Stack().init, jax.random.key(0), x)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda leaf: (2 / (4 * leaf.shape[2])) ** 0.5 * rng.standard_normal(leaf.shape, np.float32),
        shapes,
    )
    found = Report("Stack", signal.measure(Stack(), variables, x))
    assert found.verdict == "vanishing"
    lost = re.findall(
        r"padding of 2×2 kernels loses (\d+)% .* maps down to 6×6: pad before and after",
        found.summary,
    )
    assert len(lost) == len(found.findings) == 2, found.summary
    assert all(20 <= int(percent) <= 50 for percent in lost)


@pytest.mark.parametrize(
    ("name", "start"),
    [
        (verdict.NOT_FINITE, "look at the batch"),
        (verdict.DEAD_UNITS, "start biases at 0 and lower"),
        (verdict.COLLAPSING, "start biases at 0 and subtract"),
        (verdict.STALLED, "the weights decay instead"),
    ],
)
def test_other_findings_have_a_line(name, start):
    (line,) = advice.advice_lines([Finding(name, None, "b", None, "")], measurement())
    assert line.startswith(start)


def test_kernels_of_zeros_and_a_batch_of_one_example_are_named():
    fall = each("input_second_moment", [1, 1, 0, 0, 0])
    fall["b"]["kernel_rms"] = 0.0
    fall["c"]["input_zero_fraction"] = 1.0
    summary = Report("Net", measurement(fall)).summary
    assert "vanishing" in summary
    assert "dead units" in summary
    assert summary.count("Advice: initialise the kernels that hold nothing but zeros: b.") == 1
    alike = Report("Net", measurement(each("cosine", [1.0] * 5)))
    assert "Advice: the examples of the batch hardly differ" in alike.summary


def test_where_nothing_is_known_of_kernels_the_advice_is_general():
    fall = each("input_second_moment", [1, 1, 1e-2, 1e-4, 1e-6])
    for row in fall.values():
        row["kernel_rms"] = None
    found = Report("Net", measurement(fall))
    assert "Advice: set each layer's scale from the data, pj.calibrate" in found.summary


def test_in_a_net_that_normalises_kernels_are_not_to_blame():
    kinds = ("BatchNorm", "Conv")
    rises = each("gradient_second_moment", [1e3, 1e2, 10, 1, 1])
    summary = Report("Net", measurement(rises, kinds=kinds)).summary
    assert "exploding (backward)" in summary
    assert "start the scale of each branch's last norm at 0" in summary
    falls = each("gradient_second_moment", [1e-3, 1e-2, 0.1, 1, 1])
    summary = Report("Net", measurement(falls, kinds=kinds)).summary
    assert "vanishing (backward)" in summary
    assert "Advice: set each layer's scale" in summary


def test_no_layer_is_named_where_all_do_the_same():
    fall = each("input_second_moment", [20, 1, 1 / 20, 1 / 400, 1 / 8000])
    for row, value in zip(fall.values(), [2.0, 0.1, 0.1 / 20, 0.1 / 400, 1.0], strict=True):
        row |= {"second_moment": value, "kernel_rms": (0.1 / 900) ** 0.5}
    summary = Report("Net", measurement(fall)).summary
    assert "vanishing" in summary
    assert "one layer does most" not in summary
    assert "one place does most" not in summary


def _scanned(change, negative_slope=0.0, depth=40):
    """Return the report of equal layers, scanned; one returns ``change(input, output)``."""
    rng = np.random.default_rng(0)
    std = pj.initializers.he_normal("fan_in", negative_slope=negative_slope).variance((64, 64))
    kernels = std**0.5 * rng.standard_normal((depth, 64, 64), np.float32)

    def layer(x, kernel):
        return change(x, pj.leaky_relu(x @ kernel, negative_slope)), None

    def net(params, x):
        return jax.lax.scan(layer, x, params["kernels"])[0] @ params["head"]

    params = {"kernels": kernels, "head": rng.standard_normal((64, 10), np.float32) / 8}
    return pj.diagnose(net, params, rng.standard_normal((16, 64), np.float32))


def _note(report):
    return next((line for line in report._notes() if line.startswith("Examples become")), None)


def test_a_deep_plain_net_is_told_the_slope_that_keeps_examples_apart():
    alike = _scanned(lambda x, y: y)
    assert alike.verdict == verdict.HEALTHY
    assert f"negative_slope={pj.tailored_slope(40):.2g}, which is pj.tailored_slope(40)" in (
        _note(alike) or ""
    )
    assert _note(alike) in alike.to_markdown()
    assert _note(_scanned(lambda x, y: y, pj.tailored_slope(40))) is None


@pytest.mark.parametrize(
    "change",
    [lambda x, y: x + 0.1 * y, lambda x, y: y / jax.numpy.sqrt((y**2).mean(-1, keepdims=True))],
    ids=["shortcut", "norm"],
)
def test_a_net_with_shortcuts_or_norms_is_not_told_a_slope(change):
    assert _note(_scanned(change)) is None
