"""python -m benchmarks.summary: puts what benchmarks/results holds into docs/results.md."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.run import BENCHMARKS
from benchmarks.timing import Ratio
from prelu_jax import entry

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"
PAGE = ROOT / "docs/results.md"
DEVICES = ("cpu", "gpu")
BEGIN, END = "<!-- benchmarks.summary: begin -->", "<!-- benchmarks.summary: end -->"


def replace_between(begin: str, end: str, text: str, page: Path) -> None:
    """Puts a text between two markers of a page.

    Raises:
        ValueError: the page does not have each of them once.
    """
    old = page.read_text()
    between = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    if len(between.findall(old)) != 1:
        raise ValueError(f"Expected {begin} and {end} once each in {page}.")
    page.write_text(between.sub(lambda _: f"{begin}\n\n{text}\n\n{end}", old))


def render(results: Path = RESULTS) -> str:
    """Markdown: for each device the ratios of every benchmark, also those that miss their limit."""
    return "\n".join(line for device in DEVICES for line in _of_device(results / device))


def _of_device(folder: Path) -> Iterator[str]:
    device = folder.name
    found: dict[str, Any] = {
        name: json.loads((folder / f"{name}.json").read_text())
        for name, devices in BENCHMARKS.items()
        if device in devices and (folder / f"{name}.json").exists()
    }
    missing = [n for n, devices in BENCHMARKS.items() if device in devices and n not in found]
    yield f"### {device.upper()}"
    yield ""
    for machine in dict.fromkeys(_told(of["machine"]) for of in found.values()):
        yield f"{machine}."
        yield ""
    if missing:
        yield f"Not measured: {', '.join(missing)}."
        yield ""
    if found:
        yield "| benchmark | ratio | case | value | at most | |"
        yield "|---|---|---|---|---|---|"
    for name, of in found.items():
        for ratio in (Ratio(**fields) for fields in of["ratios"]):
            mark = "missed" if ratio.is_over() else "met"
            cells = (name, ratio.what, ratio.where, f"{ratio.value:.3g}", f"{ratio.limit:.3g}")
            yield f"| {' | '.join((*cells, mark))} |"
    yield ""
    for name, of in found.items():
        yield from (f"- {name}: {note}" for note in dict.fromkeys(of["notes"]))
    yield ""


def _told(machine: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in machine.items())


if __name__ == "__main__":
    entry.answer_help()
    if sys.argv[1:]:
        sys.exit(f"error: {__doc__} It takes no arguments.")
    replace_between(BEGIN, END, render(), PAGE)
