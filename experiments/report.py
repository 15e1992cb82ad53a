"""Finished experiments gathered in results.md, and on a page of its own with their figures.

    python -m experiments.report --runs=runs --out=docs

This command owns the text between its two marker lines in OUT/results.md: a section for every
experiment, made from its folder alone. All other text stays. So does a section whose folder is not
there: it comes from another machine. OUT/results.html shows the whole file. Exit status 0: written.
"""

import ast
import dataclasses
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from absl import app, flags
from PIL.PngImagePlugin import PngImageFile

from experiments.harness import page, record, results
from experiments.harness.claims import OUTCOMES
from prelu_jax import entry, files
from prelu_jax.printing import escape_markdown

BEGIN, END = "<!-- experiments.report: begin -->", "<!-- experiments.report: end -->"
# A line before each section: name, scale and the folder's name, %-quoted.
_KEY = re.compile(r"^<!-- experiment: (\S+) (\S+) (\S+) -->$", re.MULTILINE)
_SEEDS = re.compile(r"^n = (\d+) seeds?;", re.MULTILINE)  # in a section, of its experiment

# Signs without a backslash that escapes them: after an even number of them.
_BRACKET = re.compile(r"(?<!\\)((?:\\\\)*)([\[\]])")
_BRACKET_OR_CODE = re.compile(r"(?<!\\)((?:\\\\)*)([\[\]`]|~(?=~)|(?<=~)~)")

Key = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Section:
    """One experiment in results.md."""

    key: Key  # name, scale and folder's name, %-quoted, by which sections are identified and sorted
    folder: Path  # of the experiment
    markdown: str  # from the heading on
    figures: Mapping[str, Path]  # path in OUT -> the file to copy there
    summary: str  # a line for the terminal


def report(
    runs: Path, out: Path, skipped: Callable[[str], None] = lambda line: None
) -> list[Section]:
    """Write ``out/results.md``, ``out/results.html`` and ``out/figures/``.

    Args:
        runs: folder of the experiments' folders.
        out: where the files go.
        skipped: takes a line about each experiment that cannot be read, which is left out.

    Returns:
        The sections gathered.

    Raises:
        ValueError: no finished experiment; two that cannot be distinguished; markers that do not
            match; a section of more seeds in its place; a figure shown that is not there. Nothing
            is written then.
    """
    sections: dict[Key, Section] = {}
    for folder in record.find(runs):
        try:
            new = section(folder)
        except (ValueError, OSError) as error:
            skipped(f"damaged, left out: {error}")
            continue
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
    advice = "Put a copy there, or remove it."
    before = files.read_text(file, advice) if file.exists() else "# Results\n"
    text = merge(before, sections, file)
    figures = {path: source for new in sections.values() for path, source in new.figures.items()}
    html = page.render(text, out, figures)

    (out / "figures").mkdir(parents=True, exist_ok=True)
    for path, source in figures.items():
        with files.replacing(out / os.fsdecode(path.encode())) as stream:
            stream.write(source.read_bytes())
    files.write_text(file, text)
    files.write_text(file.with_suffix(".html"), html)
    return list(sections.values())


def section(folder: Path) -> Section:
    """Return the section of a finished experiment from its folder.

    Raises:
        ValueError: a file of it is damaged.
    """
    done, own = record.read(folder), _unicode(folder.resolve().name)
    base, at = f"{done.name}_{done.scale}", done.scale
    if own != base:  # not the folder that the experiment takes by itself: name it
        base, at = f"{base}_in_{own}", f"{at}, in {own}"
    heading = escape_markdown(f"{_title(done.name)} ({at})")
    figures = {_unicode(png.stem): png for png in sorted(folder.glob("*.png"))}
    for png in figures.values():
        _check_png(png)
    stems = {"" if stem == "figure" else f"_{stem}": png for stem, png in figures.items()}
    # A name with a slash would lead out of the folder of figures.
    shown = {f"figures/{f'{base}{stem}'.replace('/', '_')}.png": stem for stem in sorted(stems)}
    outcomes = Counter(claim.outcome for claim in done.claims)
    counts = ", ".join(f"{outcomes[outcome]} {outcome}" for outcome in OUTCOMES)
    blocks = [f"## {heading}", *_facts(done)]
    for path, stem in shown.items():
        words = escape_markdown(stem.replace("_", ": ", 1).replace("_", " "))
        blocks.append(f"![{_without_brackets(heading + words)}]({quote(path)})")
    if (table := folder / "table.md").exists():
        advice = "Give the experiment's command again: it writes the file again."
        blocks.append(_harmless(files.read_text(table, advice).strip()))
    return Section(
        key=(quote(done.name, ""), quote(done.scale, ""), quote(own, "")),
        folder=folder,
        markdown="\n\n".join(blocks),
        figures={path: stems[stem] for path, stem in shown.items()},
        summary=f"{counts}  {done.name} ({at})",
    )


def _facts(done: record.Record) -> Iterator[str]:
    """Yield the command, its facts, and the claims, if there are any."""
    # Where things lie on one machine helps on no other: paths from here, if they lead below it.
    here = re.compile(rf"(?<![\w/.-]){re.escape(str(Path.cwd()))}/")
    seeds = f"n = {done.seeds} seed{'s' if done.seeds > 1 else ''}"
    several = f" in {done.commands} commands" if done.commands > 1 else ""
    more = " (without the time of a stopped command)" if done.resumed else ""
    ran = f"{_duration(done.seconds)}{several}{more} on {done.hardware}"
    claims = [
        f"| {escape_markdown(c.statement)} | {escape_markdown(c.measured)} | {c.outcome} |"
        for c in done.claims
    ]
    command = "".join(c if c.isprintable() else repr(c)[1:-1] for c in here.sub("", done.command))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
    yield f"{fence}bash\n{command}\n{fence}"
    yield escape_markdown(f"{seeds}; {ran}; {done.versions}; {done.finished}.")
    if claims:
        yield "\n".join(["| claim | measured | |", "|---|---|---|", *claims])


def _title(name: str) -> str:
    """Return the first line of the experiment's docstring, read without importing it."""
    module = Path(__file__).with_name(f"{name}.py") if name.isidentifier() else None
    source = module.read_text(encoding="utf-8") if module and module.exists() else ""
    docstring = ast.get_docstring(ast.parse(source))
    return (docstring or name).partition("\n")[0].removesuffix(".")


def _without_brackets(markdown: str) -> str:
    """Return escaped text in which no bracket ends the text of a link or an image."""
    return _BRACKET.sub(r"\1\\\2", markdown)


def _harmless(table: str) -> str:
    """Return the Markdown of table.md without HTML, links, images and code.

    An experiment writes paragraphs and tables. Whatever else is there is shown as it is written;
    what would begin a block of code, which ends with the page, too.
    """
    lines = [re.sub(r"^( {4,}|\t)+", "", line) for line in table.splitlines()]
    text = "\n".join("".join(c for c in line if c.isprintable()) for line in lines)
    text = re.sub(r"&(?=[\w#])", "&amp;", text).replace("<", "&lt;")
    return _BRACKET_OR_CODE.sub(r"\1\\\2", text)


def _check_png(file: Path) -> None:
    """Raise a ValueError if a figure is cut short or otherwise damaged."""
    content = files.read_bytes(file)
    try:
        PngImageFile(io.BytesIO(content)).verify()
    except (OSError, SyntaxError) as error:
        raise files.DamagedFileError(
            f"{file} is damaged: it is no whole PNG. Give the experiment's command again: it draws "
            "the figure again."
        ) from error


def _unicode(name: str) -> str:
    """Return the name of a file or folder as Unicode, whatever the locale has made of it."""
    return os.fsencode(name).decode("utf-8", "replace")


def _duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{n} {unit}" for n, unit in ((hours, "h"), (minutes, "min"), (s, "s")) if n]
    return " ".join(parts) or "under 1 s"


def merge(text: str, sections: Mapping[Key, Section], file: Path) -> str:
    """Return the text of ``file`` with its sections, these ones replaced, between the markers."""
    lines = re.compile(f"^({BEGIN}|{END})$", re.MULTILINE)
    before, *rest = lines.split(text)
    if not rest:
        before, part, after = f"{text.rstrip()}\n\n", "", "\n"
    elif len(rest) == 4 and rest[::2] == [BEGIN, END]:
        _, part, _, after = rest
    else:
        raise ValueError(
            f"{file} has the marker lines {rest[::2]}; expected {[BEGIN, END]}. Correct them, "
            "or remove all: the sections are then appended again."
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
    """Raise a ValueError if a section would take the place of one of more seeds."""
    had, has = _SEEDS.search(old), _SEEDS.search(new.markdown)
    if had and has and int(had[1]) > int(has[1]):
        raise ValueError(
            f"{new.folder} has n = {has[1]}, and its section in {file} n = {had[1]} seeds. "
            "Rename the folder, for a section of its own; or remove that section by hand first."
        )


def unfinished(runs: Path) -> Iterator[str]:
    """Yield a line about each training run that has not ended, or of which that is not known."""
    for file in sorted(runs.rglob("status.json")):
        try:
            if results.status(file.parent) == "running":
                yield f"not finished, left out: {file.parent}"
        except (ValueError, OSError) as error:
            yield f"damaged, left out: {error}"


_RUNS = flags.DEFINE_string("runs", "runs", "Folder of the experiments' folders, at any depth.")
_OUT = flags.DEFINE_string("out", "docs", "Folder of results.md, results.html and figures/.")


def main(argv: list[str]) -> None:
    """Run the command; see the module."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    try:
        runs, out = files.local_path(_RUNS.value, "--runs"), files.local_path(_OUT.value, "--out")
        for line in unfinished(runs):
            print(line)
        sections = report(runs, out, print)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    print(*(section.summary for section in sections), "Written:", sep="\n")
    print(*(f"  {out / name}" for name in ("results.md", "results.html")), sep="\n")


if __name__ == "__main__":
    with entry.command():
        main(entry.parse_flags())
