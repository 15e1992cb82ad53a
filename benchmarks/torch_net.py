"""The networks of `prelu_jax.arch` in PyTorch, with the same layers, rectifiers and weights."""

import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.timing import seconds
from prelu_jax.arch import Arch, Conv, Dense, Logits, MaxPool, SpatialPyramid


class Pyramid(nn.Module):  # type: ignore[misc,unused-ignore]  # untyped where torch is missing
    """`pooling.spatial_pyramid`, with its order of bins: ``[b, c, h, w] -> [b, Σn² · c]``."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.pools = nn.ModuleList(nn.AdaptiveMaxPool2d(level) for level in levels)

    def forward(self, x_bchw: Any) -> Any:
        """Return the maxima of every bin."""
        bins = torch.cat([pool(x_bchw).flatten(2) for pool in self.pools], dim=2)
        return bins.transpose(1, 2).flatten(1)


def build(net: Arch, params: Any) -> Any:
    """Build the network as an `nn.Sequential` with a Flax network's parameters.

    Args:
        net: the layers; it takes images ``[b, 3, h, w]``.
        params: by layer, 'kernel' and 'bias', or 'negative_slope'; ReLU where there is none.
    """
    parts: OrderedDict[str, Any] = OrderedDict()
    for layer in net.layers:
        match layer:
            case Conv():
                inputs, features = params[layer.name]["kernel"].shape[2:]
                parts[f"{layer.name}_pad"] = nn.ZeroPad2d((*layer.padding, *layer.padding))
                parts[layer.name] = nn.Conv2d(inputs, features, layer.kernel_size, layer.stride)
            case MaxPool():
                parts[layer.name] = nn.MaxPool2d(layer.window)
            case SpatialPyramid():
                parts[layer.name] = Pyramid(layer.levels)
            case Dense() | Logits():
                parts[layer.name] = nn.Linear(*params[layer.name]["kernel"].shape)
        if isinstance(layer, Conv | Dense):
            slopes = params.get(f"{layer.name}_prelu", {}).get("negative_slope")
            rectifier = nn.ReLU() if slopes is None else nn.PReLU(np.size(slopes))
            parts[f"{layer.name}_prelu"] = rectifier
        if isinstance(layer, Dense) and layer.dropout_rate:
            parts[f"{layer.name}_dropout"] = nn.Dropout(layer.dropout_rate)
    module = nn.Sequential(parts)
    state = {}
    for name, leaves in params.items():
        if "negative_slope" in leaves:
            slopes = np.asarray(leaves["negative_slope"]).reshape(-1)
            state[f"{name}.weight"] = torch.tensor(slopes)
            continue
        kernel = np.asarray(leaves["kernel"])  # [..., in, out], in PyTorch [out, in, ...]
        axes = (kernel.ndim - 1, kernel.ndim - 2, *range(kernel.ndim - 2))
        state[f"{name}.weight"] = torch.tensor(np.ascontiguousarray(kernel.transpose(axes)))
        state[f"{name}.bias"] = torch.tensor(np.asarray(leaves["bias"]))
    module.load_state_dict(state)
    return module.eval()


def use_fastest_threads(program: Callable[[], Any]) -> str:
    """Set PyTorch's threads to one per core or to one, whichever is faster.

    Its threads wait for each other, so one thread is the fastest if other programs use the cores.
    Returns a note with the chosen number.
    """
    every = len(os.sched_getaffinity(0))
    taken = {}
    for threads in {1, every}:
        torch.set_num_threads(threads)
        taken[threads] = seconds({"program": program}, 5)["program"]
    torch.set_num_threads(min(taken, key=lambda threads: taken[threads]))
    return f"PyTorch's threads: {torch.get_num_threads()}, the fastest of 1 and {every}"


def params_of(module: Any) -> dict[str, dict[str, np.ndarray]]:
    """Return the parameters in Flax's form."""
    params: dict[str, dict[str, np.ndarray]] = {}
    for path, value in module.state_dict().items():
        name, _, leaf = path.rpartition(".")
        array = value.numpy().copy()
        if leaf == "weight":
            axes = (*range(2, array.ndim), 1, 0)
            params.setdefault(name, {})["kernel"] = array.transpose(axes)
        else:
            params.setdefault(name, {})["bias"] = array
    return params
