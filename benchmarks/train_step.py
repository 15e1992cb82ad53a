"""A training step of the papers' nets, compared with PyTorch and with the arithmetic.

On a CPU these are the reduced nets, on all cores as in experiments; on a GPU the full-size ones in
bfloat16, batch 128, 224 pixels. Both libraries read uint8 images (on a GPU from its memory) and
compute normalisation, dropout, loss, backward pass and SGD with momentum and decay.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from benchmarks.timing import Ratio, Result, memory, milliseconds, samples, seconds
from benchmarks.training import (
    MEAN,
    MOMENTUM,
    RATE,
    WEIGHT_DECAY,
    Case,
    in_new_process,
    taking,
)
from experiments.harness import machine
from prelu_jax import arch, models

CASES = {
    "cpu": (
        Case(arch.SMALL_14_REDUCED, 64, "relu"),
        Case(arch.SMALL_30_REDUCED, 64, "relu"),
        Case(arch.MODEL_A_REDUCED, 64),
        Case(arch.MODEL_C_REDUCED, 64),
    ),
    "gpu": (
        Case(arch.SMALL_30, 128, "relu", "bfloat16", 1000),
        Case(arch.MODEL_A, 128, "prelu", "bfloat16", 1000),
        Case(arch.MODEL_B, 128, "prelu", "bfloat16", 1000),
        Case(arch.MODEL_C, 128, "prelu", "bfloat16", 1000),
    ),
}
_SIDE_OF_PRODUCT = {"cpu": 2048, "gpu": 8192}  # large enough to reach the device's full rate
_LIMIT_OF_TORCH = {"cpu": 1.0, "gpu": 1 / 1.15}
_UTILISED = {"model_b": 0.5, "model_c": 0.5}  # least share of the product rate on a GPU
_TURN = {"cpu": 10, "gpu": 5}  # steps in a row


def run(cases: Sequence[Case] = (), repeats: int = 7) -> Result:
    """Measure each case's time, images per second, utilisation and memory."""
    device = timing.device()
    result: Result = in_new_process(measure, tuple(cases) or CASES[device], repeats, device)
    return result


def measure(cases: Sequence[Case], repeats: int, device: str) -> Result:
    """Measure the cases in this process, which must not have used JAX before."""
    machine.keep_freed_memory()
    if device == "cpu":
        machine.use_every_core(min(case.batch_size for case in cases))
    rates = {
        dtype: product_rate(dtype, _SIDE_OF_PRODUCT[device])
        for dtype in dict.fromkeys(case.dtype for case in cases)
    }
    results = [_of_case_if_it_fits(case, repeats, device, rates[case.dtype]) for case in cases]
    notes = [
        f"products of {_SIDE_OF_PRODUCT[device]}² matrices in {dtype}: {rate / 1e12:.4g} TFLOP/s"
        for dtype, rate in rates.items()
    ]
    return Result.joined([*results, Result([], [], notes)])


def product_rate(dtype: str, side: int) -> float:
    """Measure floating-point operations per second in a product of two random matrices."""
    a, b = jax.random.normal(jax.random.key(0), (2, side, side), dtype)
    product = jax.jit(jnp.matmul)
    return 2 * side**3 / seconds({"product": lambda: product(a, b)}, 10)["product"]


def _of_case_if_it_fits(case: Case, repeats: int, device: str, rate: float) -> Result:
    try:
        return _of_case(case, repeats, device, rate)
    except jax.errors.JaxRuntimeError as error:  # out of memory; the other cases still run
        return Result([], [], [f"{case.net.name}: {str(error).partition(chr(10))[0]}"])


def _of_case(case: Case, repeats: int, device: str, rate: float) -> Result:
    where = f"{case.net.name}, {case.rectifier}, batch {case.batch_size}, {case.dtype}"
    notes: list[str] = []
    start = time.perf_counter()
    if device == "cpu":
        ours = case.program_on_every_device()
    else:
        compiled, now, on_device = case.compiled()
        notes.append(f"{where}: the compiled step needs {memory(compiled) / 2**30:.3g} GiB")
        ours = taking(compiled, now, on_device)
    jax.block_until_ready(ours())
    notes.append(f"{where}: drawn and compiled in {time.perf_counter() - start:.1f} s")
    programs: dict[str, Callable[[], Any]] = {"prelu_jax": ours}
    if note := timing.absent("PyTorch", "torch"):
        notes.append(note)
    else:
        programs |= _of_torch(case, device, notes)
    taken = samples(programs, repeats, _TURN[device])
    # Three passes of multiply-adds: forward, and backward to the inputs and to the weights.
    operations = 6.0 * arch.multiply_adds(case.net, case.num_classes) * case.batch_size
    rows = {}
    for row in milliseconds(where, taken):
        figures = {
            "images/s": 1e3 * case.batch_size / row.median,
            "of the product rate": 1e3 * operations / row.median / rate,
        }
        rows[row.what] = dataclasses.replace(row, figures=figures)
    one = rows.pop("prelu_jax")
    ratios = []
    if rows:
        best = min(rows, key=lambda what: rows[what].median)
        what = f"time: prelu_jax / the fastest of PyTorch ({best})"
        limit = _LIMIT_OF_TORCH[device]
        ratios.append(Ratio.of(what, where, one.values, rows[best].values, limit))
    if device == "gpu" and case.net.name in _UTILISED:
        what = "half of the product rate / what is used"
        ratios.append(
            Ratio(what, where, _UTILISED[case.net.name] / one.figures["of the product rate"], 1.0)
        )
    return Result([one, *rows.values()], ratios, notes)


def _of_torch(case: Case, device: str, notes: list[str]) -> dict[str, Callable[[], Any]]:
    """Return the same net's step in PyTorch, in its fastest forms: channels last, fused SGD.

    On a GPU it runs under autocast, eager and compiled; on a CPU eager, with the fastest number of
    threads, and also with the channels first. Its scores are compared with ours beforehand.
    """
    import torch

    from benchmarks import torch_net

    place = "cpu" if device == "cpu" else "cuda"
    params = case.state().params
    batch = case.batch()
    labels = torch.from_numpy(batch["label"]).long().to(place)
    pixels = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).to(place)  # channels last
    _check(torch_net.build(case.net, params), case, params, batch)

    def program(channels_last: bool, compiled: bool) -> Callable[[], Any]:
        module = torch_net.build(case.net, params).train().to(place)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        module = module.to(memory_format=layout)
        images = pixels.contiguous(memory_format=layout)
        kernels = [p for p in module.parameters() if p.ndim > 1]
        others = [p for p in module.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": kernels, "weight_decay": WEIGHT_DECAY},
            {"params": others},
        ]
        sgd = torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM, fused=True)

        def loss_of(images: Any) -> Any:
            with torch.autocast(place, torch.bfloat16, enabled=case.dtype == "bfloat16"):
                scores = module((images.float() - MEAN) * case.scale)
            return torch.nn.functional.cross_entropy(scores.float(), labels)

        function = torch.compile(loss_of) if compiled else loss_of

        def train() -> None:
            sgd.zero_grad(set_to_none=True)
            function(images).backward()
            sgd.step()
            if place == "cuda":
                torch.cuda.synchronize()

        return train

    torch.compiler.reset()  # else earlier nets count towards its limit of compilations
    eager = program(channels_last=True, compiled=False)
    programs = {"torch eager, channels last": eager}
    if device == "cpu":
        notes.append(torch_net.use_fastest_threads(eager))
        programs["torch eager, channels first"] = program(channels_last=False, compiled=False)
        return programs
    try:
        compiled = program(channels_last=True, compiled=True)
        compiled()
        programs["torch.compile, channels last"] = compiled
    except Exception as error:  # e.g. because torch.compile finds no C++ compiler
        notes.append(f"not compared: torch.compile ({type(error).__name__})")
    return programs


def _check(module: Any, case: Case, params: Any, batch: dict[str, np.ndarray]) -> None:
    """Check that both compute the same function, in float32 and without dropout."""
    import torch

    few = (batch["image"][:4].astype(np.float32) - MEAN) * np.float32(case.scale)
    with torch.inference_mode():
        theirs = module(torch.from_numpy(few.transpose(0, 3, 1, 2).copy())).numpy()
    net = models.build(case.net, case.num_classes, case.rectifier)
    with jax.default_matmul_precision("highest"):
        ours = np.asarray(net.apply({"params": params}, few))
    size = float(np.abs(ours).max())
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-3 * size)
    assert math.isfinite(size)
