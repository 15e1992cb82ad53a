"""Tests of the parts that all commands share: failing output, help, flag errors, statuses."""

import subprocess
import sys

import pytest

from prelu_jax import entry
from tests.experiments.conftest import ROOT, environment
from tests.waiting import PATIENCE

# A command with two flags whose argument decides how it ends, and that prints non-ASCII text.
COMMAND = """
'''A command – for tests.'''
import sys, time
from absl import app, flags
from prelu_jax import entry

flags.DEFINE_integer("steps", 1, "How many.")

def main(argv):
    print("étude – progress", file=sys.stderr)
    print("étude – result")
    match argv[1]:
        case "refused": raise SystemExit("error: no such thing")
        case "usage": raise app.UsageError("too few")
        case "crash": raise RuntimeError("CUDA error")
        case "ctrl-c": raise KeyboardInterrupt
        case "memory": raise MemoryError
    return int(argv[1])

with entry.command():
    values = {"learning_rate": 0.1, "num_steps": 3, "flip": True}
    fields = {name: entry.Field(value) for name, value in values.items()}
    sys.exit(main(entry.parse_flags(lambda: fields)))
"""
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0"}
MODULES = (
    *(f"experiments.{name}" for name in ("convergence_30", "signal_profile", "ensemble", "report")),
    *("launch.local", "launch.slurm", "launch.tpu_pod"),
    *("prelu_jax.data.folder", "prelu_jax.data.statistics"),
    *("benchmarks.run", "benchmarks.summary", "benchmarks.first_step", "benchmarks.growth"),
    *("benchmarks.input_readers", "benchmarks.scaling_tables", "benchmarks.loopback_worker"),
)


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    file = tmp_path_factory.mktemp("entry") / "command.py"
    file.write_text(COMMAND, encoding="utf-8")
    return file


def shell(script, arguments, redirection="", **variables):
    """Run the command with a shell's redirections; return its status, stdout and stderr."""
    return subprocess.run(
        ["bash", "-c", f'"$0" "$@" {redirection}', sys.executable, script, *arguments],
        cwd=ROOT,
        env=environment(PYTHONPATH=str(ROOT), **variables),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=PATIENCE,
    )


@pytest.mark.parametrize(
    ("end", "status", "printed"),
    [
        ("0", 0, "progress"),
        ("1", 1, "progress"),
        ("75", 75, "progress"),
        ("refused", 78, "error: no such thing"),
        ("usage", 78, "error: too few"),
        ("crash", 70, "RuntimeError: CUDA error"),
        ("memory", 70, "MemoryError"),
        ("ctrl-c", 130, "Interrupted"),
    ],
)
def test_every_end_has_its_status(script, end, status, printed):
    done = shell(script, [end])
    assert (done.returncode, printed in done.stderr) == (status, True), done.stderr
    assert "Traceback" not in done.stderr or status == 70
    assert "étude – result" in done.stdout


@pytest.mark.parametrize(
    "redirection", ["2>&-", "2>/dev/full", ">/dev/full", ">&- 2>&-", "<&- >&- 2>&-", "| head -c 0"]
)
def test_output_that_fails_changes_no_status(script, redirection):
    if "|" in redirection:
        redirection += "; exit ${PIPESTATUS[0]}"
    for unbuffered in ("", "1"):
        done = shell(script, ["75"], redirection, PYTHONUNBUFFERED=unbuffered)
        assert done.returncode == 75, done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        assert ("étude – result" in done.stdout) == redirection.startswith("2>")


def test_what_ascii_has_not_is_escaped_and_ends_nothing(script):
    done = shell(script, ["1"], **ASCII)
    assert done.returncode == 1, done.stderr
    assert r"\xe9tude \u2013 result" in done.stdout
    assert r"\xe9tude \u2013 progress" in done.stderr


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize(
    ("end", "printed"), [("refused", "no such thing"), ("crash", "CUDA error")]
)
def test_an_error_reaches_whoever_can_read_it(script, end, printed, redirection):
    assert printed in shell(script, [end], redirection).stdout


def test_a_file_does_not_get_the_number_of_a_closed_stream(script, tmp_path):
    code = (
        "import os, sys; from prelu_jax import entry; entry.keep_streams();"
        f"file = open({str(tmp_path / 'file')!r}, 'w');"
        "os.write(2, b'log of C++'); print(file.fileno() > 2)"
    )
    done = shell("-c", [code], "<&- 2>&-")
    assert done.stdout == "True\n"
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("module", MODULES)
def test_help_ends_with_0_on_a_screen_and_needs_no_extra(module):
    code = (
        "import runpy, sys\n"
        "for name in ('submitit', 'tensorflow_datasets', 'torch', 'tensorflow'):\n"
        "    sys.modules[name] = None\n"
        "sys.argv = [sys.argv[1], '--help']\n"
        "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    )
    done = shell("-c", [code, module], **ASCII)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    flags, _, fields = done.stdout.partition("\nFields of --config")
    assert 3 <= len(flags.splitlines()) <= 45
    assert len(fields.splitlines()) <= 85  # one or two for each of up to 52 fields


@pytest.mark.parametrize("flag", ["-h", "--helpshort", "--help=true", "--helpfull", "-?"])
def test_other_ways_to_ask_for_help(script, flag):
    done = shell(script, [flag])
    assert (done.returncode, "--steps" in done.stdout) == (0, True), done.stderr


def test_flags_can_be_checked_alone(script):
    done = shell(script, ["--steps=2", "--only_check_args"])
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("num_steps", "config.num_steps"),
        ("nonum_steps", "config.num_steps"),
        ("num-steps", "config.num_steps"),
        ("Learning_Rate", "config.learning_rate"),
        ("learning_rat", "config.learning_rate"),
        ("config.learning-rate", "config.learning_rate"),
        ("noflip", "config.flip"),
        ("no-flip", "config.flip"),
        ("step", "steps"),
        ("xyz", None),
    ],
)
def test_the_flag_that_was_meant(given, meant):
    fields = ("num_steps", "learning_rate", "flip")
    assert entry.nearest_flag(given, ("steps", "workdir"), fields) == meant


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["--num_steps=2"], "Unknown flag --num_steps. Did you mean --config.num_steps?"),
        (["-num_steps=2"], "Did you mean --config.num_steps?"),
        (["--stepps", "2"], "Did you mean --steps?"),
        (["--steps=two"], "--steps=two"),
        (["--flagfile=/no/such"], "--flagfile=/no/such cannot be read"),
        (["--flagfile=/"], "--flagfile=/ cannot be read"),
        (["--run_with_pdb"], "--run_with_pdb has no effect here. Use Python's own: python -m pdb"),
    ],
)
def test_bad_flags_are_refused_in_words(script, arguments, printed):
    done = shell(script, arguments)
    assert (done.returncode, printed in done.stderr) == (78, True), done.stderr
    assert "Traceback" not in done.stderr
    assert "progress" not in done.stderr
