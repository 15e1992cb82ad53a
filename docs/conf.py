"""Configuration of the documentation site, built by `make docs`."""

import dataclasses
import importlib
import re
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT))

import prelu_jax  # noqa: E402
from prelu_jax.training import config as config_lib  # noqa: E402

project = "prelu_jax"
author = "The prelu_jax authors"
copyright = author
version = release = prelu_jax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build"]
highlight_language = "text"  # of blocks that name none
default_role = "code"  # of text in single backticks in docstrings
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
smartquotes = False  # texts hold values in quotes
html_title = f"prelu_jax {release}"

nb_execution_mode = "off"  # tests/test_notebooks.py executes them; their outputs are stored
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_use_ivar = True
napoleon_use_rtype = False  # "Returns: the status: done or diverged" names no type

EXPERIMENTS = sorted(
    file.stem
    for file in (ROOT / "experiments").glob("*.py")
    if "EXPERIMENT = " in file.read_text(encoding="utf-8")
)


def copy_notebooks() -> None:
    """Copy the notebooks to where Sphinx finds them."""
    target = DOCS / "tutorials"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
        shutil.copy(file, target)


def configuration_page() -> str:
    """Return the page of all fields of all configurations, from the classes."""
    lines = [
        "# Configuration",
        "",
        "Every field is a flag, `--config.FIELD=VALUE`, of every experiment that has it. "
        "`python -m experiments.NAME --help` shows the same texts with the defaults of a scale.",
        "",
        "## Every training run",
        "",
        *_table(config_lib.TrainConfig, {}),
    ]
    for name in EXPERIMENTS:
        experiment = importlib.import_module(f"experiments.{name}").EXPERIMENT
        config = type(next(iter(experiment.scales.values())))
        of_runs = config_lib.field_texts(config_lib.TrainConfig)
        lines += ["", f"## {name}", "", f"Scales: {', '.join(experiment.scales)}.", ""]
        lines += _table(config, of_runs)
    return "\n".join(lines) + "\n"


def _table(config: type, without: dict[str, str]) -> list[str]:
    """Return a table of the fields of a dataclass, without those of the same text elsewhere."""
    texts = config_lib.field_texts(config)
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(config):
        if texts[field.name] != without.get(field.name):
            kind = getattr(field.type, "__name__", field.type)
            default: Any = field.default
            rows.append(f"| `{field.name}` | {kind} | `{default!r}` | {texts[field.name]} |")
    return rows


def mark_code(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Mark the indented examples of a docstring as code, in place: they name no language."""
    marked: list[str] = []
    margin, inside = 0, False  # of the text around an example; whether this line is in one
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if line and indent <= margin:
            inside = False
        elif line and not inside and marked and not marked[-1]:
            inside = True
            marked += [f"{' ' * margin}.. code-block:: python", ""]
        if line and not inside:
            margin = indent
        marked.append(line)
    lines[:] = marked


def escape_names(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escape the last underscore of a parameter's name, in place: `except_` is no reference."""
    lines[:] = [re.sub(r"^(:param \w+)_:", r"\1\\_:", line) for line in lines]


def setup(app: Any) -> None:
    """Write the pages that are made of code before Sphinx reads any; correct docstrings."""
    app.connect("autodoc-process-docstring", mark_code, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", escape_names, priority=600)  # after it
    copy_notebooks()
    (DOCS / "configuration.md").write_text(configuration_page(), encoding="utf-8")
