"""Models of other projects, unmodified, that need no other package than Flax."""

import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from prelu_jax import datadep
from tests.signal.nets import drawn, images


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        (nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0)), 4),
    ],
)
def test_nnx_models_of_flax(model, layers):
    report = datadep.calibrate(model, images(32, 5, 8))
    rows = report.stages[0].layers
    assert len(rows) == layers
    assert max(row.error for row in rows) < 1e-3
    assert max(abs(row.std_after - 1) for row in rows) < 1e-3


def test_a_low_rank_adapter_is_three_layers_of_which_one_puts_out_zeros():
    model, x = nnx.LoRALinear(8, 5, lora_rank=2, rngs=nnx.Rngs(0)), images(32, 8)
    report = datadep.calibrate(model, x)
    rows = {row.parameter: row for row in report.stages[0].layers}
    assert set(rows) == {"kernel", "lora/lora_a", "lora/lora_b"}
    assert rows["lora/lora_b"].constant == (0, 1, 2, 3, 4)
    assert not model.lora.lora_b[...].any()
    np.testing.assert_allclose(np.std(model(x), axis=0), 1, rtol=1e-4)


def test_linen_attention():
    x = images(16, 6, 8)
    model = nn.MultiHeadDotProductAttention(2, qkv_features=8)
    _, report = datadep.calibrate(model, drawn(model, x), x, method=["lsuv", "between_layer"])
    lsuv, between = report.stages
    assert [row.layer for row in lsuv.layers] == ["query", "key", "value", "out"]
    assert max(row.error for row in lsuv.layers) < 1e-5
    # Of the four, query and key trade, and so do value and out.
    factors = {row.layer: row.factor for row in between.layers}
    np.testing.assert_allclose(factors["query"] * factors["key"], 1, rtol=1e-5)
    np.testing.assert_allclose(factors["value"] * factors["out"], 1, rtol=1e-5)
    assert between.spread_after < between.spread_before
