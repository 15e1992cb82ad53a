"""Time of a calibration, compared with a forward pass and other libraries, by depth.

The nets are `small_30_reduced` with more or fewer layers. All computation, the forward pass
included, is in float32, as in `calibrate`. The installed libraries are compared by time and by the
largest distance of a layer's std from 1 after their calibration.
"""

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import prelu_jax as pj
from benchmarks.growth import exponent_row, of_depth
from benchmarks.timing import Ratio, Result, Row, absent, milliseconds, samples
from prelu_jax import arch, models
from prelu_jax.datadep import Lsuv, WithinLayer, plan
from prelu_jax.datadep.calibration_pass import CalibrationPass, Control
from prelu_jax.datadep.channels import Correction
from prelu_jax.datadep.methods import OnePass

_LSUV = Lsuv(orthonormal=False)  # so that all libraries start from the same weights
_RATIO_AT = 30  # layers at which other libraries are compared by a ratio
_LINEAR = 1.2  # limit of the exponent in depth of a linear time, with a margin for noise
_FAR = "farthest std from 1"

_FORWARD, _CALL, _FIRST = "forward pass", "calibrate", "calibrate, the first call"
_PASSES = {"within_layer's pass": WithinLayer(), "lsuv's pass": _LSUV}


@dataclasses.dataclass(frozen=True)
class _Net:
    """A network of a given depth with its variables and images."""

    net: arch.Arch
    where: str
    model: nn.Module
    variables: Any
    images: jax.Array

    @classmethod
    def of(cls, net: arch.Arch, where: str, batch_size: int) -> "_Net":
        model = models.build(net, 10, "relu")
        shape = (batch_size, net.image_size, net.image_size, 3)
        images = jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))
        return cls(net, where, model, model.init(jax.random.key(0), images), images)

    def calibrate(self) -> Any:
        return pj.calibrate(self.model, self.variables, self.images, method=_LSUV)

    def farthest(self, variables: Any) -> dict[str, float]:
        return {_FAR: farthest(self.model, variables, self.images)}


@dataclasses.dataclass(frozen=True)
class _Peer:
    """Another library: its call, the variables that it returns, and its own figures."""

    call: Callable[[], Any]
    variables: Callable[[Any], Any]
    figures: Callable[[Any], dict[str, float]] = lambda _: {}


@jax.default_matmul_precision("highest")
def run(
    base: str = "small_30_reduced",
    depths: Sequence[int] = (8, 30, 100),
    batch_size: int = 64,
    repeats: int = 20,
) -> Result:
    """Measure a pass, a call and other libraries' calls, and their exponents in depth.

    Our first call compiles; the later ones reuse its programs.

    Args:
        base: the network whose depth is varied.
        depths: numbers of layers.
        batch_size: images per calibration.
        repeats: repeats of our programs; other libraries, which take seconds, run less often in
            deeper nets.
    """
    absences = {name: absent(name, *modules) for name, (_, modules) in _PEERS.items()}
    results, peers = [], {name: make for name, (make, _) in _PEERS.items() if not absences[name]}
    for depth in depths:
        net = _Net.of(of_depth(arch.get(base), depth), f"{depth} layers", batch_size)
        results.append(_own(net, repeats))
        few = max(1, 5 * repeats // depth)
        results += [_beside(net, name, make(net), few) for name, make in peers.items()]
    measured = Result.joined(results)
    once = [
        f"{row.what} with {row.where}: one call, none before it"
        for row in measured.rows
        if row.what in peers and len(row.values) == 1
    ]
    notes = Result([], [], [*filter(None, absences.values()), *once])
    return Result.joined([measured, _growth(measured.rows, depths), notes])


def _growth(rows: Sequence[Row], depths: Sequence[int]) -> Result:
    """Return the exponent of each program's time, with limits for this package's programs."""
    where = f"{depths[0]} to {depths[-1]} layers"
    medians: dict[str, list[float]] = {}
    for row in rows:
        medians.setdefault(row.what, []).append(row.median)
    grown = {what: exponent_row(where, what, depths, times) for what, times in medians.items()}
    ours = (*_PASSES, _CALL, _FIRST)
    return Result(
        list(grown.values()),
        [Ratio(f"exponent in depth: {what}", where, grown[what].median, _LINEAR) for what in ours],
    )


def _own(net: _Net, repeats: int) -> Result:
    """Measure this package's first call, then its programs and a forward pass."""
    first = _seconds(net.calibrate)
    calibrated, _ = net.calibrate()
    forward = jax.jit(net.model.apply).lower(net.variables, net.images).compile()
    programs = {_FORWARD: lambda: forward(net.variables, net.images)}
    programs |= {name: _compiled_pass(net, method) for name, method in _PASSES.items()}
    programs[_CALL] = net.calibrate
    rows = milliseconds(net.where, samples(programs, repeats) | {_FIRST: [first]})
    rows[-2:] = [dataclasses.replace(row, figures=net.farthest(calibrated)) for row in rows[-2:]]
    taken = {row.what: row.values for row in rows}
    return Result(
        rows,
        [
            Ratio.of(f"time: {name} / a {_FORWARD}", net.where, taken[name], taken[_FORWARD], 1.5)
            for name in _PASSES
        ],
    )


def _seconds(program: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(program())
    return time.perf_counter() - start


def _compiled_pass(net: _Net, method: OnePass) -> Callable[[], Any]:
    planned = plan.make(net.model, net.variables, net.images)
    control = {
        layer.number: Control(
            jnp.array(True), Correction(jnp.ones(layer.shape), jnp.zeros(layer.shape))
        )
        for layer in planned.layers
    }
    replicated = {
        "variables": net.variables,
        "key": jax.random.key(0),
        "rngs": None,
        "places": planned.places,
        "control": control,
    }
    calibration = CalibrationPass(planned.model, planned.layers, method)
    compiled = jax.jit(lambda *args: calibration(*args)).lower(replicated, net.images).compile()
    return lambda: compiled(replicated, net.images)


def _beside(net: _Net, name: str, peer: _Peer, repeats: int) -> Result:
    """Measure another library's call; at `_RATIO_AT` layers, compare it with ours by a ratio."""
    returned = None

    def theirs() -> None:
        nonlocal returned
        returned = peer.call()

    programs = {_CALL: net.calibrate, name: theirs}
    if repeats > 1:
        taken = samples(programs, repeats)
    else:  # it takes a minute, so no call precedes it to compile
        taken = {what: [_seconds(program)] for what, program in programs.items()}
    rows = {row.what: row for row in milliseconds(net.where, taken)}
    figures = net.farthest(peer.variables(returned)) | peer.figures(returned)
    row = dataclasses.replace(rows[name], figures=figures)
    if net.where != f"{_RATIO_AT} layers":
        return Result([row], [])
    what = f"time: {_CALL} / {name}"
    return Result([row], [Ratio.of(what, net.where, rows[_CALL].values, row.values, 0.1)])


def _torch(net: _Net) -> _Peer:
    import lsuv
    import torch

    from benchmarks import torch_net

    module = torch_net.build(net.net, net.variables["params"])
    batch = torch.tensor(np.asarray(net.images).transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        scores = module(batch).numpy()
    with torch.inference_mode():
        torch_net.use_fastest_threads(lambda: module(batch))
    ours = np.asarray(net.model.apply(net.variables, net.images))
    size = float(np.abs(scores).max())
    np.testing.assert_allclose(scores, ours, rtol=0, atol=1e-4 * size)

    def call() -> Any:
        fresh = copy.deepcopy(module)  # because the call changes its argument
        return lsuv.lsuv_with_singlebatch(fresh, batch, do_orthonorm=False, verbose=False)

    return _Peer(call, lambda module: {"params": torch_net.params_of(module)})


def _anyinit(net: _Net) -> _Peer:
    import anyinit

    def call() -> Any:
        return anyinit.initialize(net.model, "empirical", net.images, seed=0, params=net.variables)

    def figures(report: Any) -> dict[str, float]:
        # AnyInit has another target: E[f(y)²] = 1 after every rectifier.
        off = [abs(layer.measured - 1) for layer in report.layers if layer.constrained]
        return {"farthest from its own target": max(off)}

    return _Peer(call, lambda report: report.params, figures)


# name -> (function that returns the peer, modules that it needs)
_PEERS: Mapping[str, tuple[Callable[[_Net], _Peer], tuple[str, ...]]] = {
    "lsuv (PyTorch)": (_torch, ("torch", "lsuv")),
    "AnyInit, empirical": (_anyinit, ("anyinit",)),
}


def farthest(model: nn.Module, variables: Any, images: jax.Array) -> float:
    """Return the largest |std(y) − 1| over the outputs y of the affine layers, in float64."""

    def affine(module: nn.Module, _: str) -> bool:
        return isinstance(module, nn.Conv | nn.Dense)

    _, captured = model.apply(
        variables, images, capture_intermediates=affine, mutable=["intermediates"]
    )
    outputs = jax.tree.leaves(captured["intermediates"])
    return max(abs(float(np.std(np.asarray(y, np.float64))) - 1) for y in outputs)
