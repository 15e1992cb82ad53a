"""Test of the wheel without extras, in a new environment from the package index."""

import email
import os
import re
import subprocess
import sys
import zipfile

import pytest

from tests.test_readme import blocks

# Of the extras, less those that Flax needs too.
OF_EXTRAS = {
    *("array_record", "grain", "matplotlib", "ml_collections", "opencv-python-headless", "pillow"),
    *("scikit-learn", "submitit", "tensorboardX", "tensorflow-datasets", "threadpoolctl", "tqdm"),
}
LIST = "from importlib import metadata as m; print(*(d.name for d in m.distributions()))"


@pytest.fixture(scope="module")
def python(distributions, tmp_path_factory):
    """Return a function that runs the Python of an environment with the wheel alone.

    It works in an empty folder and sees neither this repository nor this environment.
    """
    wheel, _ = distributions
    home, empty = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("empty")
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*arguments, stdin="", program=home / "bin/python"):
        return subprocess.run(
            [program, *arguments], cwd=empty, env=own, input=stdin, capture_output=True, text=True
        )

    made = run("-m", "venv", home, program=sys.executable)
    assert made.returncode == 0, made.stderr
    probe = run("-m", "pip", "download", "--quiet", "--no-deps", f"--dest={home}", "absl-py")
    if probe.returncode:
        pytest.skip(f"the package index cannot be reached: {probe.stderr.splitlines()[-1:]}")
    installed = run("-m", "pip", "install", "--quiet", wheel)
    assert installed.returncode == 0, installed.stderr
    return run


@pytest.mark.slow
def test_no_package_of_an_extra_is_installed(python):
    installed = {re.sub(r"[-_.]+", "-", name).lower() for name in python("-c", LIST).stdout.split()}
    assert {"prelu-jax", "jax", "flax"} <= installed
    assert not {name.replace("_", "-").lower() for name in OF_EXTRAS} & installed
    assert not {name for name in installed if name.startswith("opencv")}


@pytest.mark.slow
def test_the_examples_of_both_front_pages_run(python, distributions):
    with zipfile.ZipFile(distributions[0]) as archive:
        (file,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        page = email.message_from_string(archive.read(file).decode()).get_payload()
    of_index = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert of_index
    for examples in (blocks("README.md", "python"), of_index):
        done = python("-c", "\n".join(examples))
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_what_lacks_an_extra_names_it(python):
    """tests/test_extras.py has all cases, with packages hidden."""
    module = python("-c", "from prelu_jax.runs import trainer")
    line = module.stderr.splitlines()[-1]
    assert line.startswith("ImportError: ")
    assert line.endswith("pip install 'prelu_jax[train]'")
    command = python("-m", "prelu_jax.data.folder", "--help")
    (line,) = command.stderr.splitlines()
    assert line.startswith("error: prelu_jax.data needs PIL, cv2, grain, tqdm, ")
    assert line.endswith("pip install 'prelu_jax[data]'")
    assert command.returncode == 78
