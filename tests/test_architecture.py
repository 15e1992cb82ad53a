"""Tests of docs/architecture.md: its examples of changes apply, and what they add works."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.experiments.conftest import SHORT_14, environment

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
ADDED = """
import jax
import prelu_jax as pj

model = pj.models.build(pj.arch.SMALL_14_REDUCED, rectifier="very_leaky_relu")
assert model.initializer.variance((3, 3, 8, 8)) == 2 / (1 + 5.5**-2) / 72
rule = pj.initializers.get("he_geometric", negative_slope=0.0)
assert abs(rule.variance((4, 9)) - 2 / 6) < 1e-12
kernel, x = jax.random.split(jax.random.key(0))
params = {"w": jax.random.normal(kernel, (8, 8))}
x = jax.random.normal(x, (64, 8))
params, report = pj.calibrate(lambda p, x: x @ p["w"], params, x, method="unit_channels")
assert abs((x @ params["w"]).std(0) - 1).max() < 1e-5
"""


def test_the_examples_apply_and_work(tmp_path):
    for folder in ("prelu_jax", "experiments"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    diffs = re.findall(r"```diff\n(.*?)```", PAGE, re.DOTALL)
    assert len(diffs) == 4  # a rectifier, an initialiser, a calibration method, an experiment

    def run(*command, **options):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("git", "apply", "-", input="".join(diffs))
    run(sys.executable, "-m", "ruff", "check", ".")
    run(sys.executable, "-m", "ruff", "format", "--check", ".")
    here = environment(PYTHONPATH=str(tmp_path))
    run(sys.executable, "-c", ADDED, env=here)
    command = ("-m", "experiments.momentum", "--scale=laptop", *SHORT_14, "--config.converged=0.99")
    printed = run(sys.executable, *command, "--workdir=run", env=here)
    assert "momentum 0.9: final error at most 99%" in printed
    assert (tmp_path / "run/figure.png").exists()


def test_every_part_is_listed():
    parts = {file.name for file in (ROOT / "prelu_jax").iterdir() if file.is_dir()}
    listed = PAGE.partition("## How the data flows")[0]
    assert [part for part in parts - {"__pycache__"} if f"`{part}/`" not in listed] == []
