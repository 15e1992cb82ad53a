"""What experiments make of the machine."""

import os
import subprocess
import sys


def test_small_programs_too_are_kept_between_commands(tmp_path):
    code = (
        "import jax; from experiments import machine; machine.cache_compilations();"
        "jax.jit(lambda x: x + 1)(1)"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert any((tmp_path / "prelu_jax/xla").glob("jit__lambda*"))
