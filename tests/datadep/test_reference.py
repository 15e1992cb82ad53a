"""The one pass against the papers' loops in NumPy, on chains, residual sums and concatenations."""

import jax
import numpy as np
import pytest

from prelu_jax import datadep
from prelu_jax.signal import reductions as moments
from tests.datadep import reference
from tests.datadep.nets import LINEN, NUMPY, SHAPE, drawn, flat, nnx_parameters, nnx_with, numpy
from tests.signal.nets import images

KEY = jax.random.key(3)
NETS = sorted(LINEN)


def calibrated(net, method):
    x = images(*SHAPE)
    model = LINEN[net]
    variables, report = datadep.calibrate(model, drawn(model, x), x, method=method, key=KEY)
    return flat(variables), report


def assert_equal(found, expected, rtol=1e-4):
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(
            found[name], value, rtol, rtol * np.abs(value).max(), err_msg=name
        )


@pytest.mark.parametrize("net", NETS)
def test_within_layer(net):
    x = images(*SHAPE)
    expected = reference.within_layer(NUMPY[net], flat(drawn(LINEN[net], x)), numpy(x), 0.1)
    found, report = calibrated(net, datadep.WithinLayer(target_mean=0.1))
    assert_equal(found, expected)
    assert report.stages[0].passes == 1


@pytest.mark.parametrize("net", NETS)
def test_lsuv_is_the_published_loop(net):
    x = images(*SHAPE)
    parameters = flat(drawn(LINEN[net], x))
    for name in parameters:
        if name.endswith("bias"):
            parameters[name] = 0 * parameters[name]
    expected = reference.lsuv(NUMPY[net], parameters, numpy(x))
    variables = {"params": _nested(parameters)}
    method = datadep.Lsuv(orthonormal=False)
    found, _ = datadep.calibrate(LINEN[net], variables, x, method=method)
    assert_equal(flat(found), expected)


def test_lsuv_with_a_tolerance_leaves_alone_what_the_published_loop_does():
    x = images(*SHAPE)
    parameters = flat(drawn(LINEN["cnn"], x))
    parameters = {k: 0 * v if k.endswith("bias") else v for k, v in parameters.items()}
    exact = reference.lsuv(NUMPY["cnn"], parameters, numpy(x))
    for name, factor in (("conv_0", 1.02), ("conv_1", 1.3)):  # variances 1.04 and 1.69 · 1.04
        exact[f"{name}/kernel"] = exact[f"{name}/kernel"] * factor
    expected = reference.lsuv(NUMPY["cnn"], exact, numpy(x), tolerance=0.1)
    variables = {"params": _nested({k: np.asarray(v, np.float32) for k, v in exact.items()})}
    method = datadep.Lsuv(orthonormal=False, tolerance=0.1)
    found, _ = datadep.calibrate(LINEN["cnn"], variables, x, method=method)
    assert_equal(flat(found), expected)
    np.testing.assert_array_equal(
        flat(found)["conv_0/kernel"], variables["params"]["conv_0"]["kernel"]
    )
    assert np.any(flat(found)["conv_1/kernel"] != variables["params"]["conv_1"]["kernel"])


@pytest.mark.parametrize("net", NETS)
def test_between_layer(net):
    x = images(*SHAPE)
    noise = moments.gaussian_like(KEY, [np.zeros((len(x), 3), np.float32)], len(x), None)[0]
    parameters = flat(drawn(LINEN[net], x))
    expected = reference.between_layer(net, NUMPY[net], parameters, numpy(x), numpy(noise))
    found, report = calibrated(net, "between_layer")
    assert_equal(found, expected, rtol=1e-3)
    assert report.stages[0].iterations == 1
    before = reference.change_rates(
        NUMPY[net], {k: numpy(v) for k, v in parameters.items()}, numpy(x), numpy(noise)
    )
    for row in report.stages[0].layers:
        np.testing.assert_allclose(row.rate_before, before[row.layer], rtol=1e-4)


@pytest.mark.parametrize(
    ("net", "method"),
    [
        *((net, "within_layer") for net in NETS),
        ("cnn", "lsuv"),
        ("residual", "between_layer"),
    ],
)
def test_nnx_is_linen(net, method):
    x = images(*SHAPE)
    model = nnx_with(net, drawn(LINEN[net], x))
    report = datadep.calibrate(model, x, method=method, key=KEY)
    expected, expected_report = calibrated(net, method)
    assert_equal(nnx_parameters(model), expected, rtol=1e-5)
    assert [row.layer for row in report.stages[0].layers] == [
        row.layer for row in expected_report.stages[0].layers
    ]


def _nested(parameters):
    nested = {}
    for name, value in parameters.items():
        layer, leaf = name.split("/")
        nested.setdefault(layer, {})[leaf] = value
    return nested
