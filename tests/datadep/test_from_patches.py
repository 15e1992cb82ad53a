"""Filters of a net's own patches: cut out as the layer does, and equal to a reference in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from prelu_jax import datadep
from prelu_jax.datadep import filters, from_patches, plan
from prelu_jax.tracing import models
from tests.datadep import reference
from tests.datadep.nets import LINEN, NUMPY, SHAPE, drawn, flat, numpy
from tests.signal.nets import images

KEY = jax.random.key(5)


def patches_of(model, variables, x, most=10_000):
    """The patches of a model that is one layer."""
    found = []
    planned = plan.make(model, variables, x)

    def observe(visit):
        found.append(from_patches.patches(planned.layers[0], visit, KEY, most))
        return visit.y, None

    function, state = models.of(model, variables)
    program = planned.model.program(state, x, None)
    program.run(function.parameters(state), (state, None), x, observe)
    return found[0]


CONVS = {
    "same": {},
    "strided": {"strides": (2, 1)},
    "valid": {"padding": "VALID"},
    "uneven": {"padding": ((0, 2), (1, 0))},
    "dilated": {"kernel_dilation": (1, 2)},
    "circular": {"padding": "CIRCULAR"},
    "grouped": {"feature_group_count": 2},
    "depthwise": {"feature_group_count": 4},
    "no bias": {"use_bias": False},
}


@pytest.mark.parametrize("case", CONVS)
@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_a_kernel_applied_to_the_patches_is_the_convolution(case, kind):
    x = images(3, 6, 5, 4)
    if kind == "linen":
        model = nn.Conv(8, (3, 2), **CONVS[case])
        variables = drawn(model, x)
        kernel, y = variables["params"]["kernel"], model.apply(variables, x)
        y = y - variables["params"].get("bias", 0)
    else:
        model, variables = nnx.Conv(4, 8, (3, 2), rngs=nnx.Rngs(0), **CONVS[case]), None
        kernel, y = model.kernel[...], model(x)
    groups = CONVS[case].get("feature_group_count", 1)
    found = patches_of(model, variables, x)
    matrices = np.moveaxis(np.asarray(kernel).reshape(-1, groups, 8 // groups), 1, 0)
    expected = np.concatenate([p @ m for p, m in zip(found, matrices, strict=True)], axis=-1)
    np.testing.assert_allclose(expected, np.asarray(y).reshape(-1, 8), atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        nn.Dense(3),
        nn.DenseGeneral((3, 2), axis=(-2, -1)),
        nnx.Linear(5, 3, rngs=nnx.Rngs(0)),
        nnx.LinearGeneral((4, 5), (3, 2), axis=(-2, -1), rngs=nnx.Rngs(0)),
    ],
)
def test_the_patches_of_a_fully_connected_layer_are_its_inputs(model):
    x = images(7, 4, 5)
    variables = None if isinstance(model, nnx.Module) else drawn(model, x)
    found = patches_of(model, variables, x)
    size = 5 if isinstance(model, nn.Dense | nnx.Linear) else 20
    expected = np.asarray(x).reshape(-1, size)
    assert found.shape == (1, *expected.shape)
    np.testing.assert_array_equal(found[0], expected)


def test_a_sample_is_bounded_and_comes_from_many_examples():
    x = jnp.arange(64.0)[:, None, None, None] + jnp.zeros((64, 8, 8, 1))
    model = nn.Conv(2, (1, 1))
    found = patches_of(model, drawn(model, x), x, most=100)
    assert found.shape == (1, 100, 1)
    assert len(np.unique(found)) == 7  # ⌈4 · 100 / 64⌉ examples


@pytest.mark.parametrize(("net", "kind"), [("cnn", "pca"), ("inception", "pca"), ("cnn", "zca")])
def test_filters_are_those_of_the_reference(net, kind):
    x = images(24, *SHAPE[1:])
    model = LINEN[net]
    variables = drawn(model, x)
    found, report = datadep.calibrate(model, variables, x, method=kind, key=KEY)
    found = flat(found)
    names = [row.layer for row in report.stages[0].layers]
    assert not any(row.notes for row in report.stages[0].layers)

    def redraw(name, inputs, kernel):
        rows = inputs.reshape(-1, np.prod(kernel.shape[:-1]))
        rows = rows - rows.mean(axis=0)
        variances, v = np.linalg.eigh(rows.T @ rows / len(rows))
        variances, v = variances[::-1], v[:, ::-1]
        white = v / np.sqrt(variances + 1e-5 * variances[0])
        if kind == "zca":
            white = white @ v.T
        mine = found[f"{name}/kernel"].reshape(rows.shape[1], -1)
        # The sign is a convention, and so is which input a filter of zca is centred on.
        cosines = (white / np.linalg.norm(white, axis=0)).T @ (mine / np.linalg.norm(mine, axis=0))
        best = np.abs(cosines).argmax(axis=0)
        if kind == "pca":
            np.testing.assert_array_equal(best, np.arange(mine.shape[1]))
        assert len(set(best)) == mine.shape[1]
        sign = np.sign(cosines[best, np.arange(mine.shape[1])])
        return (white[:, best] * sign).reshape(kernel.shape)

    expected = reference.within_layer(NUMPY[net], flat(variables), numpy(x), redraw=redraw)
    assert names == list(reference.run(NUMPY[net], expected, numpy(x))[0])
    for name, value in expected.items():
        tolerance = 1e-5 + 2e-3 * np.abs(value).max()  # eigenvectors in float32
        np.testing.assert_allclose(found[name], value, atol=tolerance, err_msg=name)


def test_kmeans_filters_are_centroids_and_every_channel_is_calibrated():
    x = images(24, *SHAPE[1:])
    model = LINEN["cnn"]
    variables, report = datadep.calibrate(model, drawn(model, x), x, method="kmeans", key=KEY)
    assert max(row.error for row in report.stages[0].layers) < 1e-3
    again, _ = datadep.calibrate(model, drawn(model, x), x, method="kmeans", key=KEY)
    jax.tree.map(np.testing.assert_array_equal, variables, again)
    # The first layer's filters lie in the span of the whitened patches' centroids.
    sample = patches_of(nn.Conv(6, (3, 3)), {"params": drawn(model, x)["params"]["conv_0"]}, x)
    centred = np.asarray(sample[0], np.float64) - np.mean(sample[0], axis=0)
    responses = centred @ flat(variables)["conv_0/kernel"].reshape(18, 6)
    np.testing.assert_allclose(responses.std(axis=0), 1, atol=1e-3)


def test_layers_with_too_few_patches_or_of_other_kinds_are_gaussian():
    x = images(6, 6, 6, 2)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.ConvTranspose(3, (2, 2), strides=(2, 2), name="transposed")(
                nn.Conv(4, (3, 3), name="conv")(x)
            )
            return nn.Dense(8, name="wide")(x.mean(axis=(1, 2)))

    for method, axis in (("pca", None), ("kmeans", "devices")):
        options, batch = {}, x
        if axis:
            batch = x.reshape(2, 3, *x.shape[1:])
            mapped = {"in_axes": (None, 0), "out_axes": None, "devices": jax.devices()[:2]}
            options = {
                "axis_name": axis,
                "compiled": functools.partial(jax.pmap, axis_name=axis, **mapped),
            }
        _variables, report = datadep.calibrate(
            Net(), drawn(Net(), x), batch, method=method, key=KEY, **options
        )
        notes = {row.layer: row.notes for row in report.stages[0].layers}
        assert notes["conv"] == ()
        assert notes["transposed"] == notes["wide"] != ()
        assert "random" in notes["wide"][0]
        assert max(row.error for row in report.stages[0].layers) < 1e-3


@pytest.mark.parametrize("kind", filters.KINDS)
def test_a_constant_input_costs_no_more_than_its_own_direction(kind):
    x = images(64, 5).at[:, 2].set(0.7)
    model = nn.Dense(5)
    after, report = datadep.calibrate(model, drawn(model, x), x, method=kind, key=KEY)
    (row,) = report.stages[0].layers
    assert row.error < 1e-3
    assert "directions" in row.notes[0]
    kernel = flat(after)["kernel"]
    assert np.abs(kernel[2]).max() < 1e-4 * np.abs(kernel).max()  # a Gaussian one would hear it
    if kind == "pca":
        correlations = np.corrcoef(np.asarray(model.apply(after, x)).T)
        np.testing.assert_allclose(correlations[:4, :4], np.eye(4), atol=1e-3)
        assert np.abs(correlations[4, :4]).max() > 0.1  # the one that is filled in


def test_the_kinds_are_registered():
    assert set(filters.KINDS) < set(datadep.REGISTRY)
