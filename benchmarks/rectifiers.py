"""Speed of PReLU on maps of models A to C, compared with other libraries and with a copy.

A rectifier does almost no arithmetic, so memory limits its speed. Forward it reads x and writes y;
backward it reads x and the gradient of y and writes the gradient of x. The limit is the time for
these bytes at the rate of a copy.
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks.timing import Ratio, Result, absent, device, milliseconds, samples
from benchmarks.training import Case, in_new_process
from experiments.harness import machine
from prelu_jax import arch, prelu, relu

SHAPES = {"A, conv1": (112, 112, 96), "C, conv2": (56, 56, 384), "B, conv4": (14, 14, 512)}
BATCH = {"cpu": 4, "gpu": 128}
DTYPES = ("float32", "bfloat16")
NETS = {"cpu": "small_30_reduced", "gpu": "model_b"}

_LIMIT_OF_COPY = 1 / 0.85
_LIMIT_OF_TORCH = 1 / 2
_LIMIT_OF_STEP = 1.03
_IN_A_ROW, _STEPS_IN_A_ROW = 10, 5

Program = Callable[[], Any]


def run(
    shapes: Mapping[str, Sequence[int]] = SHAPES,
    repeats: int = 15,
    net: str = "",
    batch_size: int | None = None,
) -> Result:
    """Measure every form and type, other libraries, a copy, and a network's step.

    Args:
        shapes: ``(height, width, channels)`` by name.
        repeats: repeats of every program.
        net: network whose step with PReLU is compared with its step with ReLU; if empty, it
            depends on the device.
        batch_size: images; if None, it depends on the device.
    """
    size = batch_size or BATCH[device()]
    results = [
        _of_shape(
            f"{name}, {'×'.join(map(str, (size, *shape)))}, {dtype}", (size, *shape), dtype, repeats
        )
        for name, shape in shapes.items()
        for dtype in DTYPES
    ]
    of_step = in_new_process(
        measure_step,
        arch.get(net or NETS[device()]),
        batch_size or {"cpu": 64, "gpu": 128}[device()],
        repeats,
        device(),
    )
    return Result.joined([*results, of_step])


def _of_shape(where: str, shape: tuple[int, ...], dtype: str, repeats: int) -> Result:
    forward, backward = _programs(shape, dtype)
    notes: list[str] = []
    if note := absent("PyTorch", "torch"):
        notes.append(note)
    else:
        of_torch = _programs_of_torch(shape, dtype, notes)
        forward |= of_torch[0]
        backward |= of_torch[1]
    x = _normal(0, shape, dtype)
    copy = jax.jit(lambda x: x + jnp.ones((), x.dtype))
    taken = samples(
        {"copy": lambda: copy(x)}
        | {f"{name}, forward": program for name, program in forward.items()}
        | {f"{name}, backward": program for name, program in backward.items()},
        repeats,
        _IN_A_ROW,
    )
    measured = milliseconds(where, taken)
    copied = 2 * x.nbytes / measured[0].median
    rows = {}
    for row in measured:
        rate = x.nbytes * (3 if row.what.endswith("backward") else 2) / row.median
        figures = {"GB/s": rate / 1e6, "of a copy": rate / copied}
        rows[row.what] = dataclasses.replace(row, figures=figures)
    at_copy = [1.5 * copy for copy in measured[0].values]  # three arrays instead of two
    ratios = [
        Ratio.of(
            f"time: {form} backward / x, g and dx at the rate of a copy",
            where,
            rows[f"{form}, backward"].values,
            at_copy,
            _LIMIT_OF_COPY,
        )
        for form in FORMS
    ]
    for form in FORMS:
        ours = rows[f"{form}, backward"].values
        peers = {
            name: rows[f"{name}, backward"].values
            for name in (f"torch, {form}", f"torch.compile, {form}", "flax.linen.PReLU")
            if f"{name}, backward" in rows and (form == "shared" or name.endswith(form))
        }
        if f"torch, {form}" in peers:
            what = f"time: {form} backward / PyTorch's, eager"
            ratios.append(Ratio.of(what, where, ours, peers[f"torch, {form}"], _LIMIT_OF_TORCH))
        if peers:
            best = min(peers, key=lambda name: statistics.median(peers[name]))
            what = f"time: {form} backward / the fastest peer ({best.partition(',')[0]})"
            ratios.append(Ratio.of(what, where, ours, peers[best], 1.0))
    return Result(list(rows.values()), ratios, list(dict.fromkeys(notes)))


FORMS = ("channel-wise", "shared")


def _normal(seed: int, shape: tuple[int, ...], dtype: str) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(dtype)


def _programs(shape: tuple[int, ...], dtype: str) -> tuple[dict[str, Program], dict[str, Program]]:
    """Return this package's rectifiers, Flax's and ReLU, compiled forward and backward."""
    x, g = _normal(0, shape, dtype), _normal(1, shape, dtype)
    theirs = nn.PReLU()
    functions: dict[str, tuple[Callable[..., Any], tuple[jax.Array, ...]]] = {
        "channel-wise": (prelu, (jnp.full(shape[-1], 0.25),)),
        "shared": (prelu, (jnp.float32(0.25),)),
        "flax.linen.PReLU": (
            lambda x, slope: theirs.apply({"params": {"negative_slope": slope}}, x),
            (jnp.float32(0.25),),
        ),
        "ReLU": (relu, ()),
    }
    forward: dict[str, Program] = {}
    backward: dict[str, Program] = {}
    for name, (function, slopes) in functions.items():

        def pull_back(g: jax.Array, *arguments: jax.Array, function: Any = function) -> Any:
            return jax.vjp(function, *arguments)[1](g)

        forward[name] = functools.partial(jax.jit(function), x, *slopes)
        backward[name] = functools.partial(jax.jit(pull_back), g, x, *slopes)
    return forward, backward


def _programs_of_torch(
    shape: tuple[int, ...], dtype: str, notes: list[str]
) -> tuple[dict[str, Program], dict[str, Program]]:
    """Return PyTorch's rectifiers on the same maps, channels last, eager and compiled."""
    import torch

    torch.compiler.reset()  # else earlier shapes count towards its limit of compilations
    place = "cuda" if torch.cuda.is_available() and device() == "gpu" else "cpu"
    rng = np.random.default_rng(0)

    def map_of(shape: tuple[int, ...]) -> Any:
        array = torch.from_numpy(rng.standard_normal(shape, np.float32))
        return array.to(place, getattr(torch, dtype)).permute(0, 3, 1, 2)

    x, g = map_of(shape).requires_grad_(), map_of(shape)
    forward: dict[str, Program] = {}
    backward: dict[str, Program] = {}
    for form, count in (("channel-wise", shape[-1]), ("shared", 1)):
        slope = torch.full((count,), 0.25, device=place, dtype=x.dtype, requires_grad=True)
        for how, function in (
            ("torch", torch.nn.functional.prelu),
            ("torch.compile", torch.compile(torch.nn.functional.prelu, dynamic=False)),
        ):
            name = f"{how}, {form}"
            try:
                y = function(x, slope)
                torch.autograd.grad(y, (x, slope), g, retain_graph=True)
            except Exception as error:  # e.g. because torch.compile finds no C++ compiler
                notes.append(f"not compared: {name} ({type(error).__name__})")
                continue

            def there(function: Any = function, slope: Any = slope) -> None:
                with torch.no_grad():
                    function(x, slope)
                _wait(torch, place)

            def back(y: Any = y, slope: Any = slope) -> None:
                torch.autograd.grad(y, (x, slope), g, retain_graph=True)
                _wait(torch, place)

            forward[name], backward[name] = there, back
    return forward, backward


def _wait(torch: Any, place: str) -> None:
    if place == "cuda":
        torch.cuda.synchronize()


def measure_step(net: arch.Arch, batch_size: int, repeats: int, backend: str) -> Result:
    """Measure a network's training step with channel-wise PReLUs and with ReLUs."""
    machine.keep_freed_memory()
    if backend == "cpu":
        machine.use_every_core(batch_size)
    dtype = {"cpu": "float32", "gpu": "bfloat16"}[backend]
    where = f"{net.name}, batch {batch_size}, {dtype}"
    programs = {}
    for rectifier in ("relu", "prelu"):
        case = Case(net, batch_size, rectifier, dtype)
        program = case.program_on_every_device() if backend == "cpu" else case.program()
        programs[f"step, {rectifier}"] = program
    rows = milliseconds(where, samples(programs, repeats, _STEPS_IN_A_ROW))
    relu, prelu = (row.values for row in rows)
    what = "time: a step with PReLU / with ReLU"
    return Result(rows, [Ratio.of(what, where, prelu, relu, _LIMIT_OF_STEP)])
