"""Time to read, measure and calibrate a deep net, with its layers scanned and unrolled.

The growth of planning and tracing with the number of layers is measured too. XLA's own time grows
faster than the number of unrolled layers (docs/findings/compilation.md).
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.growth import exponent_row
from benchmarks.timing import Ratio, Result, Row, milliseconds, samples
from prelu_jax import signal
from prelu_jax.datadep import WithinLayer, plan
from prelu_jax.datadep.calibration_pass import CalibrationPass, Control
from prelu_jax.datadep.channels import Correction
from prelu_jax.tracing import models

_SECONDS = 1.0  # limit for planning
_Net = tuple[Callable[..., Any], Any]  # a function, and its layers
_LINEAR = 1.1  # limit of the exponent of time in the number of layers


def _block(x: jax.Array, layer: Any) -> tuple[jax.Array, None]:
    numbers = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, layer["w"], (1, 1), "SAME", dimension_numbers=numbers)
    return x + jax.nn.relu(y + layer["b"]), None


def _scanned(layers: Any, x: jax.Array) -> jax.Array:
    return jax.lax.scan(_block, x, layers)[0]


def _unrolled(layers: Any, x: jax.Array) -> jax.Array:
    for layer in layers:
        x, _ = _block(x, layer)
    return x


@jax.default_matmul_precision("highest")
def run(
    depth: int = 100,
    width: int = 32,
    size: int = 8,
    batch_size: int = 64,
    depths: Sequence[int] = (30, 100, 300),
) -> Result:
    """Measure planning, tracing, compiling and a calibrating pass of a residual net of rectifiers.

    Args:
        depth: number of layers.
        width: channels of each layer.
        size: side of the maps.
        batch_size: images of the measurement and the calibration.
        depths: numbers of layers for the growth of planning and tracing.
    """
    results, compiled = [], {}
    ways, x = _ways(depth, width, size, batch_size)
    for way, (net, layers) in ways.items():
        result, compiled[way] = _of_net(net, layers, x, f"{depth} layers, {way}")
        results.append(result)
    ratios = [
        Ratio(f"compile: {what}, scanned / unrolled", f"{depth} layers", ours / theirs, 0.2)
        for what, ours in compiled["scanned"].items()
        for theirs in (compiled["unrolled"][what],)
    ]
    grown = _growth({n: _ways(n, width, size, batch_size) for n in depths})
    return Result.joined([*results, Result([], ratios), grown])


def _ways(depth: int, width: int, size: int, batch_size: int) -> tuple[Mapping[str, _Net], Any]:
    """Return the net with its layers scanned and unrolled, and a batch."""
    rng = np.random.default_rng(0)
    kernels = rng.standard_normal((depth, 3, 3, width, width), np.float32) / (3 * width**0.5)
    stacked = {"w": jnp.asarray(kernels), "b": jnp.zeros((depth, width))}
    listed = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(depth)]
    x = jnp.asarray(rng.standard_normal((batch_size, size, size, width), np.float32))
    return {"scanned": (_scanned, stacked), "unrolled": (_unrolled, listed)}, x


def _growth(nets: Mapping[int, tuple[Mapping[str, _Net], Any]]) -> Result:
    """Measure how the processor time of planning and of tracing grows with the number of layers."""
    depths, rows, ratios = list(nets), [], []
    for way in ("scanned", "unrolled"):
        seconds: dict[str, list[float]] = {}
        for ways, x in nets.values():
            for what, value in _before_xla(*ways[way], x).items():
                seconds.setdefault(what, []).append(value)
        for what, values in seconds.items():
            of_depths = zip(depths, values, strict=True)
            rows += [Row(f"{n} layers, {way}", what, "s", [value]) for n, value in of_depths]
            row = exponent_row(way, what, depths, values)
            rows.append(row)
            ratios.append(Ratio(f"growth: exponent of {what}", way, row.median, _LINEAR))
    return Result(rows, ratios)


def _before_xla(net: Callable[..., Any], layers: Any, x: jax.Array) -> dict[str, float]:
    """Return processor seconds of planning, and of tracing and lowering each program."""
    planned, planning = _timed(lambda: plan.make(net, layers, x), time.process_time)
    seconds = {"planning, processor time": planning}
    for what, lower in _programs(planned, net, layers, x)[1].items():
        _, seconds[f"tracing and lowering: {what}"] = _timed(lower, time.process_time)
    return seconds


def _of_net(
    net: Callable[..., Any], layers: Any, x: jax.Array, where: str
) -> tuple[Result, dict[str, float]]:
    """Measure one net; return its rows and its compile times by program."""
    planned, planning = _timed(lambda: plan.make(net, layers, x))
    replicated, lowered = _programs(planned, net, layers, x)
    seconds = {}
    programs = {}
    for what, lower in lowered.items():
        programs[what], seconds[what] = _timed(functools.partial(_compiled, lower))
    forward = jax.jit(net).lower(layers, x).compile()
    rows = milliseconds(
        where,
        samples(
            {
                "forward pass": lambda: forward(layers, x),
                "calibrating pass": lambda: programs["calibrating pass"](replicated, x),
            },
            20,
        ),
    )
    a_pass, calibrating = (row.values for row in rows)
    times = {"planning": planning} | {f"compiling: {what}": s for what, s in seconds.items()}
    rows += [Row(where, what, "s", [value]) for what, value in times.items()]
    ratios = [
        Ratio("time: planning / a second", where, planning / _SECONDS, 1.0),
        Ratio.of("time: calibrating pass / forward pass", where, calibrating, a_pass, 1.5),
    ]
    return Result(rows, ratios), seconds


def _programs(
    planned: plan.Plan, net: Callable[..., Any], layers: Any, x: jax.Array
) -> tuple[dict[str, Any], dict[str, Callable[[], Any]]]:
    """Return the first argument of a calibrating pass, and functions that lower each program."""
    _, state = models.of(net, layers)
    calibration = CalibrationPass(planned.model, planned.layers, WithinLayer())
    probe = signal.prepare(net, layers, x)
    replicated = {
        "variables": state,
        "key": jax.random.key(0),
        "rngs": None,
        "places": planned.places,
        "control": {
            layer.number: Control(
                jnp.array(True), Correction(jnp.ones(layer.shape), jnp.zeros(layer.shape))
            )
            for layer in planned.layers
        },
    }
    lowered: dict[str, Callable[[], Any]] = {
        "calibrating pass": functools.partial(jax.jit(calibration.__call__).lower, replicated, x),
        "probe": functools.partial(jax.jit(probe.statistics).lower, state, x),
    }
    return replicated, lowered


def _compiled(lower: Callable[[], Any]) -> Any:
    return lower().compile()


def _timed(
    function: Callable[[], Any], clock: Callable[[], float] = time.perf_counter
) -> tuple[Any, float]:
    start = clock()
    value = function()
    return value, clock() - start
