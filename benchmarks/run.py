"""Command that runs the benchmarks and compares their results with goals.

    python -m benchmarks.run [NAME ...] [--device=gpu] [--out=DIR]

Without names, it runs all benchmarks of the device. It prints a table for each; --out also writes
DIR/NAME.json with the hardware and the versions. Missed goals are listed. The exit status is 1 if a
goal that benchmarks/results has as met is missed by more than its spread, or a benchmark failed.
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
from prelu_jax import extras, names

# name of the module -> devices for which it is meant. Modules are imported when they run, so that a
# machine with a GPU need not have the packages that only CPU benchmarks use.
BENCHMARKS = {
    "signal_probe": ("cpu",),
    "calibration": ("cpu",),
    "scanned": ("cpu",),
    "train_step": ("cpu", "gpu"),  # the first on a GPU, which may be lent for minutes
    "rectifiers": ("cpu", "gpu"),
    "growth": ("cpu", "gpu"),
    "start_up": ("cpu", "gpu"),
    "scaling": ("cpu",),
    "input_scaling": ("cpu",),
    "input_pipeline": ("cpu",),
}
RESULTS = Path(__file__).parent / "results"  # of the last recorded run, by device
_MODULES = {"scaling": "scaling_tables"}
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch", "triton")


def main(arguments: Sequence[str]) -> int:
    """Run the chosen benchmarks in turn; each writes its results when it ends."""
    parser = argparse.ArgumentParser(
        "benchmarks.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--out", type=Path, help="a folder, created if it does not exist")
    chosen = parser.parse_args(arguments)
    for name in chosen.names:
        names.check("benchmark", name, BENCHMARKS)
    # So that JAX leaves memory for PyTorch.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    machine.keep_freed_memory()  # as experiments do
    facts = _machine(chosen.device)
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    if chosen.out:
        try:
            chosen.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"--out={chosen.out} cannot be created ({error.strerror}). Choose another folder."
            ) from error
    of_device = [name for name, devices in BENCHMARKS.items() if chosen.device in devices]
    return max([_run(name, chosen.device, facts, chosen.out) for name in chosen.names or of_device])


def module(name: str) -> str:
    """Return the name of a benchmark's module, whose ``run()`` returns a `Result`."""
    return f"benchmarks.{_MODULES.get(name, name)}"


def recorded(name: str, device: str) -> dict[tuple[str, str], Ratio]:
    """Return the recorded ratios of a benchmark, by quantities and case."""
    try:
        text = (RESULTS / device / f"{name}.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    ratios = (Ratio(**fields) for fields in json.loads(text)["ratios"])
    return {(ratio.what, ratio.where): ratio for ratio in ratios}


def _run(name: str, device: str, on: dict[str, str], out: Path | None) -> int:
    """Run one benchmark and return its exit status."""
    print(f"\n## {name}", flush=True)
    before = recorded(name, device)
    began, load = time.monotonic(), os.getloadavg()[0]
    try:
        with extras.needed(f"benchmark {name!r}", "bench"):
            result: Result = importlib.import_module(module(name)).run()
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Exception:  # so that the other benchmarks still run
        traceback.print_exc()
        return 1
    seconds = time.monotonic() - began
    if out:
        today = datetime.date.today().isoformat()
        facts = {"benchmark": name, "date": today, "machine": on, "load before": round(load, 1)}
        facts["seconds"] = round(seconds, 1)
        text = json.dumps(facts | dataclasses.asdict(result), indent=1, ensure_ascii=False)
        try:
            (out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            print(
                f"error: {out / name}.json cannot be written ({error.strerror}).", file=sys.stderr
            )
            return 1
    for lines in (
        markdown(result.rows) if result.rows else (),
        map(str, result.ratios),
        result.notes,
    ):
        print()
        print(*lines, sep="\n")
    lost = [
        ratio for ratio in result.ratios if ratio.is_lost(before.get((ratio.what, ratio.where)))
    ]
    for ratio in lost:
        print(f"\nMet on record, now missed by more than the spread: {ratio.what} [{ratio.where}]")
    print(f"\n{name} took {seconds:.0f} s.", flush=True)
    return int(bool(lost))


def _machine(device: str) -> dict[str, str]:
    """Return the hardware and the versions of packages.

    Raises:
        ValueError: JAX has no such device.
    """
    import jax  # imported after the environment is set

    if device != jax.default_backend():
        raise ValueError(
            f"--device is {device}, but JAX computes on {jax.default_backend()} here. Install "
            "JAX for the GPU (`pip install -e '.[cuda]'`), or give --device=cpu."
        )
    facts = {
        "device": jax.devices()[0].device_kind if device == "gpu" else _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return facts


def _processor() -> str:
    """Return the processor's name as given by Linux, else its architecture."""
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
