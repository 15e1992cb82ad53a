"""Start-up time: the import, and a run's first step with an empty and a filled cache.

On a CPU the run is the laptop run of convergence_30, by its command. On other devices, where the
input pipeline need not be installed, it is the first step of the same net (`first_step`).
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from benchmarks.timing import Ratio, Result, Row

_ROOT = Path(__file__).parent.parent
_POLL = 0.01  # seconds


def run(imports: int = 5, starts: int = 3, flags: Sequence[str] = ()) -> Result:
    """Measure start-up in new processes, and return its ratios to the allowed times.

    Args:
        imports: number of imports of the package.
        starts: number of starts with an empty cache of compiled programs, each followed by one
            with the filled cache.
        flags: additional flags of the laptop run.
    """
    on_cpu = jax.default_backend() == "cpu"
    everything = "from prelu_jax import *"  # because names are imported at their first use
    imported = [_seconds([sys.executable, "-c", everything]) for _ in range(imports)]
    first: list[float] = []
    second: list[float] = []
    for _ in range(starts):
        with tempfile.TemporaryDirectory() as cache:
            for taken in (first, second):
                taken.append(_of_the_command(cache, flags) if on_cpu else _of_the_net(cache))
    case = "laptop run" if on_cpu else "its net alone"
    rows = [
        Row("new process", "import prelu_jax", "s", imported),
        Row(case, "to the first step, empty cache", "s", first),
        Row(case, "to the first step, filled cache", "s", second),
    ]
    importing, to_first, to_second = (row.median for row in rows)
    return Result(
        rows,
        [
            Ratio("time: import prelu_jax / 2 s", "new process", importing / 2, 1.0),
            Ratio("time: command to first step / 15 s", case, to_first / 15, 1.0),
            Ratio("time: to first step, second start / first", case, to_second / to_first, 1 / 3),
        ],
    )


def _seconds(command: Sequence[str], environment: dict[str, str] | None = None) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=_ROOT, env=environment, check=True, text=True)
    return time.perf_counter() - start


def _environment(cache: str) -> dict[str, str]:
    """Return this process's environment with another folder for compiled programs."""
    kept = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    return {**kept, "XDG_CACHE_HOME": cache}


def _of_the_net(cache: str) -> float:
    return _seconds([sys.executable, "-m", "benchmarks.first_step"], _environment(cache))


def _of_the_command(cache: str, flags: Sequence[str]) -> float:
    """Measure the time until the laptop run has logged its first step, then end the run.

    Raises:
        RuntimeError: the run ended before its first step.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "experiments.convergence_30", "--scale=laptop"),
            *(f"--workdir={folder}/run", "--config.log_every=1", *flags),
        ]
        log = Path(folder, "log")
        metrics = Path(folder, "run/he/seed_0/metrics.jsonl")
        start = time.perf_counter()
        with log.open("w") as output:
            process = subprocess.Popen(
                command,
                cwd=_ROOT,
                env=_environment(cache),
                stdout=output,
                stderr=output,
            )
        try:
            while not (metrics.exists() and "train_loss" in metrics.read_text()):
                if process.poll() is not None:
                    raise RuntimeError(f"{' '.join(command)} ended early:\n{log.read_text()}")
                time.sleep(_POLL)
            return time.perf_counter() - start
        finally:
            process.kill()
            process.wait()
