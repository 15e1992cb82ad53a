"""Tests that run every command and every Python block of the README and of the guides in docs/."""

import gzip
import importlib
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import idx_bytes, write_images
from tests.experiments.conftest import SHORT, environment, run_module

ROOT = Path(__file__).parent.parent
GUIDES = (
    *("getting_started", "experiments", "choosing", "diagnosis", "calibration", "audit", "images"),
    "robustness",
)
PAGES = ("README.md", *(f"docs/{name}.md" for name in GUIDES))


def blocks(page, language):
    """Return the blocks of code of a language, '' for those that name none."""
    text = (ROOT / page).read_text(encoding="utf-8")
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [code for name, code in fenced if name == language]


def shell(page):
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [line for line in (line.partition("#")[0].strip() for line in lines) if line]


SHELL = list(dict.fromkeys(line for page in PAGES for line in shell(page)))
TO_TABLES = "test_large_models.test_from_a_flag_to_the_tables_of_models_and_of_their_ensemble"
# Commands that tests/experiments run, except for the work folder and their length, because those
# tests also check the files that the commands write.
RUN_THERE = {
    **{
        f"python -m experiments.{name} --scale=laptop": f"test_{name}.test_from_a_flag_to_a_picture"
        for name in ("data_dependent", "transfer", "rectifiers", "takeoff", "depth")
    },
    **{
        f"python -m experiments.{name} --scale=laptop": (
            "test_convergence.test_from_a_flag_to_a_picture"
        )
        for name in ("convergence_30", "convergence_22")
    },
    "python -m experiments.signal_profile --scale=laptop": (
        "test_signal_profile.test_from_the_command_to_the_picture"
    ),
    "python -m experiments.rates --scale=laptop": (
        "test_until_trained.test_rates_from_a_flag_to_a_table"
    ),
    "python -m experiments.late_start --scale=laptop": (
        "test_until_trained.test_variants_from_a_flag_to_a_picture"
    ),
    "python -m experiments.large_models --scale=laptop": TO_TABLES,
    "python -m experiments.ensemble --scale=laptop --config.runs=runs/large_models_laptop": (
        TO_TABLES
    ),
    "python -m experiments.borders --scale=laptop --config.runs=runs/large_models_laptop": (
        TO_TABLES
    ),
    "python -m experiments.learning --scale=cifar10": "test_learning.test_from_a_flag_to_the_table",
    "python -m experiments.large_models --scale=imagenet --config.dtype=bfloat16": (
        "test_imagenet_scale.test_from_files_to_tables"
    ),
    "python -m experiments.report": "test_report.test_from_a_flag_to_a_page",
}
# Replacements for datasets that tests do not have.
DATA = ("--config.dataset=digits", "--config.test_split=test")


def commands(start):
    return [line for line in SHELL if line.startswith(start)]


def test_the_two_commands_come_first():
    assert shell("README.md")[:2] == ["make reproduce", "make test"]


def test_the_commands_of_the_table_of_results_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"`(\w+) --scale=(\w+)(?: --seeds=\d+)?`", text)
    assert len(rows) >= 8
    for name, scale in rows:
        assert scale in importlib.import_module(f"experiments.{name}").EXPERIMENT.scales


def test_the_readme_opens_in_a_minute():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    assert len(text.split()) <= 900


def test_every_command_is_of_a_kind_that_is_run_here():
    known = (
        "make ",
        "python -m experiments.",
        "python -m launch.local ",
        "python -m launch.slurm ",
        "python -m prelu_jax.data.",
        "pip install ",
    )
    assert [line for line in SHELL if not line.startswith(known)] == []


@pytest.mark.parametrize("line", commands("make "))
def test_make_knows_the_target(line):
    # `make -n docs` would pass without a rule: there is a folder of that name.
    rules = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert {word for word in shlex.split(line)[1:] if "=" not in word} <= set(rules)


def test_make_reproduce_is_the_laptop_comparison():
    dry = subprocess.run(["make", "-n", "reproduce"], cwd=ROOT, capture_output=True, text=True)
    assert "-m experiments.convergence_30 --scale=laptop" in dry.stdout


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python_blocks_run_in_order_and_print_what_the_page_quotes(
    page, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks(page, "python"):
        # The one training run is cut short.
        code = block.replace("num_steps=200", "num_steps=2")
        exec(compile(code, page, "exec"), names)
    printed = capsys.readouterr().out
    quoted = [text for text in blocks(page, "") if "vanishing" in text]
    assert len(quoted) == (page in ("README.md", "docs/diagnosis.md"))
    for text in quoted:
        assert _words(text) in _words(printed)


def _words(text):
    """Return a text with its numbers, which depend on the processor, as #."""
    return " ".join(re.sub(r"\d[\d.e,+-]*", "#", text).split())


@pytest.mark.parametrize("line", commands("python -m launch.slurm "))
def test_slurm_would_be_given_the_experiment(line):
    arguments = [part for part in shlex.split(line)[1:] if part != "--dry_run"]
    arguments.insert(arguments.index("launch.slurm") + 1, "--dry_run")
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"-m {line.partition(' -- ')[2]}" in done.stdout


@pytest.mark.parametrize(("line", "test"), RUN_THERE.items())
def test_commands_that_other_tests_run_are_on_a_page_and_in_those_tests(line, test):
    assert line in SHELL
    module, _, function = test.partition(".")
    there = getattr(importlib.import_module(f"tests.experiments.{module}"), function)
    experiment = line.split()[2].removeprefix("experiments.")
    source = inspect.getsource(there)  # with its parameters
    assert re.search(rf'run\w*\(\s*\*?\(?("(experiments\.)?{experiment}"|experiment,)', source)
    assert f'{experiment}"' in source


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", [c for c in commands("python -m experiments.") if c not in RUN_THERE]
)
def test_experiments_run(line, tmp_path):
    _, _, module, *given = shlex.split(line)
    arguments = [*given, *SHORT, f"--workdir={tmp_path}"]
    if "--scale=laptop" not in line and "--scale=stall" not in line:
        arguments += DATA
    if "--scale=imagenet" in line:
        arguments += ["--config.min_side=32", "--config.max_side=32", "--config.converged=0.5"]
        stays = {"experiments.convergence_30": "stalled=0.8"}.get(module, "threshold=0.5")
        arguments.append(f"--config.{stays}")  # for ten classes
    done = run_module(module, *arguments)
    assert "Claims:" in done.stdout, done.stderr
    assert done.returncode in (0, 1), done.stderr
    assert (tmp_path / "figure.png").exists()


def test_folders_are_imported_and_measured(tmp_path):
    images = write_images(tmp_path / "images", {"train": {"a": 2}, "test": {"a": 1}})
    imported, _ = commands("python -m prelu_jax.data.folder ")
    (measured,) = commands("python -m prelu_jax.data.statistics ")
    for line, changes, output in (
        (imported, [f"--images={images}"], "cifar10/train: 2 images"),
        (measured, ["--dataset=cifar10"], "2 images; mean red, green, blue"),
    ):
        arguments = [*shlex.split(line)[1:], *changes, f"--data_dir={tmp_path / 'tfds'}"]
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert output in done.stdout


def test_idx_files_are_imported(tmp_path):
    (tmp_path / "DIR").mkdir()
    for split in ("train", "t10k"):
        images, labels = np.zeros((2, 4, 4), np.uint8), np.arange(2, dtype=np.uint8)
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            file = tmp_path / f"DIR/{split}-{kind}-ubyte.gz"
            file.write_bytes(gzip.compress(idx_bytes(values)))
    _, imported = commands("python -m prelu_jax.data.folder ")
    for line in (*commands("python -m prelu_jax.data.idx "), f"{imported} --data_dir=tfds"):
        done = subprocess.run(
            [sys.executable, *shlex.split(line)[1:]],
            cwd=tmp_path,
            env={**environment(), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert "fashion_mnist/train: 2 images" in done.stdout
