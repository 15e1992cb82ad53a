"""Tests of the documentation's pages: links, anchors and headings."""

import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Pages that `make docs` writes, not in the repository.
GENERATED = {"docs/configuration.md"}
PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in (*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"))
    if "_build" not in page.parts and str(page.relative_to(ROOT)) not in GENERATED
)
FINDINGS = sorted(page for page in PAGES if page.startswith("docs/findings/"))
SOURCES = [
    file
    for folder in ("prelu_jax", "experiments", "launch", "benchmarks", "tests")
    for file in sorted((ROOT / folder).rglob("*.py"))
]


@cache
def prose(page):
    """Return the text of a page without blocks of code."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.sub(r"^(`{3,}).*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)


def links(page):
    """Yield path and anchor of every link and image within the repository; '' where none."""
    text = re.sub(r"`[^`]*`", "", prose(page))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"\w+:", target):
            path, _, anchor = target.partition("#")
            yield path, anchor


@cache
def anchors(page):
    """Return the anchors that GitHub and MyST give to the headings of a page."""
    seen, result = Counter(), set()
    for title in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        result.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return result


@pytest.mark.parametrize("page", PAGES)
def test_links_and_anchors_exist(page):
    for path, anchor in links(page):
        file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        if str(file.relative_to(ROOT)) in GENERATED and page.startswith("docs/"):
            continue
        assert file.exists(), f"{page} links to {path}, which does not exist"
        if anchor:
            known = anchors(str(file.relative_to(ROOT)))
            assert anchor in known, f"{page} links to {path}#{anchor}; {path} has {sorted(known)}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/")])
def test_a_page_has_one_title(page):
    assert len(re.findall(r"^# ", prose(page), re.MULTILINE)) == 1


def test_every_page_of_findings_is_in_the_index_and_on_the_site():
    names = [page.removeprefix("docs/") for page in FINDINGS]
    assert names
    assert {path for path, anchor in links("docs/findings.md") if not anchor} >= set(names)
    listed = (ROOT / "docs/index.md").read_text(encoding="utf-8").split()
    assert {name.removesuffix(".md") for name in names} <= set(listed)


@pytest.mark.parametrize("page", FINDINGS)
def test_every_finding_has_a_date_and_the_newest_come_first(page):
    entries = prose(page).split("\n## ")[1:]
    dates = [re.match(r".+\n\n\*(20\d\d-\d\d-\d\d)\.", entry) for entry in entries]
    assert None not in dates, page
    dates = [date[1] for date in dates]
    assert dates == sorted(dates, reverse=True)


def test_pages_named_in_the_source_exist_with_their_sections():
    for file in SOURCES:
        text = re.sub(r"\s+#?\s*", " ", file.read_text(encoding="utf-8"))
        for page, section in re.findall(r"(docs/[\w/-]+\.md)(?:, \"([^\"]+)\")?", text):
            assert page in PAGES or page in GENERATED, f"{file} names {page}"
            title = f"# {section}\n"
            assert not section or title in prose(page), f"{file}: {page} has no '{section}'"
