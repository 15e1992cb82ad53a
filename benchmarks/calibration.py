"""What a calibration costs, beside a forward pass and beside other libraries' loops over layers."""

import copy
import importlib.util
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import prelu_jax as pj
from benchmarks.timing import Ratio, Result, seconds
from prelu_jax import arch, models
from prelu_jax.datadep import Lsuv, WithinLayer, plan
from prelu_jax.datadep.walk import Control, Correction, OnePass, Walk

_LSUV = Lsuv(orthonormal=False)  # all start from the same weights


@jax.default_matmul_precision("highest")
def run(net: str = "small_30_reduced", batch_size: int = 64, repeats: int = 20) -> Result:
    """Time of the pass over a forward pass; time of the whole over other libraries' calls.

    What is installed of them is compared. Printed beside: the time with compilation, and how far
    from a std of 1 each library leaves the layer that is farthest. All of it, the forward pass too,
    is computed in float32, as `calibrate` does by itself.
    """
    described = arch.get(net)
    model = models.build(described, 10, "relu")
    side = described.image_size
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((batch_size, side, side, 3), np.float32))
    variables = model.init(jax.random.key(0), images)
    where = f"{net}, batch {batch_size}"
    ratios = _of_the_pass(model, variables, images, where, repeats)

    def ours() -> Any:
        return pj.calibrate(model, variables, images, method=_LSUV)

    start = time.perf_counter()
    calibrated, _ = ours()
    taken = time.perf_counter() - start
    _print("calibrate, the first call, which compiles", taken, model, calibrated, images)
    few = max(1, repeats // 6)
    if _installed("torch", "lsuv"):
        ratios.append(_beside_lsuv(described, ours, model, variables, images, where, few))
    if _installed("anyinit"):
        ratios.append(_beside_anyinit(ours, model, variables, images, where, few))
    return Result([], ratios)


def _of_the_pass(
    model: nn.Module, variables: Any, images: jax.Array, where: str, repeats: int
) -> list[Ratio]:
    planned = plan.make(model, variables, images)
    control = Control(
        {layer.parameter: jnp.array(True) for layer in planned.layers},
        {
            layer.parameter: Correction(jnp.ones(layer.channels), jnp.zeros(layer.channels))
            for layer in planned.layers
        },
    )
    replicated = {
        "variables": variables,
        "key": jax.random.key(0),
        "rngs": None,
        "control": control,
    }

    def compiled(method: OnePass) -> Any:
        probe = planned.probe
        walk = Walk(probe.view, planned.layers, method, probe.call_kwargs, None)
        return jax.jit(lambda *args: walk(*args)).lower(replicated, images).compile()

    forward = jax.jit(model.apply).lower(variables, images).compile()
    within_layer, lsuv = compiled(WithinLayer()), compiled(_LSUV)
    taken = seconds(
        {
            "forward": lambda: forward(variables, images),
            "within_layer": lambda: within_layer(replicated, images),
            "lsuv": lambda: lsuv(replicated, images),
        },
        repeats,
    )
    return [
        Ratio(f"time: {name}'s pass / a forward pass", where, taken[name] / taken["forward"], 2.0)
        for name in ("within_layer", "lsuv")
    ]


def _beside_lsuv(
    net: arch.Arch,
    ours: Any,
    model: nn.Module,
    variables: Any,
    images: jax.Array,
    where: str,
    repeats: int,
) -> Ratio:
    import lsuv
    import torch

    from benchmarks import torch_net

    module = torch_net.build(net, variables["params"])
    batch = torch.tensor(np.asarray(images).transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        scores = module(batch).numpy()
    torch.set_num_threads(_best_threads(lambda: module(batch)))
    size = float(np.abs(scores).max())
    np.testing.assert_allclose(
        scores, np.asarray(model.apply(variables, images)), rtol=0, atol=1e-4 * size
    )

    def theirs() -> Any:
        fresh = copy.deepcopy(module)  # it changes what it is given
        return lsuv.lsuv_with_singlebatch(fresh, batch, do_orthonorm=False, verbose=False)

    def planning() -> Any:
        plan.make(model, variables, images)

    taken = seconds({"ours": ours, "planning": planning, "theirs": theirs}, repeats)
    _print("calibrate", taken["ours"], model, ours()[0], images)
    print(f"        ... of it to find the layers, on shapes: {taken['planning']:.3f} s")
    after = {"params": torch_net.params_of(theirs())}
    _print(
        f"lsuv (PyTorch, threads: {torch.get_num_threads()})", taken["theirs"], model, after, images
    )
    return Ratio("time: calibrate / lsuv (PyTorch)", where, taken["ours"] / taken["theirs"], 0.1)


def _best_threads(forward: Any) -> int:
    """PyTorch's threads wait for each other: where cores are taken, one is the fastest."""
    import torch

    taken = {}
    for threads in {1, torch.get_num_threads()}:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            taken[threads] = seconds({"forward": forward}, 3)["forward"]
    return min(taken, key=lambda threads: taken[threads])


def _beside_anyinit(
    ours: Any, model: nn.Module, variables: Any, images: jax.Array, where: str, repeats: int
) -> Ratio:
    import anyinit

    def theirs() -> Any:
        return anyinit.initialize(model, "empirical", images, seed=0, params=variables)

    taken = seconds({"ours": ours, "theirs": theirs}, repeats)
    report = theirs()
    _print("AnyInit, empirical", taken["theirs"], model, report.params, images)
    # Its own target is another one: E[f(y)²] = 1 behind every rectifier.
    off = [abs(layer.measured - 1) for layer in report.layers if layer.constrained]
    print(f"        ... farthest from its own target, by its own report: {max(off):.2g}")
    return Ratio("time: calibrate / AnyInit", where, taken["ours"] / taken["theirs"], 0.1)


def _installed(*modules: str) -> bool:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        print(f"        not compared: {', '.join(missing)} not installed (pip install -e .[bench])")
    return not missing


def _print(what: str, taken: float, model: nn.Module, variables: Any, images: jax.Array) -> None:
    far = farthest(model, variables, images)
    print(f"        {what}: {taken:.3f} s; farthest std from 1: {far:.2g}", flush=True)


def farthest(model: nn.Module, variables: Any, images: jax.Array) -> float:
    """The largest |std(y) − 1| over the outputs y of the affine layers, in float64."""

    def affine(module: nn.Module, _: str) -> bool:
        return isinstance(module, nn.Conv | nn.Dense)

    _, captured = model.apply(
        variables, images, capture_intermediates=affine, mutable=["intermediates"]
    )
    outputs = jax.tree.leaves(captured["intermediates"])
    return max(abs(float(np.std(np.asarray(y, np.float64))) - 1) for y in outputs)
