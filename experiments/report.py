"""Gathers finished experiments into results.md, and into a page of its own, figures inside.

    python -m experiments.report --runs=runs --out=docs

Of OUT/results.md this command owns what stands between its two marker lines: a section for every
experiment, made from its folder alone. All other text stays. So does a section whose folder is not
there: it comes from another machine. OUT/results.html shows the whole file. Exit status 0: written.
"""

import ast
import dataclasses
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from absl import app, flags

from experiments import page, record

BEGIN, END = "<!-- experiments.report: begin -->", "<!-- experiments.report: end -->"
# A line before each section: name, scale and the folder's name, %-quoted.
_KEY = re.compile(r"^<!-- experiment: (\S+) (\S+) (\S+) -->$", re.MULTILINE)
_SEEDS = re.compile(r"^n = (\d+) seeds?;", re.MULTILINE)  # in a section, of its experiment
# What Markdown, GitHub's too, would take for its own.
_MARKUP = re.compile(
    r"[\\`*|~$]|&(?=[\w#])|<(?=[\w/!?])"
    r"|(?<![^\W_])_|_(?![^\W_])"  # not within a word: names of layers stay as they are
    r"|\](?=[(\[])"  # of a link, not of an arm in brackets
)

Key = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Section:
    """One experiment as results.md tells it.

    Attributes:
        key: name, scale and folder's name, %-quoted: sections are told apart and sorted by it.
        folder: of the experiment.
        markdown: from the heading on.
        figures: path in OUT -> the file to copy there.
        summary: a line for the terminal.
    """

    key: Key
    folder: Path
    markdown: str
    figures: Mapping[str, Path]
    summary: str


def report(runs: Path, out: Path) -> list[Section]:
    """Writes ``out/results.md``, ``out/results.html`` and ``out/figures/``.

    Returns:
        The sections gathered.

    Raises:
        ValueError: no finished experiment; one that cannot be read; two that cannot be told apart;
            markers that do not match; a section of more seeds in its place; a figure shown that is
            not there. Nothing is written then.
    """
    sections: dict[Key, Section] = {}
    for new in map(section, record.find(runs)):
        if (other := sections.setdefault(new.key, new)) is not new:
            raise ValueError(
                f"{other.folder} and {new.folder} hold the same experiment at the same scale and "
                "have the same name. Rename one of them."
            )
    if not sections:
        missing = "" if runs.is_dir() else ": there is no such folder"
        raise ValueError(
            f"No finished experiment in {runs}{missing}. This makes one, in about three "
            "minutes: python -m experiments.convergence_30 --scale=laptop"
        )
    file = out / "results.md"
    text = merge(file.read_text() if file.exists() else "# Results\n", sections, file)
    figures = {path: source for new in sections.values() for path, source in new.figures.items()}
    html = page.render(text, out, figures)

    (out / "figures").mkdir(parents=True, exist_ok=True)
    for path, source in figures.items():
        shutil.copyfile(source, out / path)
    file.write_text(text)
    file.with_suffix(".html").write_text(html)
    return list(sections.values())


def section(folder: Path) -> Section:
    """What the folder of a finished experiment says."""
    found, own = record.read(folder), folder.resolve().name
    base, at = f"{found.name}_{found.scale}", found.scale
    if own != base:  # not the folder that the experiment takes by itself: say which
        base, at = f"{base}_in_{own}", f"{at}, in {own}"
    heading = _escape(f"{_title(found.name)} ({at})")
    stems = {"" if png.stem == "figure" else f"_{png.stem}": png for png in folder.glob("*.png")}
    shown = {f"figures/{base}{stem}.png": stem for stem in sorted(stems)}
    passed = sum(claim.passed for claim in found.claims)
    blocks = [f"## {heading}", *_facts(found)]
    for path, stem in shown.items():
        words = _escape(stem.replace("_", ": ", 1).replace("_", " "))
        blocks.append(f"![{heading}{words}]({quote(path)})")
    if (table := folder / "table.md").exists():
        blocks.append(table.read_text().strip())
    return Section(
        key=(quote(found.name, ""), quote(found.scale, ""), quote(own, "")),
        folder=folder,
        markdown="\n\n".join(blocks),
        figures={path: stems[stem] for path, stem in shown.items()},
        summary=f"{passed} PASS, {len(found.claims) - passed} FAIL  {found.name} ({at})",
    )


def _facts(found: record.Record) -> Iterator[str]:
    """The command, how it ran, and the claims, if there are any."""
    # Where things lie on one machine helps on no other: paths from here, if they lead below it.
    here = re.compile(rf"(?<![\w/.-]){re.escape(str(Path.cwd()))}/")
    seeds = f"n = {found.seeds} seed{'s' if found.seeds > 1 else ''}"
    several = f" in {found.commands} commands" if found.commands > 1 else ""
    more = ", and what a stopped command took before," if found.resumed else ""
    ran = f"{_duration(found.seconds)}{several}{more} on {found.hardware}"
    claims = [
        f"| {_escape(claim.statement)} | {_escape(claim.measured)} "
        f"| {'PASS' if claim.passed else 'FAIL'} |"
        for claim in found.claims
    ]
    yield f"```bash\n{here.sub('', found.command)}\n```"
    yield _escape(f"{seeds}; {ran}; {found.versions}; {found.finished}.")
    if claims:
        yield "\n".join(["| claim | measured | |", "|---|---|---|", *claims])


def _title(name: str) -> str:
    """The first line of the experiment's docstring, read without importing it."""
    module = Path(__file__).with_name(f"{name}.py")
    docstring = ast.get_docstring(ast.parse(module.read_text())) if module.exists() else None
    return (docstring or name).partition("\n")[0].removesuffix(".")


def _escape(text: str) -> str:
    """Markdown that shows this text, in a cell of a table too: its lines with <br> between."""
    return "<br>".join(_MARKUP.sub(r"\\\g<0>", line.strip()) for line in text.splitlines())


def _duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{n} {unit}" for n, unit in ((hours, "h"), (minutes, "min"), (s, "s")) if n]
    return " ".join(parts) or "under 1 s"


def merge(text: str, sections: Mapping[Key, Section], file: Path) -> str:
    """The text of ``file`` with these sections, and those it has of others, between the markers."""
    lines = re.compile(f"^({BEGIN}|{END})$", re.MULTILINE)
    before, *rest = lines.split(text)
    if not rest:
        before, part, after = f"{text.rstrip()}\n\n", "", "\n"
    elif len(rest) == 4 and rest[::2] == [BEGIN, END]:
        _, part, _, after = rest
    else:
        raise ValueError(
            f"{file} has the marker lines {rest[::2]}; expected {[BEGIN, END]}. Mend them, or "
            "remove all: the sections are then appended anew."
        )
    _, *pieces = _KEY.split(part)
    merged = {tuple(pieces[i : i + 3]): pieces[i + 3].strip() for i in range(0, len(pieces), 4)}
    for key, new in sections.items():
        _check_seeds(merged.get(key, ""), new, file)
        merged[key] = new.markdown
    blocks = [
        f"<!-- experiment: {' '.join(key)} -->\n\n{merged[key]}\n\n" for key in sorted(merged)
    ]
    return f"{before}{BEGIN}\n\n{''.join(blocks)}{END}{after}"


def _check_seeds(old: str, new: Section, file: Path) -> None:
    """Raises a ValueError if a section would take the place of one of more seeds."""
    had, has = _SEEDS.search(old), _SEEDS.search(new.markdown)
    if had and has and int(had[1]) > int(has[1]):
        raise ValueError(
            f"{new.folder} has n = {has[1]}, and its section in {file} n = {had[1]} seeds. "
            "Rename the folder, for a section of its own; or remove that section by hand first."
        )


def unfinished(runs: Path) -> list[Path]:
    """Folders of training runs that have not ended: under way, or stopped."""
    files = sorted(runs.rglob("status.json"))
    return [file.parent for file in files if json.loads(file.read_text())["status"] == "running"]


_RUNS = flags.DEFINE_string("runs", "runs", "Folder of the experiments' folders, at any depth.")
_OUT = flags.DEFINE_string("out", "docs", "Folder of results.md, results.html and figures/.")


def main(argv: list[str]) -> None:
    """The command; see the module."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    runs, out = Path(_RUNS.value), Path(_OUT.value)
    try:
        for folder in unfinished(runs):
            print(f"not finished, left out: {folder}")
        sections = report(runs, out)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    print(*(each.summary for each in sections), "Written:", sep="\n")
    print(*(f"  {out / name}" for name in ("results.md", "results.html")), sep="\n")


if __name__ == "__main__":
    app.run(main)
