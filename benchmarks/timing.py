"""Timing of programs side by side, their memory, and the results of a benchmark as tables."""

import dataclasses
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A comparison with its limit, one line of a benchmark.

    Attributes:
        what: the two quantities that are compared, 'a / b'.
        where: the case, e.g. the network.
        value: a over b.
        limit: the largest value that meets the goal.
        spread: half the distance between the quartiles of the value over the turns; 0 if a or b was
            measured once.
    """

    what: str
    where: str
    value: float
    limit: float
    spread: float = 0.0

    @classmethod
    def of(
        cls, what: str, where: str, over: Sequence[float], under: Sequence[float], limit: float
    ) -> "Ratio":
        """Return the ratio of two medians, of programs that took turns."""
        turns = [a / b for a, b in zip(over, under, strict=True)]
        low, high = _quartiles(turns)
        value = statistics.median(over) / statistics.median(under)
        return cls(what, where, value, limit, (high - low) / 2)

    def is_missed(self) -> bool:
        """Return whether the value is over the limit."""
        return not self.value <= self.limit

    def is_lost(self, before: "Ratio | None") -> bool:
        """Return whether a goal that was met before is missed by more than the spread."""
        if before is None or not before.value <= self.limit:
            return False
        return not self.value - self.spread <= self.limit

    def __str__(self) -> str:
        mark = "missed" if self.is_missed() else "met   "
        spread = f" ± {self.spread:.3f}" if self.spread else ""
        return (
            f"{mark}  {self.value:6.3f}{spread}  (at most {self.limit:g})  {self.what}  "
            f"[{self.where}]"
        )


@dataclasses.dataclass(frozen=True)
class Row:
    """A measured quantity with one value per repeat.

    Attributes:
        where: the case, e.g. the network.
        what: the program.
        unit: unit of the values, e.g. 'ms'.
        values: one value per repeat.
        figures: figures derived from the median, by name with unit, e.g. {'images/s': 1290.0}.
    """

    where: str
    what: str
    unit: str
    values: Sequence[float]
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def median(self) -> float:
        """Median of the values."""
        return statistics.median(self.values)


@dataclasses.dataclass(frozen=True)
class Result:
    """Results of a benchmark.

    Attributes:
        rows: the measurements.
        ratios: the comparisons, each with its limit.
        notes: remarks for the reader, e.g. about peers that are not installed.
    """

    rows: Sequence[Row]
    ratios: Sequence[Ratio]
    notes: Sequence[str] = ()

    @classmethod
    def joined(cls, results: Iterable["Result"]) -> "Result":
        """Return all rows, ratios and notes in order."""
        parts = [(r.rows, r.ratios, r.notes) for r in results]
        return cls(*([x for part in kind for x in part] for kind in zip(*parts, strict=True)))


def device() -> str:
    """Return JAX's device, 'cpu' or 'gpu'."""
    return "cpu" if jax.default_backend() == "cpu" else "gpu"


def absent(peer: str, *modules: str) -> str:
    """Return a note that a peer's modules are not installed; empty if all are."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if not missing:
        return ""
    return f"not compared: {peer}; {', '.join(missing)} not installed (pip install -e .[bench])"


def milliseconds(where: str, taken: Mapping[str, Sequence[float]]) -> list[Row]:
    """Return the rows of `samples`."""
    return [Row(where, what, "ms", [1e3 * s for s in times]) for what, times in taken.items()]


def markdown(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of a table: medians, quartiles, numbers of values."""
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    yield f"| {' | '.join(('case', 'program', 'median', 'quartiles', 'n', *names))} |"
    yield "|" + "---|" * (5 + len(names))
    for row in rows:
        low, high = _quartiles(row.values)
        spread = f"{low:.4g} to {high:.4g}"
        derived = (f"{row.figures[name]:.4g}" if name in row.figures else "" for name in names)
        cells = (row.where, row.what, f"{row.median:.4g} {row.unit}", spread, str(len(row.values)))
        yield f"| {' | '.join((*cells, *derived))} |"


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def samples(
    programs: Mapping[str, Callable[[], Any]], repeats: int, in_a_row: int = 1
) -> dict[str, list[float]]:
    """Measure seconds of each program, in turns, so that a busy machine disturbs all equally.

    Each runs once before the measurement, to compile.

    Args:
        programs: the programs by name.
        repeats: turns of each program.
        in_a_row: runs per turn, whose mean counts. The first runs of a turn are disturbed by
            threads of the previous program that still wait for work.
    """
    for program in programs.values():
        jax.block_until_ready(program())
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready([program() for _ in range(in_a_row)])
            taken[name].append((time.perf_counter() - start) / in_a_row)
    return taken


def seconds(programs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the median of the `samples` of each program."""
    taken = samples(programs, repeats)
    return {name: statistics.median(values) for name, values in taken.items()}


def memory(compiled: jax.stages.Compiled) -> int:
    """Return the bytes that a program needs at once: arguments, outputs and temporaries."""
    sizes: Any = compiled.memory_analysis()
    held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return int(held + sizes.temp_size_in_bytes)
