"""A calibration over devices, mapped or sharded, is that of one device."""

import jax
import numpy as np
import pytest

from prelu_jax import datadep
from tests.datadep.nets import LINEN, SHAPE
from tests.signal.nets import drawn, flat, images

KEY = jax.random.key(3)


def over_devices(devices, out_axes):
    return lambda f: jax.pmap(
        f, "devices", in_axes=(None, 0), out_axes=out_axes, devices=jax.devices()[:devices]
    )


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
