"""Shared set-up of all tests: four CPU devices, strict promotion, a cache of compiled programs."""

import contextlib
import importlib
import math
import os
import shutil
import subprocess
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["NPROC"] = "16"  # threads; see experiments.harness.machine.use_every_core
# Threads of LAPACK wait in a loop, which takes ten times the processor time of a small QR.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

from collections.abc import Iterator
from pathlib import Path

import cv2
import hypothesis
import jax
import numpy as np
import pytest

from experiments.harness import machine

machine.cache_compilations()  # most of the suite's time is compilation
if folder := jax.config.jax_compilation_cache_dir:  # for notebooks and other programs of tests too
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
if not jax.config.jax_enable_x64:  # with 64-bit defaults, tests mix them with 32-bit parameters
    jax.config.update("jax_numpy_dtype_promotion", "strict")


def _draw_flat() -> None:
    """Let JAX draw arrays flat, for tests of models with Flax's initialisers.

    The bits are the same, and XLA takes up to twenty seconds less for each shape
    (docs/findings/compilation.md). A version of JAX without the private function draws as it does.
    """
    with contextlib.suppress(ImportError, AttributeError):
        threefry = importlib.import_module("jax._src.random.threefry2x32")
        draw = threefry._threefry_random_bits_partitionable
        threefry._threefry_random_bits_partitionable = lambda key, width, shape: draw(
            key, width, (math.prod(shape),)
        ).reshape(shape)


_draw_flat()

# No deadline, because the first call of a shape compiles; the same examples in every run.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("project")


# Folders and modules whose tests start commands or train runs: minutes each without compilation.
_OF_RUNS = {"experiments", "faults", "integration", "launch"}
_OF_RUNS |= {"test_benchmarks", "test_input_benchmark", "test_notebooks", "test_readme"}
_OF_RUNS |= {"test_full_size", "test_trainer", "test_loggers", "test_pretrained", "test_processes"}
_OF_RUNS |= {"test_batches", "test_scaling", "test_step", "test_wheel_alone"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put modules with slow tests first, so that no worker is left with one at the end.

    With JAX_DISABLE_JIT, skip tests of compiled programs and those that take minutes.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if not jax.config.jax_disable_jit:
        return
    for item in items:
        marker = item.get_closest_marker("compiled")
        why = marker.args[0] if marker else "starts commands or trains runs"
        if marker or _OF_RUNS & {item.path.stem, item.path.parent.name}:
            item.add_marker(pytest.mark.skip(reason=f"without compilation: {why}"))


@pytest.fixture(scope="module", autouse=True)
def _programs_of_a_module() -> Iterator[None]:
    """Free the programs that a module compiled: a process may map only 65,530 regions.

    The limit is vm.max_map_count. A worker reached 44,005 regions; at the limit XLA's compiler ends
    the process with a segmentation fault (docs/findings/robustness.md).
    """
    yield
    jax.clear_caches()


ROOT = Path(__file__).parent.parent
# Files that commands write among those of the repository; git ignores them.
_MADE = ("docs/configuration.md", "docs/results.html", "docs/_build/html/a.html", "tests/a.pyc")


@pytest.fixture(scope="session")
def tracked() -> set[str]:
    """Return the files of the repository: those that git tracks, or would by `git add .`."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git repository")
    return {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}


@pytest.fixture(scope="session")
def distributions(tracked, tmp_path_factory) -> tuple[Path, Path]:
    """Return the wheel and the sdist, built from a copy of the repository."""
    copy = tmp_path_factory.mktemp("repository")
    for name in (*tracked, *_MADE):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        if name in _MADE:
            (copy / name).touch()
        else:
            shutil.copy(ROOT / name, copy / name)
    code = "from setuptools import build_meta as b; b.build_wheel('dist'); b.build_sdist('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, check=True)
    (wheel,), (sdist,) = ((copy / "dist").glob(end) for end in ("*.whl", "*.tar.gz"))
    return wheel, sdist


GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def check_golden():
    """Return a function that compares text with a file of tests/golden.

    UPDATE_GOLDEN=1 rewrites the file.
    """

    def check(name: str, text: str) -> None:
        file = GOLDEN / name
        if os.environ.get("UPDATE_GOLDEN"):
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        assert text == file.read_text(), f"differs from {file}; UPDATE_GOLDEN=1 rewrites it"

    return check


def write_images(root: Path, counts: dict[str, dict[str, int]], side: int = 40) -> Path:
    """Write smooth random images, at least ``side`` wide, as ``root/<split>/<class>/<i>.jpg``."""
    rng = np.random.default_rng(0)
    for split, classes in counts.items():
        for label, count in classes.items():
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                height, width = side + 3 * i, side + 7
                coarse = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
                image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
                (folder / f"{i}.jpg").write_bytes(cv2.imencode(".jpg", image)[1].tobytes())
    return root


def idx_bytes(values: np.ndarray) -> bytes:
    """Return unsigned bytes as an IDX file's content."""
    sizes = b"".join(n.to_bytes(4) for n in values.shape)
    return bytes((0, 0, 8, values.ndim)) + sizes + values.tobytes()
