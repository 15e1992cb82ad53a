"""Tests of the package as a whole: allowed imports, import costs, metadata."""

import ast
import email
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {  # package or module -> other parts of prelu_jax that it may import
    "prelu_jax.entry": set(),
    "prelu_jax.extras": {"entry"},
    "prelu_jax.names": set(),
    "prelu_jax.files": set(),
    "prelu_jax.streams": set(),
    "prelu_jax.draws": set(),
    "prelu_jax.compiling": set(),
    "prelu_jax.rectifiers": set(),
    "prelu_jax.pooling": set(),
    "prelu_jax.axes": set(),
    "prelu_jax.decay": set(),
    "prelu_jax.flax_layers": set(),
    "prelu_jax.printing": set(),
    "prelu_jax.initializers": {
        *("activations", "axes", "draws", "flax_layers", "names", "printing", "quadrature"),
        *("rectifiers", "tracing"),
    },
    "prelu_jax.arch": {"names"},
    "prelu_jax.moment_maps": {"arch", "rectifiers"},
    "prelu_jax.quadrature": set(),
    "prelu_jax.cosines": set(),
    "prelu_jax.activations": {"cosines", "moment_maps", "quadrature", "rectifiers"},
    "prelu_jax.maxima": {"arch", "moment_maps", "pooling"},
    "prelu_jax.correlations": {"arch", "maxima", "moment_maps"},
    "prelu_jax.theory": {"arch", "correlations", "maxima", "moment_maps", "names", "rectifiers"},
    "prelu_jax.modules": {"pooling", "rectifiers", "streams"},
    "prelu_jax.nnx": {"pooling", "rectifiers"},
    "prelu_jax.models": {
        "arch",
        "cosines",
        "initializers",
        "modules",
        "names",
        "pooling",
        "rectifiers",
    },
    "prelu_jax.data": {"entry", "extras", "files", "names", "streams"},
    "prelu_jax.tracing": {"compiling"},
    "prelu_jax.signal": {
        *("axes", "compiling", "cosines", "extras", "flax_layers", "printing", "tracing"),
    },
    # It reads a model in the same way as signal.
    "prelu_jax.datadep": {
        *("axes", "compiling", "draws", "extras", "initializers", "names", "printing", "signal"),
        "tracing",
    },
    "prelu_jax.diagnosis": {"initializers", "models", "signal", "theory"},
    "prelu_jax.evaluation": {"arch", "data", "models", "pooling"},
    "prelu_jax.training": {
        *("arch", "data", "datadep", "decay", "evaluation", "initializers", "models", "names"),
        "signal",
    },
    "prelu_jax.runs": {"data", "entry", "extras", "files", "models", "training"},
    "prelu_jax": {
        *("activations", "arch", "cosines", "datadep", "decay", "diagnosis", "initializers"),
        *("models", "modules", "nnx"),
        *("pooling", "rectifiers", "signal", "theory"),
    },
}
# Modules that must not import Flax.
FLAX_FREE = (
    *("names", "streams", "draws", "compiling", "rectifiers", "arch", "pooling", "moment_maps"),
    *("maxima", "correlations", "theory", "activations", "cosines", "quadrature"),
    *("initializers.fans", "initializers.rules", "initializers.factories"),
)


def modules():
    folders = ("prelu_jax", "experiments", "launch")
    for file in sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py")):
        path = file.relative_to(ROOT).with_suffix("")
        yield ".".join(path.parts).removesuffix(".__init__"), file


def imports(file):
    """Yield the absolute names that a file imports; ``from a import b`` counts as ``a.b``."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_harness_knows_no_command():
    commands = {f"experiments.{file.stem}" for file in (ROOT / "experiments").glob("[!_]*.py")}
    for module, file in modules():
        if module in commands:
            assert 'if __name__ == "__main__":' in file.read_text(encoding="utf-8"), module
        if module.startswith("experiments.harness"):
            used = {".".join(name.split(".")[:2]) for name in imports(file)}
            assert not used & (commands | {"launch"}), (module, used)


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
            {
                *("experiments.harness.depth_figures", "experiments.harness.drawing"),
                "experiments.harness.figures",
                *("experiments.harness.profile_figures", "experiments.harness.slope_figures"),
                *("experiments.harness.takeoff_figures", "prelu_jax.signal.plot"),
            },
        ),
        (
            r"absl import .*\bflags\b",
            {
                *("prelu_jax.data.folder", "prelu_jax.data.idx", "prelu_jax.data.statistics"),
                *("experiments.harness.cli", "experiments.report"),
                *("launch.local", "launch.slurm", "launch.tpu_pod"),
                "prelu_jax.entry",
            },
        ),
    ],
)
def test_some_things_have_one_home(pattern, homes):
    assert {m for m, file in modules() if re.search(pattern, file.read_text())} == homes


def modules_after(statement):
    """Return the modules that a new process has loaded after an import statement."""
    code = f"{statement}\nimport sys; print(*sys.modules)"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()


def test_public_names_are_imported_when_they_are_used():
    import prelu_jax as pj

    assert all(getattr(pj, name) is getattr(pj, name) for name in pj.__all__)
    assert set(pj.__all__) <= set(dir(pj))
    assert pj.prelu.__module__ == "prelu_jax.rectifiers"
    assert pj.moment_maps.__name__ == "prelu_jax.moment_maps"  # a module that is not in __all__
    with pytest.raises(AttributeError, match="no attribute 'prelo'"):
        pj.prelo  # noqa: B018
    assert not {"jax", "flax", "numpy"}.intersection(modules_after("import prelu_jax"))


def test_importing_the_library_brings_in_nothing_heavy():
    loaded = modules_after("from prelu_jax import *")
    assert "jax" in loaded
    heavy = {"tensorflow", "tensorflow_datasets", "grain", "matplotlib", "orbax", "sklearn", "cv2"}
    assert not heavy.intersection(loaded)


def test_a_run_starts_without_unneeded_imports():
    loaded = modules_after("import experiments.convergence_30")
    assert "tensorboardX" in loaded
    heavy = {
        *("torch", "sklearn", "matplotlib", "scipy.stats", "scipy.optimize"),
        "tensorflow_datasets",
    }
    assert not heavy.intersection(loaded)


def test_figures_are_drawn_and_results_gathered_without_jax():
    loaded = modules_after("import experiments.harness.figures, experiments.report")
    assert not {"jax", "flax"}.intersection(loaded)


@pytest.fixture(scope="module")
def metadata(distributions):
    """Return the metadata of the wheel."""
    wheel, _ = distributions
    with zipfile.ZipFile(wheel) as archive:
        (file,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_string(archive.read(file).decode())


def test_wheel_carries_the_licence_and_the_library_alone(distributions, metadata):
    wheel, _ = distributions
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (info,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
        assert "Apache License" in archive.read(f"{info}/licenses/LICENSE").decode()
    assert "prelu_jax/py.typed" in names
    assert {name.partition("/")[0] for name in names} == {"prelu_jax", info}
    assert (metadata["License-Expression"] or metadata["License"]) == "Apache-2.0"
    assert metadata["Author"] == "The prelu_jax authors"
    assert {"Typing :: Typed", "Programming Language :: Python :: 3.13"} <= set(
        metadata.get_all("Classifier")
    )


def test_sdist_holds_every_file_of_the_repository(distributions, tracked):
    _, sdist = distributions
    with tarfile.open(sdist) as archive:
        held = {file.name.partition("/")[2] for file in archive if file.isfile()}
    made = {name for name in held if name.startswith("prelu_jax.egg-info/")}
    assert held - made == tracked | {"PKG-INFO", "setup.cfg"}


def test_the_page_of_a_package_index_has_no_relative_links_and_knows_the_extras(metadata):
    text = metadata.get_payload()
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert links
    assert all(link.startswith("https://") for link in links)
    named = re.findall(r"prelu_jax\[(\w+)\]", text)
    assert named
    assert set(named) <= set(metadata.get_all("Provides-Extra"))


@pytest.mark.parametrize("module", dict(modules()))
def test_text_is_utf_8_whatever_the_locale(module):
    for node in ast.walk(ast.parse(dict(modules())[module].read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if node.func.attr not in ("read_text", "write_text", "open"):
            continue
        if isinstance(node.func.value, ast.Name) and node.func.value.id in ("files", "os"):
            continue  # `prelu_jax.files` uses UTF-8, and `os.open` returns no text
        binary = any(isinstance(a, ast.Constant) and "b" in str(a.value) for a in node.args)
        given = {keyword.arg for keyword in node.keywords}
        assert binary or "encoding" in given, f"{module}:{node.lineno}"
