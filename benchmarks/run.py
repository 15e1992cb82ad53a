"""Speed and memory against peers and limits: tables of medians, and ratios with their limits.

    python -m benchmarks.run [NAME ...] [--device=gpu] [--out=DIR]

Without names, all benchmarks of the device. A table is printed for each; --out also writes
DIR/NAME.json with the hardware and the versions. Exit status 1: a ratio is over its limit, or a
benchmark failed.
"""

import argparse
import dataclasses
import datetime
import importlib
import importlib.metadata
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.timing import Ratio, Result, markdown
from experiments.harness import machine
from prelu_jax import names

# name of the module -> where it says something. Modules are imported when they are run: a machine
# with a GPU need not have what only those of the CPU use.
BENCHMARKS = {
    "signal_probe": ("cpu",),
    "calibration": ("cpu",),
    "scanned": ("cpu",),
    "rectifiers": ("cpu", "gpu"),
    "train_step": ("cpu", "gpu"),
    "growth": ("cpu", "gpu"),
    "start_up": ("cpu", "gpu"),
    "scaling": ("cpu",),
    "input_scaling": ("cpu",),
    "input_pipeline": ("cpu",),
}
_MODULES = {"scaling": "scaling_tables"}
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch", "triton")


def main(arguments: Sequence[str]) -> int:
    """Runs the chosen benchmarks one after another; what each found is written at once."""
    parser = argparse.ArgumentParser(
        "benchmarks.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--out", type=Path, help="a folder, made if it is not there")
    chosen = parser.parse_args(arguments)
    for name in chosen.names:
        names.check("benchmark", name, BENCHMARKS)
    # PyTorch has to find memory beside JAX.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    machine.keep_freed_memory()  # as experiments do
    found = _machine(chosen.device)
    print(", ".join(f"{key} {value}" for key, value in found.items()))
    if chosen.out:
        try:
            chosen.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"--out={chosen.out} cannot be made ({error.strerror}).") from error
    of_device = [name for name, devices in BENCHMARKS.items() if chosen.device in devices]
    return max([_run(name, found, chosen.out) for name in chosen.names or of_device])


def module(name: str) -> str:
    """Where a benchmark is; it has a function ``run``, without arguments, that gives a `Result`."""
    return f"benchmarks.{_MODULES.get(name, name)}"


def _run(name: str, on: dict[str, str], out: Path | None) -> int:
    """Runs one benchmark; its exit status."""
    print(f"\n## {name}", flush=True)
    began, load = time.monotonic(), os.getloadavg()[0]
    try:
        result: Result = importlib.import_module(module(name)).run()
    except Exception:  # the others still say what they find
        traceback.print_exc()
        return 1
    seconds = time.monotonic() - began
    for lines in (
        markdown(result.rows) if result.rows else (),
        map(str, result.ratios),
        result.notes,
    ):
        print()
        print(*lines, sep="\n")
    print(f"\n{name} took {seconds:.0f} s.", flush=True)
    if out:
        today = datetime.date.today().isoformat()
        found = {"benchmark": name, "date": today, "machine": on, "load before": round(load, 1)}
        found["seconds"] = round(seconds, 1)
        text = json.dumps(found | dataclasses.asdict(result), indent=1, ensure_ascii=False)
        try:
            (out / f"{name}.json").write_text(text + "\n")
        except OSError as error:
            print(
                f"error: {out / name}.json cannot be written ({error.strerror}).", file=sys.stderr
            )
            return 1
    return int(any(map(Ratio.is_over, result.ratios)))


def _machine(device: str) -> dict[str, str]:
    """Hardware and versions.

    Raises:
        ValueError: JAX has no such device.
    """
    import jax  # after the environment is set

    if device != jax.default_backend():
        raise ValueError(
            f"--device is {device}, but JAX computes on {jax.default_backend()} here. Install "
            "JAX for the GPU (`pip install -e '.[cuda]'`), or give --device=cpu."
        )
    found = {
        "device": jax.devices()[0].device_kind if device == "gpu" else _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """The name that Linux gives the processor, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named: Any = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ValueError as error:
        sys.exit(f"error: {error}")
