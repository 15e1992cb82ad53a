"""A calibration over devices, mapped or sharded, is that of one device."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn

from prelu_jax import datadep
from prelu_jax.training.parallel import MOST_PROGRAMS, Parallel
from tests.datadep.nets import LINEN, SHAPE
from tests.signal.nets import drawn, flat, images

KEY = jax.random.key(3)


def over_devices(devices, out_axes):
    return lambda f: jax.pmap(
        f, "devices", in_axes=(None, 0), out_axes=out_axes, devices=jax.devices()[:devices]
    )


@pytest.mark.compiled("jax.pmap over several devices")
@pytest.mark.parametrize("method", ["within_layer", "between_layer", "lsuv"])
def test_the_result_does_not_depend_on_the_number_of_devices(method):
    x = images(*SHAPE)
    model, variables = LINEN["cnn"], drawn(LINEN["cnn"], x)
    expected, _ = datadep.calibrate(model, variables, x, method=method, key=KEY)
    for devices in (2, 4):
        split = x.reshape(devices, -1, *x.shape[1:])
        options = {"axis_name": "devices", "compiled": over_devices(devices, None)}
        found, _ = datadep.calibrate(model, variables, split, method=method, key=KEY, **options)
        for name, value in flat(expected).items():
            np.testing.assert_allclose(flat(found)[name], value, rtol=2e-6, atol=2e-6)


@pytest.mark.compiled("jax.pmap over several devices")
def test_every_replica_ends_with_the_same_bits():
    x = images(*SHAPE)
    model, variables = LINEN["cnn"], drawn(LINEN["cnn"], x)
    seen = []

    def compiled(function):
        mapped = over_devices(4, 0)(function)

        def first(replicated, batch):
            replicas = jax.device_get(mapped(replicated, batch))
            seen.extend(jax.tree.leaves(replicas))
            return jax.tree.map(lambda v: v[0], replicas)

        return first

    split = x.reshape(4, -1, *x.shape[1:])
    options = {"axis_name": "devices", "compiled": compiled, "key": KEY}
    method = ["kmeans", "between_layer"]
    datadep.calibrate(model, variables, split, method=method, **options)
    assert len(seen) > 20
    assert all((leaf == leaf[0]).all() for leaf in seen)


class Twice(nn.Module):
    """A layer that is called again on its own output, and a field that has no hash if a list."""

    field: Any

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(4, name="layer")
        return layer(nn.relu(layer(x)))


@pytest.mark.parametrize("field", [(), []])
def test_a_function_that_is_called_in_many_passes_is_compiled_once(field):
    x, seen = images(16, 4), []

    def compiled(function):
        seen.append(function)
        return jax.jit(function)

    model = Twice(field)
    _, report = datadep.calibrate(model, drawn(model, x), x, compiled=compiled)
    assert report.stages[0].passes > 3
    assert len(seen) == 1
    hash(seen[0])  # so that the compiler can remember it too


def test_programs_over_devices_are_remembered_up_to_a_number():
    parallel = Parallel(jax.devices()[:2])
    functions = [functools.partial(jax.tree.map, i) for i in range(MOST_PROGRAMS + 1)]
    first = parallel.over_batch(functions[0])
    assert parallel.over_batch(functions[0]) is first
    for function in functions[1:]:
        parallel.over_batch(function)
    assert parallel.over_batch(functions[0]) is not first


def test_sharded_batches_and_kernels():
    x = images(*SHAPE)
    model, variables = LINEN["cnn"], drawn(LINEN["cnn"], x)
    expected, _ = datadep.calibrate(model, variables, x)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    spec = jax.sharding.PartitionSpec

    def put(value, *axes):
        return jax.device_put(value, jax.sharding.NamedSharding(mesh, spec(*axes)))

    params = jax.tree.map(put, variables["params"])
    params["conv_0"]["kernel"] = put(
        variables["params"]["conv_0"]["kernel"], None, None, None, "data"
    )
    found, _ = datadep.calibrate(model, {"params": params}, put(x, "data"))
    assert flat(found)["conv_0/kernel"].sharding == params["conv_0"]["kernel"].sharding
    for name, value in flat(expected).items():
        np.testing.assert_allclose(flat(found)[name], value, rtol=2e-6, atol=2e-6)
