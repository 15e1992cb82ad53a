import base64
import dataclasses
import json
import re
from collections import defaultdict
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from experiments import report
from experiments.harness import page
from experiments.harness.claims import Claim
from experiments.harness.record import Record
from prelu_jax.printing import escape_markdown
from tests.experiments.conftest import ROOT, run

CLAIMS = (
    Claim("E[y²] < 1 | *all* seeds", True, "3 % & n_l <b>3</b>"),
    Claim("chance", False, "2"),
    Claim("lower", None, "-1 ± 3"),
)
RECORD = Record(
    name="convergence_30",
    scale="laptop",
    seeds=3,
    command="python -m experiments.convergence_30 '--config.arch=a b'",
    finished="2026-11-26",
    seconds=3789.4,
    resumed=False,
    hardware="2 cores of _AMD_",
    versions="Python 3.11.7, jax 0.10.2",
    claims=CLAIMS,
)
BY_HAND = "# Mine\n\n## Kept <sub>1</sub>\n\n| a |\n|---|\n| 1 |\n"


def experiment(folder, figures=("figure",), table="", **fields):
    """A finished experiment's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dataclasses.asdict(dataclasses.replace(RECORD, **fields)))
    (folder / "experiment.json").write_text(text)
    for i, figure in enumerate(figures):
        cv2.imwrite(str(folder / f"{figure}.png"), np.full((4, 4), i, np.uint8))
    if table:
        (folder / "table.md").write_text(table)
    return folder


def written(runs, out, text=None):
    """The ``out/results.md`` that the command writes."""
    if text is not None:
        out.mkdir(exist_ok=True)
        (out / "results.md").write_text(text)
    report.report(runs, out)
    return (out / "results.md").read_text()


@pytest.fixture
def runs(tmp_path):
    """One experiment, in the folder that it takes by itself."""
    experiment(tmp_path / "runs/convergence_30_laptop")
    return tmp_path / "runs"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "docs"


def keys(text):
    return re.findall(r"<!-- experiment: (.*) -->", text)


def test_a_new_file_in_full(tmp_path, out, check_golden):
    runs = tmp_path / "runs"
    experiment(runs / "deep/convergence_30_laptop", seconds=0.2, seeds=1, resumed=True)
    figures = ("rates", "errors")
    experiment(runs / "b (2)", figures, "A table.\n\n| x |\n|---|\n| 1 |\n", name="data_dependent")
    check_golden("report.md", written(runs, out))


def test_figures_are_copied_under_names_of_their_own(tmp_path, out):
    runs = tmp_path / "runs"
    default = experiment(runs / "convergence_30_laptop")
    other = experiment(runs / "slow", ("figure", "errors"))
    experiment(default / "he/seed_0", name="nested", figures=())
    cv2.imwrite(str(default / "he/of_a_run.png"), np.zeros((4, 4), np.uint8))
    written(runs, out)
    copied = {file.name: file.read_bytes() for file in (out / "figures").iterdir()}
    assert copied == {
        "convergence_30_laptop.png": (default / "figure.png").read_bytes(),
        "convergence_30_laptop_in_slow.png": (other / "figure.png").read_bytes(),
        "convergence_30_laptop_in_slow_errors.png": (other / "errors.png").read_bytes(),
    }


def test_what_is_written_by_hand_stays(runs, out):
    appended = written(runs, out, BY_HAND)
    assert appended.startswith(f"{BY_HAND}\n{report.BEGIN}\n")
    assert appended.endswith(f"\n{report.END}\n")
    around = written(runs, out, f"{appended}\n## After\n\nText without an end")
    assert around == f"{appended}\n## After\n\nText without an end"
    assert report.BEGIN not in BY_HAND


def test_twice_gives_the_same_bytes(runs, out):
    experiment(runs / "second run", ("a b", "c"))

    def files():
        return {f: f.read_bytes() for f in out.rglob("*") if f.is_file()}

    written(runs, out, BY_HAND)
    first = files()
    written(runs, out)
    assert files() == first
    assert len(first) == 5


def test_a_section_is_replaced_by_its_folder_and_kept_without(tmp_path, runs, out):
    elsewhere = tmp_path / "elsewhere"
    experiment(elsewhere / "big", scale="imagenet", hardware="8 × H100")
    experiment(elsewhere / "convergence_22_laptop", name="convergence_22")
    experiment(elsewhere / "convergence_30_laptop", hardware="the old machine")
    before = written(elsewhere, out)
    after = written(runs, out)
    # Sorted by name, then scale; nothing twice.
    assert keys(after) == [
        "convergence_22 laptop convergence_22_laptop",
        "convergence_30 imagenet big",
        "convergence_30 laptop convergence_30_laptop",
    ]
    assert "the old machine" in before
    assert after == before.replace("the old machine", r"2 cores of \_AMD\_")


def test_a_section_of_more_seeds_is_not_replaced(tmp_path, runs, out):
    before = written(experiment(tmp_path / "elsewhere/convergence_30_laptop", seeds=5), out)
    with pytest.raises(ValueError, match=r"laptop has n = 3, .*results.md n = 5.*Rename"):
        written(runs, out)
    assert (out / "results.md").read_text() == before
    experiment(runs / "convergence_30_laptop", seeds=5, hardware="another")
    assert "another" in written(runs, out)


def test_one_experiment_in_two_folders_is_two_sections(runs, out):
    experiment(runs / "slow - > 1", claims=(Claim("slow", True, "x"),))
    text = written(runs, out)
    assert keys(text) == [
        "convergence_30 laptop convergence_30_laptop",
        "convergence_30 laptop slow%20-%20%3E%201",
    ]
    assert "Xavier's (laptop)\n" in text
    assert "Xavier's (laptop, in slow - > 1)\n" in text
    assert written(runs, out) == text


def test_paths_below_the_current_folder_are_relative(tmp_path, out, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    paths = ("here/runs/a", "hereafter/b", "c")
    command = " ".join(f"--x={tmp_path / path}" for path in paths) + f" --y=/sub{tmp_path}/here/d"
    text = written(experiment(tmp_path / "e", command=command), out)
    assert (
        f"\n--x=runs/a --x={tmp_path}/hereafter/b --x={tmp_path}/c --y=/sub{tmp_path}/here/d\n"
        in text
    )


def test_the_page_shows_all_of_it_and_needs_no_other_file(tmp_path, runs, out):
    experiment(runs / "it (2)", ("a [b]",), "| k | v |\n|---|---|\n| 1 | 2 |")
    figure = experiment(tmp_path / "by_hand") / "figure.png"
    out.mkdir()
    (out / "own figure.png").write_bytes(figure.read_bytes())
    web = "https://example.org/x.png"
    written(runs, out, f"{BY_HAND}![own](<own figure.png>) ![web]({web})\n")
    html = (out / "results.html").read_text()
    sources = re.findall(r'<img src="(.*?)"', html)
    embedded = [source.removeprefix("data:image/png;base64,") for source in sources]
    assert len(embedded) == 4
    assert embedded.pop(1) == web
    assert {base64.b64decode(data) for data in embedded} == {figure.read_bytes()}
    assert html.count("<table>") == 4  # one by hand, two of claims, one of table.md
    assert "<sub>1</sub>" in html
    assert (
        "<td>E[y²] &lt; 1 | *all* seeds</td>\n<td>3 % &amp; n_l &lt;b&gt;3&lt;/b&gt;</td>" in html
    )
    assert "on 2 cores of _AMD_; Python 3.11.7" in html
    assert "prefers-color-scheme: dark" in html
    assert not re.search(r"<link|<script|url\(|@import", html)


def contents(html):
    """The class, target and words of every link of the table of contents."""
    (listed,) = re.findall(r"<nav>(.*)</nav>", html, re.DOTALL)
    return re.findall(r'<li class="(\w+)"><a href="#(.*?)">(.*?)</a></li>', listed)


def test_a_table_of_contents_links_to_every_section(runs, out):
    experiment(runs / "it (2)")
    by_hand = "# Results\n\nText.\n\n## *Speed* of `a<b`\n\n### CPU & GPU\n\n#### Not listed\n"
    written(runs, out, f"{by_hand}\n### CPU & GPU\n\n# Gathered\n\n## !\n")
    html = (out / "results.html").read_text()
    title = "he-et-al-2015-figure-3-a-30-layer-rectifier-network-hes-initialisation-against-xaviers"
    listed = contents(html)
    assert [link[:2] for link in listed] == [
        ("h2", "speed-of-ab"),
        ("h3", "cpu--gpu"),
        ("h3", "cpu--gpu-1"),
        ("h1", "gathered"),
        ("h2", "section"),
        ("h2", f"{title}-laptop"),
        ("h2", f"{title}-laptop-in-it-2"),
    ]
    assert [words for _, _, words in listed[:3]] == ["Speed of a&lt;b", *["CPU &amp; GPU"] * 2]
    ids = re.findall(r' id="(.*?)"', html)
    assert len({*ids}) == len(ids) == 9
    assert html.index("<h1") < html.index("<nav>") < html.index("Text.")


def test_an_anchor_stays_when_other_sections_come(runs, out):
    written(runs, out, BY_HAND)
    before = contents((out / "results.html").read_text())
    experiment(runs / "another")
    written(runs, out)
    after = contents((out / "results.html").read_text())
    assert len(after) == len(before) + 1
    assert [link for link in after if link in before] == before


def test_a_page_without_sections_has_no_contents(tmp_path):
    assert "<nav>" not in page.render("# Results\n\nText.\n", tmp_path, {})
    assert "<nav>" not in page.render("", tmp_path, {})
    assert contents(page.render("Text.\n\n# One\n", tmp_path, {})) == [("h1", "one", "One")]


@pytest.mark.parametrize("rows", [15, 16])
def test_a_long_table_is_closed_until_a_click(rows, tmp_path):
    table = "| *arch* | a<b | |\n|---|---|---|\n" + "| 1 | 2 | 3 |\n" * rows
    short = "| b |\n|---|\n| 1 |\n"
    html = page.render(f"{short}\nBefore.\n\n{table}\nAfter.\n\n{short}", tmp_path, {})
    assert html.count("<table>") == 3
    assert html.count("<tr>") == rows + 1 + 4
    folded = re.findall(r"Before.</p>\n<details>(.*?)</details>\n<p>After.", html, re.DOTALL)
    assert html.count("<details>") == html.count("</details>") == len(folded) == (rows > 15)
    for inside in folded:
        assert inside.startswith("\n<summary>16 rows: arch, a&lt;b</summary>\n<table>")
        assert inside.count("<tr>") == rows + 1


def test_a_figure_of_no_known_kind_is_named(tmp_path):
    (tmp_path / "x.figure").touch()
    with pytest.raises(ValueError, match="x.figure is shown, but its ending is that of no kind"):
        page.render("![x](x.figure)\n", tmp_path, {})


def test_figures_are_named_in_words(tmp_path, out):
    written(experiment(tmp_path / "runs/convergence_30_laptop", ("figure", "slopes_depth")), out)
    html = (out / "results.html").read_text()
    alts = re.findall(r'alt="(.*?)"', html)
    assert [alt.partition("against Xavier's")[2] for alt in alts] == [
        " (laptop)",
        " (laptop): slopes depth",
    ]


def test_an_experiment_that_claims_nothing_has_no_table_of_claims(tmp_path, out):
    text = written(experiment(tmp_path / "runs/x", claims=()), out)
    assert "| claim |" not in text
    assert "\n\n\n" not in text


@pytest.mark.parametrize(
    "text",
    [
        r"\[a](b) [c][d] ![e](f) `g` *h* _i_ __j__ snake_case ~~k~~ $l$ <m> &amp; n|o \| \\",
        "<!-- experiments.report: end -->",
        "https://x.org/_a_?b=1&lt=2",
        "two\n  lines | <script>",
    ],
)
def test_text_is_shown_as_it_is(text, tmp_path):
    shown = page.render(f"| x |\n|---|\n| {escape_markdown(text)} |\n", tmp_path, {})
    cell = re.search("<td>(.*)</td>", shown)[1]
    cell = cell.replace("<br>", "\n  ")
    for sign, entity in (("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("&", "&amp;")):
        cell = cell.replace(entity, sign)
    assert cell == text


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.3, "under 1 s"), (59.6, "1 min"), (3600, "1 h"), (3789.4, "1 h 3 min 9 s")],
)
def test_durations(seconds, shown):
    assert report._duration(seconds) == shown


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({}, "1 min on 2 cores"),
        ({"commands": 2}, "1 min in 2 commands on 2 cores"),
        ({"resumed": True}, "1 min (without the time of a stopped command) on 2 cores"),
        (
            {"resumed": True, "commands": 2},
            "1 min in 2 commands (without the time of a stopped command)",
        ),
    ],
)
def test_the_time_says_of_which_commands_it_is(tmp_path, out, fields, shown):
    folder = experiment(tmp_path / "runs/x", seconds=60, **fields)
    assert f"; {shown}" in written(folder, out)


@pytest.mark.parametrize(
    "text", ["{begin}\n", "{end}\n{begin}\n", "{begin}\n{end}\n{begin}\n{end}"]
)
def test_markers_that_do_not_match_are_refused(runs, out, text):
    text = text.format(begin=report.BEGIN, end=report.END)
    with pytest.raises(ValueError, match=r"results.md has the marker lines .*Correct them"):
        written(runs, out, text)
    assert (out / "results.md").read_text() == text


def test_nothing_is_written_where_something_is_wrong(runs, out):
    with pytest.raises(ValueError, match="missing.png is shown, but not there. Correct the link"):
        written(runs, out, "![x](missing.png)\n")
    (out / "results.md").unlink()
    experiment(runs / "sweep/convergence_30_laptop")
    with pytest.raises(ValueError, match="hold the same experiment.*Rename one"):
        written(runs, out)
    assert list(out.iterdir()) == []


def nul(file):
    file.write_bytes(bytes(30))


DAMAGES = {
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-9]),
    "not UTF-8": lambda file: file.write_bytes(b"\xff" + file.read_bytes()),
    "NUL": nul,
    "a folder": lambda file: file.unlink() or file.mkdir(),
}


@pytest.mark.parametrize("name", ["experiment.json", "table.md", "figure.png"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_experiment_is_left_out_by_name(name, damage, runs, out):
    whole = written(runs, out)
    broken = experiment(runs / "broken", table="| a |\n|---|\n| 1 |\n")
    DAMAGES[damage](broken / name)
    lines = []
    report.report(runs, out, lines.append)
    if name == "table.md" and damage in ("empty", "cut"):  # they leave a text
        assert lines == []
        return
    (line,) = lines
    assert line.startswith("damaged, left out: ")
    assert f"broken/{name}" in line
    assert (out / "results.md").read_text() == whole


@pytest.mark.parametrize("content", ["", "[]", '{"status": 3}', '{"status": "don"}', "\0"])
def test_a_damaged_status_is_a_line(content, runs):
    folder = runs / "convergence_30_laptop/he/seed_0"
    folder.mkdir(parents=True)
    (folder / "status.json").write_text(content)
    (line,) = report.unfinished(runs)
    assert line.startswith(f"damaged, left out: {folder}/status.json is damaged")


EVIL = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[a](javascript:alert(1))",
    "[a]: javascript:alert(1)",
    "<javascript:alert(1)>",
    "<https://evil.example>",
    "![a](https://evil.example/x.png)",
    "```\n<script>alert(1)</script>",
    "~~~\n<script>",
    "<!-- experiments.report: end -->",
    "    <b>code</b>",
    "&lt;b&gt; &#60;script&#62;",
    "| a <b>x</b> | `<script>` |\n|---|---|\n| <i>1</i> | [x][y] |",
    "\\\\[a](javascript:alert(1)) \\<script>",
)


@pytest.mark.parametrize("text", EVIL)
def test_nothing_of_a_run_folder_is_markup_of_the_page(text, runs, out):
    experiment(
        runs / f"x {text.replace('/', '')}"[:100].replace("\0", ""),
        ('"><script>', "a] <b>"),
        f"{text}\n\n- {text}\n\n> {text}",
        command=f"python {text}\n```\n{text}\n{report.END}\n",
        hardware=text,
        versions=f"\n{text}",
        finished=text,
        claims=(Claim(text, True, f"x\n{text}"),),
    )
    experiment(runs / "y", name=text, scale=text)
    experiment(runs / "z_last")
    before = written(runs, out)
    assert written(runs, out) == before  # the markers are still alone
    html = (out / "results.html").read_text()
    tags = Tags()
    tags.feed(html)
    plain = "html meta title style h1 h2 p pre code img table thead tbody tr th td br ul li nav a"
    assert set(tags.attributes) <= {*plain.split(), "blockquote"}
    assert tags.attributes["img"] == {"src", "alt"}
    assert tags.attributes["a"] == {"href"}
    assert set(re.findall(r'<a href="(.)', html)) == {"#"}
    assert {src[:11] for src in re.findall(r'src="(.*?)"', html)} == {"data:image/"}
    assert html.count("<h2 id=") == 4
    assert html.count("<!-- experiment") == 6  # four keys and two markers


class Tags(HTMLParser):
    """The tags of a page, each with all attributes that it has."""

    def __init__(self):
        super().__init__()
        self.attributes = defaultdict(set)

    def handle_starttag(self, tag, attrs):
        self.attributes[tag].update(name for name, _ in attrs)


def test_whatever_the_locale_all_is_utf_8(tmp_path, runs, out):
    experiment(runs / "größe", table="E[y²] ± 3 – ×", hardware="2 × Kerne")
    out.mkdir()
    (out / "results.md").write_text("# Größe\n", encoding="utf-8")
    done = run("report", f"--runs={runs}", f"--out={out}", LC_ALL="C", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    text = (out / "results.md").read_text(encoding="utf-8")
    for part in ("# Größe", "± 3 – ×", "2 × Kerne", "in größe"):
        assert part in text
    assert "± 3 – ×" in (out / "results.html").read_text(encoding="utf-8")


def test_a_bucket_is_refused(tmp_path):
    done = run("report", "--runs=gs://bucket/runs", f"--out={tmp_path}")
    assert done.returncode == 78
    assert "--runs is gs://bucket/runs: expected a folder of an ordinary" in done.stderr


def test_from_a_flag_to_a_page(runs, out):
    for seed, status in enumerate(("done", "running", "diverged")):
        folder = runs / f"convergence_30_laptop/he/seed_{seed}"
        folder.mkdir(parents=True)
        (folder / "status.json").write_text(json.dumps({"status": status, "step": 4}))
    done = run("report", f"--runs={runs}", f"--out={out}")
    assert done.returncode == 0, done.stderr  # though a claim fails: it is reported
    assert done.stdout.splitlines() == [
        f"not finished, left out: {runs}/convergence_30_laptop/he/seed_1",
        "1 PASS, 1 FAIL, 1 UNDECIDED  convergence_30 (laptop)",
        "Written:",
        f"  {out}/results.md",
        f"  {out}/results.html",
    ]
    assert (out / "results.html").stat().st_size > 1000
    assert "seed_1" not in (out / "results.md").read_text()


def test_where_nothing_is_finished_the_command_says_what_to_do(tmp_path):
    done = run("report", f"--runs={tmp_path / 'none'}", f"--out={tmp_path / 'docs'}")
    assert done.returncode == 78
    said = f"error: No finished experiment in {tmp_path / 'none'}: there is no such folder."
    assert done.stderr.startswith(said)
    with pytest.raises(ValueError, match=f"No finished experiment in {tmp_path}. This makes"):
        report.report(tmp_path, tmp_path / "docs")
    command = re.search(r"python -m experiments\.\w+ --scale=laptop", done.stderr)[0]
    assert command in (ROOT / "docs/experiments.md").read_text(encoding="utf-8")
    assert not (tmp_path / "docs").exists()


def test_help_fits_a_screen():
    lines = run("report", "--help").stdout.splitlines()
    assert len(lines) < 24
    assert {"--runs", "--out"} <= {line.strip().partition(" ")[0] for line in lines}
