"""One net of rectifiers, written for every library: the same operations, the same numbers."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from tests.tracing.rows import assert_same, program_of, rows

WIDTHS = (6, 8, 8, 3)
KEYS = jax.random.split(jax.random.key(0), 7)
X = jax.random.normal(KEYS[6], (5, 6))
PARAMS = {
    f"layer_{i}": {
        "w": jax.random.normal(KEYS[2 * i], WIDTHS[i : i + 2]) / 2,
        "b": jax.random.normal(KEYS[2 * i + 1], WIDTHS[i + 1 : i + 2]) / 2,
    }
    for i in range(3)
}


def plain(params, x):
    for i in range(3):
        x = x @ params[f"layer_{i}"]["w"] + params[f"layer_{i}"]["b"]
        x = jax.nn.relu(x) if i < 2 else x
    return x


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i in range(3):
            x = nn.Dense(WIDTHS[i + 1], name=f"layer_{i}")(x)
            x = nn.relu(x) if i < 2 else x
        return x


def linen():
    layers = {name: {"kernel": p["w"], "bias": p["b"]} for name, p in PARAMS.items()}
    return Linen(), {"params": layers}


class Nnx(nnx.Module):
    def __init__(self, rngs):
        for i in range(3):
            setattr(self, f"layer_{i}", nnx.Linear(*WIDTHS[i : i + 2], rngs=rngs))

    def __call__(self, x):
        for i in range(3):
            x = getattr(self, f"layer_{i}")(x)
            x = nnx.relu(x) if i < 2 else x
        return x


def of_nnx():
    model = Nnx(nnx.Rngs(0))
    for name, p in PARAMS.items():
        getattr(model, name).kernel[...] = p["w"]
        getattr(model, name).bias[...] = p["b"]
    return model, None


def haiku():
    hk = pytest.importorskip("haiku")

    def forward(x):
        for i in range(3):
            x = hk.Linear(WIDTHS[i + 1], name=f"layer_{i}")(x)
            x = jax.nn.relu(x) if i < 2 else x
        return x

    return hk.transform(forward), PARAMS


def haiku_with_state():
    hk = pytest.importorskip("haiku")
    transformed, params = haiku()
    apply = transformed.apply
    with_state = hk.TransformedWithState(
        transformed.init, lambda params, state, key, x: (apply(params, key, x), state)
    )
    return with_state, (params, {"counter": jnp.zeros(())})


def equinox():
    eqx = pytest.importorskip("equinox")
    layers = []
    for p in PARAMS.values():
        layer = eqx.nn.Linear(*p["w"].shape, key=KEYS[0])
        at = lambda layer: (layer.weight, layer.bias)  # noqa: E731
        layers.append(eqx.tree_at(at, layer, (p["w"].T, p["b"])))
        layers.append(eqx.nn.Lambda(jax.nn.relu))
    net = eqx.nn.Sequential(layers[:-1])

    class OfBatches(eqx.Module):
        net: eqx.nn.Sequential

        def __call__(self, x):
            return jax.vmap(self.net)(x)

    return OfBatches(net), None


def function_of_equinox():
    return lambda net, x: net(x), equinox()[0]


def keras():
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    layers = [
        keras.layers.Dense(width, activation="relu" if i < 2 else None, name=f"layer_{i}")
        for i, width in enumerate(WIDTHS[1:])
    ]
    model = keras.Sequential([keras.Input(WIDTHS[:1]), *layers])
    for layer in layers:
        layer.set_weights([np.asarray(PARAMS[layer.name][name]) for name in ("w", "b")])
    # A Keras model takes its parameters as a list; their paths make a table of names.
    paths = [variable.path for variable in model.trainable_variables]

    def apply(params, x):
        outputs, _ = model.stateless_call([params[path] for path in paths], [], x)
        return outputs

    return apply, {variable.path: variable.value for variable in model.trainable_variables}


WAYS = [linen, of_nnx, haiku, haiku_with_state, equinox, function_of_equinox, keras]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_library_has_the_rows_of_the_plain_function(way):
    expected, outputs = rows(plain, PARAMS, X)
    model, variables = way()
    found, same = rows(model, variables, X)
    np.testing.assert_allclose(same, outputs, rtol=1e-5)
    if "equinox" in way.__name__:  # whose weights are [out, in]
        found = [row._replace(weight=row.weight.T) for row in found]
    assert_same(found, expected)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_weight_is_seen_by_its_path_and_has_its_bias(way):
    program = program_of(*way(), X)[2]
    assert program.reading.not_measured == {}
    assert len(program.reading.seen) == 3
    for operation in program.operations:
        (weight,) = operation.parameters
        assert operation.bias.rpartition("/")[0] == weight.rpartition("/")[0]
        assert operation.is_view
    if "equinox" not in way.__name__:
        paths = [operation.parameters[0].split("/")[-2] for operation in program.operations]
        assert paths == ["layer_0", "layer_1", "layer_2"]


@pytest.mark.parametrize(
    ("variables", "held"),
    [
        ({}, "hold nothing"),
        ({"w": [[1.0, 2.0], [3.0, 4.0]]}, "hold no arrays, only float"),
        ("weights", "hold no arrays, only str"),
    ],
)
def test_variables_without_an_array_are_refused(variables, held):
    with pytest.raises(TypeError, match=rf"variables of 'plain' {held}; expected a pytree"):
        program_of(plain, variables, X)


def test_parameters_of_numpy_are_those_of_jax(recwarn):
    precise = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), PARAMS)
    assert_same(rows(plain, precise, X)[0], rows(plain, PARAMS, X)[0])
    assert not recwarn.list
