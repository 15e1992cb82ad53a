"""python -m benchmarks.run [NAME ...]: all benchmarks or some; exit status 1 if one is over."""

import platform
import sys
from collections.abc import Callable

import flax
import jax

from benchmarks import calibration, input_scaling, scaling_tables, signal_probe
from benchmarks.timing import Ratio
from prelu_jax import names

BENCHMARKS: dict[str, Callable[[], list[Ratio]]] = {
    "signal_probe": signal_probe.run,
    "calibration": calibration.run,
    "scaling": scaling_tables.run,
    "input_scaling": input_scaling.run,
}


def main(chosen: list[str]) -> int:
    """Prints every ratio of the chosen benchmarks, of all if none is chosen."""
    for name in chosen:
        names.check("benchmark", name, BENCHMARKS)
    device = jax.devices()[0].device_kind
    print(
        f"Python {platform.python_version()}, jax {jax.__version__}, flax {flax.__version__}, "
        f"{device}, {platform.machine()}"
    )
    over = 0
    for name in chosen or BENCHMARKS:
        print(f"\n{name}")
        for ratio in BENCHMARKS[name]():
            print(f"  {ratio}", flush=True)
            over += ratio.value > ratio.limit
    return 1 if over else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ValueError as error:
        sys.exit(f"error: {error}")
