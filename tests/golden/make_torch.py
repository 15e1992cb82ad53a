"""Writes torch.json: what torch.nn.init draws and what torch's PReLU computes.

    python tests/golden/make_torch.py

Needs torch, which is large and which the tests do not install; run it where torch is at hand.
"""

import json
from pathlib import Path

import torch

SHAPES = {"dense": (200, 300), "conv": (64, 32, 3, 3)}  # torch's order: out, in, *window
DRAWS = 16


def variances():
    torch.manual_seed(0)
    init = torch.nn.init
    for layer, shape in SHAPES.items():
        for distribution in ("normal", "uniform"):
            kaiming = getattr(init, f"kaiming_{distribution}_")
            xavier = getattr(init, f"xavier_{distribution}_")
            rules = [
                (("kaiming", mode, a), lambda w, m=mode, a=a, k=kaiming: k(w, a=a, mode=m))
                for mode in ("fan_in", "fan_out")
                for a in (0.0, 0.25, 1.0)
            ]
            rules.append((("xavier", "fan_avg", 1.0), xavier))
            for (rule, mode, a), fill in rules:
                weights = torch.stack([fill(torch.empty(shape)) for _ in range(DRAWS)]).double()
                yield {
                    "rule": rule,
                    "distribution": distribution,
                    "mode": mode,
                    "negative_slope": a,
                    "layer": layer,
                    "shape": shape,
                    "draws": weights.numel(),
                    "variance": weights.square().mean().item(),
                }


def prelu():
    torch.manual_seed(1)
    for slopes in (1, 3):
        x = torch.randn(2, 3, 2, 2, requires_grad=True)
        x.data[0, 0, 0, 0] = 0.0
        slope = torch.randn(slopes, requires_grad=True)
        cotangent = torch.randn(2, 3, 2, 2)
        y = torch.nn.functional.prelu(x, slope)
        y.backward(cotangent)
        tensors = {"x": x, "slope": slope, "cotangent": cotangent, "y": y}
        tensors |= {"dx": x.grad, "dslope": slope.grad}
        yield {name: tensor.tolist() for name, tensor in tensors.items()}


content = {
    "torch": torch.__version__.partition("+")[0],
    "variances": list(variances()),
    "prelu": list(prelu()),
}
(Path(__file__).parent / "torch.json").write_text(json.dumps(content, indent=1) + "\n")
