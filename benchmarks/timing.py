"""How long programs take, side by side, what memory they need, and how a benchmark tells it."""

import dataclasses
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

    def is_over(self) -> bool:
        """Whether the limit is missed."""
        return not self.value <= self.limit

    def __str__(self) -> str:
        mark = "OVER" if self.is_over() else "ok  "
        return f"{mark}  {self.value:6.3f}  (at most {self.limit:g})  {self.what}  [{self.where}]"


@dataclasses.dataclass(frozen=True)
class Row:
    """One thing measured, as often as there are values.

    Attributes:
        where: the case, e.g. the network; rows of one case stand side by side.
        what: the program.
        unit: of the values, e.g. 'ms'.
        values: one for each repeat.
        figures: what follows from their median, by name with unit, e.g. {'images/s': 1290.0}.
    """

    where: str
    what: str
    unit: str
    values: Sequence[float]
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def median(self) -> float:
        """Of the values."""
        return statistics.median(self.values)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a benchmark has found.

    Attributes:
        rows: what was measured.
        ratios: what is compared, each with its limit.
        notes: what a reader has to know, e.g. which peer is not installed.
    """

    rows: Sequence[Row]
    ratios: Sequence[Ratio]
    notes: Sequence[str] = ()

    @classmethod
    def joined(cls, results: Iterable["Result"]) -> "Result":
        """All rows, ratios and notes, in their order."""
        parts = [(r.rows, r.ratios, r.notes) for r in results]
        return cls(*([x for part in of for x in part] for of in zip(*parts, strict=True)))


def device() -> str:
    """What JAX computes on: 'cpu' or 'gpu'."""
    return "cpu" if jax.default_backend() == "cpu" else "gpu"


def absent(peer: str, *modules: str) -> str:
    """The note that a peer is not compared for modules that are not installed; empty if all are."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if not missing:
        return ""
    return f"not compared: {peer}; {', '.join(missing)} not installed (pip install -e .[bench])"


def milliseconds(where: str, taken: Mapping[str, Sequence[float]]) -> list[Row]:
    """The rows of `samples`."""
    return [Row(where, what, "ms", [1e3 * s for s in of]) for what, of in taken.items()]


def markdown(rows: Sequence[Row]) -> Iterator[str]:
    """The lines of a table: medians, the quartiles around them, how many."""
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
    """Seconds of each program, which take turns so that a busy machine disturbs all alike.

    Each runs once before, to compile.

    Args:
        programs: by name.
        repeats: turns of each.
        in_a_row: runs in a turn, whose mean counts: threads of the program before, which wait
            awake for more, disturb the first ones alone.
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
    """Median of the `samples` of each program."""
    taken = samples(programs, repeats)
    return {name: statistics.median(values) for name, values in taken.items()}


def memory(compiled: jax.stages.Compiled) -> int:
    """Bytes that a compiled program needs at once: arguments, outputs and what is between."""
    sizes: Any = compiled.memory_analysis()
    held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return int(held + sizes.temp_size_in_bytes)
