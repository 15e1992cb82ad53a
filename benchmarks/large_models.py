"""python -m benchmarks.large_models: a training step of models A, B and C at full size (§1.6, §3).

Images a second, memory and the fraction of the measured matrix-product rate, on one device.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import memory, seconds
from prelu_jax import arch, models
from prelu_jax.data.augment import PixelStatistics
from prelu_jax.training import optimizer, state, step

NETS = ("model_c", "model_b", "model_a")
DTYPES = ("bfloat16", "float32")
_CLASSES = 1000
_SIDE_OF_PRODUCT = 8192  # large enough for the device's full rate


def main(arguments: Sequence[str]) -> None:
    """Prints a row for each network and type of computation; writes them as JSON, one by one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", nargs="+", default=NETS, choices=sorted(arch.REGISTRY))
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--side_of_product", type=int, default=_SIDE_OF_PRODUCT)
    parser.add_argument("--out", type=Path, help="a JSON file")
    chosen = parser.parse_args(arguments)
    device = jax.devices()[0].device_kind
    found: dict[str, Any] = {
        "device": device,
        "jax": jax.__version__,
        "flax": flax.__version__,
        "batch_size": chosen.batch_size,
        "product_rate": {
            dtype: product_rate(dtype, chosen.side_of_product) for dtype in chosen.dtypes
        },
        "rows": [],
    }
    print(f"{device}, jax {jax.__version__}, flax {flax.__version__}, batch {chosen.batch_size}")
    for dtype in chosen.dtypes:
        print(f"{dtype}: matrix products at {found['product_rate'][dtype] / 1e12:.4g} TFLOP/s")
        for net in chosen.nets:
            rate = found["product_rate"][dtype]
            row = measure(arch.get(net), dtype, chosen.batch_size, chosen.repeats, rate)
            found["rows"].append(row)
            print("  " + ", ".join(f"{k} {_short(v)}" for k, v in row.items()), flush=True)
            if chosen.out:
                chosen.out.write_text(json.dumps(found, indent=2) + "\n")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def product_rate(dtype: str, side: int) -> float:
    """Floating-point operations a second in a product of two random matrices."""
    a, b = jax.random.normal(jax.random.key(0), (2, side, side), dtype)
    product = jax.jit(jnp.matmul)
    return 2 * side**3 / seconds({"product": lambda: product(a, b)}, 10)["product"]


def measure(
    net: arch.Arch, dtype: str, batch_size: int, repeats: int, product_rate: float
) -> dict[str, Any]:
    """One network's row; what does not fit the device is told by 'error'."""
    row: dict[str, Any] = {"net": net.name, "dtype": dtype}
    try:
        return row | _of_step(net, dtype, batch_size, repeats, product_rate)
    except jax.errors.JaxRuntimeError as error:  # out of memory: the others still have a row
        return row | {"error": str(error).partition("\n")[0]}


def _of_step(
    net: arch.Arch, dtype: str, batch_size: int, repeats: int, product_rate: float
) -> dict[str, Any]:
    side = net.image_size
    model = models.build(net, _CLASSES, "prelu", dtype=dtype)
    pixels = PixelStatistics(jnp.full((side, side, 3), 127.0), jnp.float32(1))
    now = state.create(model, optimizer.sgd(1e-5), pixels, 0)
    rng = np.random.default_rng(0)
    batch = jax.device_put(
        {
            "image": rng.integers(0, 256, (batch_size, side, side, 3)).astype(np.uint8),
            "label": rng.integers(0, _CLASSES, batch_size).astype(np.int32),
        }
    )
    start = time.perf_counter()
    compiled = jax.jit(step.train_step, donate_argnums=0).lower(now, batch).compile()
    compiling = time.perf_counter() - start
    losses = []

    def train() -> jax.Array:
        nonlocal now
        now, metrics = compiled(now, batch)
        losses.append(metrics["loss"])
        return metrics["loss"]

    taken = seconds({"step": train}, repeats)["step"]
    # Forward, and backward to the inputs and to the weights: three passes of multiply-adds.
    operations = 6.0 * arch.multiply_adds(net, _CLASSES) * batch_size
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", math.nan)
    return {
        "images_per_second": batch_size / taken,
        "seconds": taken,
        "of_product_rate": operations / taken / product_rate,
        "compiled_GiB": memory(compiled) / 2**30,
        "peak_GiB_of_process": peak / 2**30,
        "compiling_seconds": compiling,
        "first_loss": float(losses[0]),
        "last_loss": float(losses[-1]),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
