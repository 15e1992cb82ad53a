"""Settings for the machine that experiments run on."""

import os
import platform
import subprocess
import sys

import pytest

from tests.experiments.conftest import ROOT


def test_small_programs_too_are_kept_between_commands(tmp_path):
    code = (
        "import jax; from experiments.harness import machine; machine.cache_compilations();"
        "jax.jit(lambda x: x + 1)(1)"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert any((tmp_path / "prelu_jax/xla").glob("jit__lambda*"))


NO_HOME = """
import os, pwd
os.environ.pop("HOME", None)
def no_entry(uid):
    raise KeyError(uid)
pwd.getpwuid = no_entry
"""


@pytest.mark.parametrize(
    "home", ["", "os.environ['HOME'] = '/no/such/folder'", "os.environ['HOME'] = '/proc'"]
)
def test_without_a_home_folder_nothing_is_kept_and_all_else_is_as_ever(home):
    code = (
        f"{NO_HOME}\n{home}\nos.environ.pop('XDG_CACHE_HOME', None)\n"
        "import jax; from experiments.harness import machine; machine.cache_compilations();"
        "print(jax.jit(lambda x: x + 1)(1), jax.config.jax_compilation_cache_dir)"
    )
    environment = {**os.environ}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "2 None\n", done.stderr
    assert not os.path.exists("/no/such/folder")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="Other libraries keep what they do.")
def test_memory_that_is_given_back_stays_for_the_next_step():
    code = """
import resource, sys
import numpy as np
from experiments.harness import machine

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        np.ones(2**23)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
machine.keep_freed_memory()
np.ones(2**23)
print(faults() / given_back)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 0.01
