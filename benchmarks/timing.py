"""How long compiled programs take, side by side, and what memory they need."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Ratio:
    """One line of a benchmark.

    Attributes:
        what: the two things compared, 'a / b'.
        where: the case, e.g. the network.
        value: a over b.
        limit: what it may be at most.
    """

    what: str
    where: str
    value: float
    limit: float

    def __str__(self) -> str:
        mark = "ok  " if self.value <= self.limit else "OVER"
        return f"{mark}  {self.value:6.3f}  (at most {self.limit:g})  {self.what}  [{self.where}]"


def samples(programs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each program, which take turns so that a busy machine disturbs all alike.

    Each runs once before, to compile.
    """
    for program in programs.values():
        jax.block_until_ready(program())
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            taken[name].append(time.perf_counter() - start)
    return taken


def seconds(programs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median of the `samples` of each program."""
    taken = samples(programs, repeats)
    return {name: statistics.median(values) for name, values in taken.items()}


def memory(compiled: jax.stages.Compiled) -> int:
    """Bytes that a compiled program needs at once: arguments, outputs and what is between."""
    found: Any = compiled.memory_analysis()
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return held + found.temp_size_in_bytes
