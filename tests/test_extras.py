"""Tests of the errors of missing optional dependencies, and of the dependencies in setup.py."""

import ast
import functools
import importlib
import re
import runpy
import subprocess
import sys
from importlib import metadata

import jax
import pytest
import setuptools

import experiments
import prelu_jax as pj
from prelu_jax import extras
from tests.experiments.conftest import ROOT, environment


def without(monkeypatch, *modules):
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)


def test_installed_modules_are_not_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "tabnanny", raising=False)
    extras.require("this test", "train", "tabnanny")
    assert "tabnanny" not in sys.modules


def test_the_error_names_what_is_missing_and_the_extra(monkeypatch):
    without(monkeypatch, "cv2")
    one = "^this test needs cv2, which is not installed: pip install 'prelu_jax\\[train\\]'$"
    with pytest.raises(ImportError, match=one):
        extras.require("this test", "train", "cv2", "numpy")
    with pytest.raises(ImportError, match="needs cv2, no_such_module, which are not installed"):
        extras.require("this test", "train", "cv2", "no_such_module")


def test_an_import_that_fails_names_the_package_and_the_extra(monkeypatch):
    without(monkeypatch, "cv2")
    named = pytest.raises(ImportError, match=r"needs cv2, which .* 'prelu_jax\[train\]'")
    with named, extras.needed("this test", "train"):
        import cv2  # noqa: F401
    named = pytest.raises(ImportError, match="needs no_such_package, which")
    with named, extras.needed("this test", "train"):
        importlib.import_module("no_such_package.module")


@pytest.mark.parametrize("name", ["prelu_jax.no_such_module", None])
def test_other_errors_of_an_import_stay_as_they_are(name):
    error = ModuleNotFoundError("broken", name=name)
    with pytest.raises(ModuleNotFoundError) as raised, extras.needed("this test", "train"):
        raise error
    assert raised.value is error


def test_drawing_a_report_needs_matplotlib(monkeypatch):
    params = {"w": jax.numpy.eye(4)}
    report = pj.diagnose(
        lambda p, x: x @ p["w"], params, jax.random.normal(jax.random.key(0), (8, 4))
    )
    without(monkeypatch, "matplotlib", "matplotlib.figure")
    monkeypatch.delitem(sys.modules, "prelu_jax.signal.plot", raising=False)
    monkeypatch.delattr(pj.signal, "plot", raising=False)
    with pytest.raises(ImportError, match=r"report.plot\(\) needs matplotlib.*prelu_jax\[plot\]"):
        report.plot()


def test_kmeans_needs_scikit_learn_before_anything_is_computed(monkeypatch):
    without(monkeypatch, "sklearn", "threadpoolctl")
    missing = r"'kmeans' needs sklearn, threadpoolctl, .*prelu_jax\[kmeans\]"
    params = {"w": jax.numpy.eye(4)}
    with pytest.raises(ImportError, match=missing):
        pj.calibrate(lambda p, x: x @ p["w"], params, jax.numpy.ones((8, 4)), method="kmeans")
    with pytest.raises(ImportError, match=missing):
        pj.datadep.FromPatches(kind="kmeans")
    pj.datadep.FromPatches(kind="pca")


@pytest.mark.parametrize(
    ("absent", "statement", "error"),
    [
        ("cv2", "import prelu_jax.training.recipe", "needs cv2, .*[train]"),
        ("cv2", "import prelu_jax.data.idx", "prelu_jax.data.idx needs cv2, .*[train]"),
        ("grain", "import prelu_jax.data.pipeline", "needs grain, .*[train]"),
        ("tensorboardX", "import prelu_jax.runs.trainer", "needs tensorboardX, .*[train]"),
        (
            "ml_collections",
            "from experiments import convergence_30",
            "the package experiments needs ml_collections, .*[train]",
        ),
        ("tqdm", "import prelu_jax.data.folder", "prelu_jax.data.folder needs tqdm, .*[data]"),
        (
            "sklearn",
            "from prelu_jax.data import sources; sources.load('digits', 'train')",
            "dataset 'digits' needs sklearn, .*[train]",
        ),
    ],
)
def test_modules_of_training_name_their_extra(absent, statement, error):
    code = f"import sys; sys.modules[{absent!r}] = None; {statement}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert re.search(error.replace("[", r"\[").replace("]", r"\]"), done.stderr.splitlines()[-1])


def test_a_failed_import_of_tensorboardx_does_not_hide_pytorch():
    code = (
        "import sys; sys.modules['tensorboardX'] = None\n"
        "try: import prelu_jax.runs.events\n"
        "except ImportError: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize(
    ("command", "absent", "error"),
    [
        ("experiments.convergence_30", "grain,tqdm", "experiments needs grain, tqdm, "),
        ("experiments.report", "cv2", "experiments needs cv2, "),
        ("prelu_jax.data.folder", "cv2", "prelu_jax.data needs cv2, "),
        ("prelu_jax.data.folder", "tensorflow_datasets", "needs tensorflow_datasets, "),
        ("prelu_jax.data.idx", "tqdm", "prelu_jax.data needs tqdm, "),
    ],
)
def test_commands_end_with_one_line(command, absent, error, tmp_path):
    hide = f"import sys; sys.modules |= dict.fromkeys({absent.split(',')})"
    (tmp_path / "sitecustomize.py").write_text(hide)
    done = subprocess.run(
        [sys.executable, "-m", command],
        cwd=ROOT,
        env=environment(PYTHONPATH=f"{tmp_path}:{ROOT}"),
        capture_output=True,
        text=True,
    )
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert error in line
    assert re.search(r"pip install 'prelu_jax\[(train|data)\]'$", line)
    assert done.returncode == 78


# The extra that a part of the repository may import from, besides the base dependencies. The
# longest name counts.
EXTRA_OF = {
    "prelu_jax": None,
    "prelu_jax.signal.plot": "plot",
    "prelu_jax.datadep.filters": "kmeans",
    **dict.fromkeys(("prelu_jax.data", "prelu_jax.evaluation", "prelu_jax.training"), "train"),
    **dict.fromkeys(("prelu_jax.runs", "experiments"), "train"),
    **dict.fromkeys(("prelu_jax.data.folder", "prelu_jax.data.sources"), "data"),
    "launch": None,
    "launch.slurm_executor": "launch",
    "benchmarks": "bench",
    "docs": "docs",
    "tests": "test",
    "tests.golden.make_torch": "bench",
}


@pytest.fixture(scope="module")
def declared():
    """Return the packages of each extra in setup.py, and under None those of no extra."""
    given = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **options: given.update(options))
        runpy.run_path(str(ROOT / "setup.py"))
    lists = {None: given["install_requires"], **given["extras_require"]}
    return {
        extra: [normal(re.match(r"[\w-]+", line)[0]) for line in lines]
        for extra, lines in lists.items()
    }


def normal(package):
    return package.lower().replace("-", "_")


@functools.cache
def imported():
    """Return pairs: a module of the repository, a module of another package that it imports."""
    pairs = set()
    for top in sorted({name.partition(".")[0] for name in EXTRA_OF}):
        for file in sorted((ROOT / top).rglob("*.py")):
            path = file.relative_to(ROOT).with_suffix("")
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                names = [node.module] if isinstance(node, ast.ImportFrom) else []
                names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
                for name in {name.partition(".")[0] for name in names}:
                    if name not in sys.stdlib_module_names and not (ROOT / name).is_dir():
                        pairs.add((".".join(path.parts), name))
    return sorted(pairs)


def extra_of(module):
    of = [name for name in EXTRA_OF if f"{module}.".startswith(f"{name}.")]
    return EXTRA_OF[max(of, key=len)]


@functools.cache
def packages_of(name):
    """Return the packages on the index that may contain a module."""
    return {normal(package) for package in installed().get(name, [name])}


@functools.cache
def installed():
    return metadata.packages_distributions()


def test_every_import_is_a_declared_dependency(declared):
    for module, name in imported():
        if name == "tensorflow":  # in an environment of its own, $INPUT_TF_PYTHON
            continue
        known = {*declared[None], *declared.get(extra_of(module), ())}
        assert packages_of(name) & known, (module, name)


def test_every_dependency_of_the_library_and_of_training_is_imported(declared):
    used = {None: set(), "train": set()}
    for module, name in imported():
        extra = extra_of(module)
        if not module.startswith(("benchmarks", "docs", "tests")):
            used[None if extra is None else "train"] |= packages_of(name)
    assert set(declared[None]) <= used[None]
    assert set(declared["train"]) <= used["train"]


def test_extras_contain_the_extras_that_they_need(declared):
    assert all(len(set(packages)) == len(packages) for packages in declared.values())
    sets = {extra: set(packages) for extra, packages in declared.items()}
    assert sets["plot"] | sets["kmeans"] <= sets["train"]
    for extra in ("data", "bench", "notebook", "launch", "docs", "test"):
        assert sets["train"] <= sets[extra], extra
    assert sets["data"] | sets["launch"] | sets["notebook"] <= sets["test"]
    assert not sets[None] & sets["train"]


def test_the_command_of_an_experiment_looks_for_all_packages_of_training(declared, monkeypatch):
    looked_for = set()
    monkeypatch.setattr(sys, "argv", ["-m"])
    monkeypatch.setattr(extras, "check_command", lambda _, __, *names: looked_for.update(names))
    importlib.reload(experiments)
    found = [packages_of(name) & set(declared["train"]) for name in looked_for]
    assert set().union(*found) == set(declared["train"])
    assert all(found)


def test_the_library_imports_packages_of_extras_where_an_error_names_the_extra(declared):
    with_flax = {"optax", "orbax"}
    # Code that runs after `report.plot` or `FromPatches` has looked for its packages.
    after_a_check = {"prelu_jax.signal.plot", "prelu_jax.datadep.filters"}
    for module, name in imported():
        if not module.startswith("prelu_jax") or module in after_a_check or name in with_flax:
            continue
        if not packages_of(name) & set(declared[None]):
            file = ROOT / f"{module.replace('.', '/')}.py"
            assert name in guarded(file), (module, name)


def guarded(file):
    """Return the modules that a file imports in the body of `with extras.needed(...)`."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.With) and "extras.needed(" in ast.unparse(node.items[0]):
            for line in ast.walk(node):
                if isinstance(line, ast.ImportFrom):
                    names.add(line.module.partition(".")[0])
                elif isinstance(line, ast.Import):
                    names |= {alias.name.partition(".")[0] for alias in line.names}
    return names
