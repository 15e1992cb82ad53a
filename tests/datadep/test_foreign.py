"""Models that nobody here wrote, unmodified: what of them needs no other package than Flax."""

import jax
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
        (nnx.LoRALinear(8, 5, lora_rank=2, rngs=nnx.Rngs(0)), 1),
    ],
)
def test_nnx_models_of_flax(model, layers):
    report = datadep.calibrate(model, images(32, 5, 8))
    rows = report.stages[0].layers
    assert len(rows) == layers
    assert max(row.error for row in rows) < 1e-3
    assert max(abs(row.std_after - 1) for row in rows) < 1e-3


def test_a_low_rank_adapter_that_already_adds_something_is_left_alone():
    model = nnx.LoRALinear(8, 5, lora_rank=2, rngs=nnx.Rngs(0))
    model.lora.lora_b[...] = 5 * images(2, 5)
    before = np.asarray(model.kernel[...])
    report = datadep.calibrate(model, images(32, 8))
    assert "does not follow" in " ".join(report.stages[0].layers[0].notes)
    np.testing.assert_array_equal(model.kernel[...], before)


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


@pytest.mark.compiled("a scan that is run step by step is no scan")
def test_a_recurrent_cell_inside_scan_is_told():
    x = images(4, 5, 3)
    model = nn.RNN(nn.LSTMCell(4))
    variables = jax.tree.map(np.asarray, model.init(jax.random.key(0), x))
    with pytest.raises(ValueError, match="100 % of the weights are inside scan: cell/hf/kernel"):
        datadep.calibrate(model, variables, x)
