import json

import jax
import jax.numpy as jnp
from flax import linen as nn

from prelu_jax import signal
from prelu_jax.training import signal_log


def test_a_record_leaves_out_what_is_not_defined_or_not_finite():
    model = nn.Sequential([nn.Dense(3), nn.Dense(2)])
    x = jnp.ones((1, 4))  # one example: no pair, no cosine
    variables = model.init(jax.random.key(0), x)
    variables["params"]["layers_1"]["bias"] = jnp.full(2, jnp.inf)
    record = signal_log.record(signal.measure(model, variables, x))  # no loss: no decay beside it
    assert {name: set(by_layer) for name, by_layer in record.items()} == {
        "signal_second_moment": {"layers_0"},
        "signal_gradient_second_moment": {"layers_0", "layers_1"},
        "signal_change_rate": {"layers_0", "layers_1"},
        "signal_dead_fraction": {"layers_0"},
        "signal_cosine": set(),
        "signal_gradient_to_decay": set(),
    }
    json.dumps(record, allow_nan=False)
