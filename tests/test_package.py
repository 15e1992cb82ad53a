"""What the package promises as a whole: who imports whom, and what importing it costs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {  # package or module -> what of the project it may import, besides itself
    "prelu_jax.names": set(),
    "prelu_jax.streams": set(),
    "prelu_jax.rectifiers": set(),
    "prelu_jax.pooling": set(),
    "prelu_jax.initializers": {"names", "rectifiers"},
    "prelu_jax.arch": {"names"},
    "prelu_jax.moment_maps": {"arch", "rectifiers"},
    "prelu_jax.maxima": {"arch", "moment_maps", "pooling"},
    "prelu_jax.theory": {"arch", "maxima", "moment_maps", "names", "rectifiers"},
    "prelu_jax.modules": {"pooling", "rectifiers", "streams"},
    "prelu_jax.nnx": {"pooling", "rectifiers"},
    "prelu_jax.models": {"arch", "initializers", "modules", "names", "pooling", "rectifiers"},
    "prelu_jax.data": {"names", "streams"},
    "prelu_jax.signal": set(),
    "prelu_jax.datadep": {"initializers", "names", "signal"},  # to see a model as signal does
    "prelu_jax.diagnosis": {"models", "signal", "theory"},
    "prelu_jax.evaluation": {"arch", "data", "models", "pooling"},
    "prelu_jax.training": {
        *("arch", "data", "datadep", "evaluation", "initializers", "models", "names", "signal"),
    },
    "prelu_jax": {
        *("arch", "datadep", "diagnosis", "initializers", "models", "modules", "nnx", "pooling"),
        *("rectifiers", "signal", "theory"),
    },
}
# `initializers.layers` alone knows Flax's layers; the rules and the fans do not.
FLAX_FREE = (
    *("names", "streams", "rectifiers", "arch", "pooling", "moment_maps", "maxima", "theory"),
    *("initializers.fans", "initializers.rules", "initializers.factories"),
)


def modules():
    folders = ("prelu_jax", "experiments", "launch")
    for file in sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py")):
        path = file.relative_to(ROOT).with_suffix("")
        yield ".".join(path.parts).removesuffix(".__init__"), file


def imports(file):
    """Absolute dotted names that a file imports; ``from a import b`` counts as ``a.b``."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_follow_the_layers():
    for module, file in modules():
        for name in imports(file):
            if module.startswith("prelu_jax"):
                assert not name.startswith(("experiments", "launch")), (module, name)
                owner = ".".join(module.split(".")[:2])
                if name.startswith("prelu_jax."):
                    part = name.split(".")[1]
                    own = owner.removeprefix("prelu_jax.")
                    assert part == own or part in ALLOWED[owner], (module, name)
            if module.removeprefix("prelu_jax.") in FLAX_FREE:
                assert not name.startswith("flax"), (module, name)


@pytest.mark.parametrize(
    ("pattern", "homes"),
    [
        (r"\bpmap\(", {"prelu_jax.training.parallel"}),
        (
            r"(import|from) matplotlib",
            {"experiments.figures", "experiments.slope_figures", "prelu_jax.signal.plot"},
        ),
        (
            r"absl import .*\bflags\b",
            {
                *("prelu_jax.data.folder", "prelu_jax.data.statistics"),
                *("experiments.common", "experiments.report"),
                *("launch.local", "launch.slurm", "launch.tpu_pod"),
            },
        ),
    ],
)
def test_some_things_have_one_home(pattern, homes):
    assert {m for m, file in modules() if re.search(pattern, file.read_text())} == homes


def modules_after(imported):
    """All that is loaded in a new process when it has imported some modules."""
    code = f"import sys, {imported}; print(*sys.modules)"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()


def test_importing_the_library_brings_in_nothing_heavy():
    loaded = modules_after("prelu_jax")
    assert "jax" in loaded
    heavy = {"tensorflow", "tensorflow_datasets", "grain", "matplotlib", "orbax", "sklearn", "cv2"}
    assert not heavy.intersection(loaded)


def test_a_run_starts_without_what_it_does_not_need():
    loaded = modules_after("experiments.convergence_30")
    assert "tensorboardX" in loaded
    heavy = {"torch", "sklearn", "matplotlib", "scipy.stats", "tensorflow_datasets"}
    assert not heavy.intersection(loaded)


def test_figures_are_drawn_and_results_gathered_without_jax():
    loaded = modules_after("experiments.figures, experiments.report")
    assert not {"jax", "prelu_jax", "flax"}.intersection(loaded)
