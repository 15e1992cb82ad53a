"""Command that writes benchmarks/results into docs/results.md: python -m benchmarks.summary."""

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
    """Replace the text between two markers of a page.

    Raises:
        ValueError: a marker does not occur exactly once in the page.
    """
    old = page.read_text()
    between = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    if len(between.findall(old)) != 1:
        raise ValueError(f"{page} must hold {begin} and {end} once each. Restore these lines.")
    page.write_text(between.sub(lambda _: f"{begin}\n\n{text}\n\n{end}", old))


def render(results: Path = RESULTS) -> str:
    """Return the ratios of every benchmark by device as Markdown, missed limits included."""
    return "\n".join(line for device in DEVICES for line in _of_device(results / device))


def _of_device(folder: Path) -> Iterator[str]:
    device = folder.name
    results: dict[str, Any] = {
        name: json.loads((folder / f"{name}.json").read_text())
        for name, devices in BENCHMARKS.items()
        if device in devices and (folder / f"{name}.json").exists()
    }
    missing = [n for n, devices in BENCHMARKS.items() if device in devices and n not in results]
    yield f"### {device.upper()}"
    yield ""
    for machine in dict.fromkeys(_listed(result["machine"]) for result in results.values()):
        yield f"{machine}."
        yield ""
    if missing:
        yield f"Not measured: {', '.join(missing)}."
        yield ""
    if results:
        yield "| benchmark | ratio | case | value | at most | |"
        yield "|---|---|---|---|---|---|"
    for name, result in results.items():
        for ratio in (Ratio(**fields) for fields in result["ratios"]):
            mark = "missed" if ratio.is_missed() else "met"
            cells = (name, ratio.what, ratio.where, f"{ratio.value:.3g}", f"{ratio.limit:.3g}")
            yield f"| {' | '.join((*cells, mark))} |"
    yield ""
    for name, result in results.items():
        yield from (f"- {name}: {note}" for note in dict.fromkeys(result["notes"]))
    yield ""


def _listed(machine: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in machine.items())


if __name__ == "__main__":
    entry.answer_help()
    if sys.argv[1:]:
        sys.exit(f"error: {__doc__} It takes no arguments.")
    replace_between(BEGIN, END, render(), PAGE)
