"""Stand-in for gcloud and git, which `test_tpu_pod` puts on the PATH.

Files in $FAKE_GCLOUD: plan.json lists, for each pod that is created, the states that successive
calls of `describe` return (the last one stays), and for each `follow` 'run' or 'broken', a broken
connection. Every call except `git status` is appended to calls.txt. The command of an ssh runs on
this machine, with one home folder per worker. Instead of an installation, a link to this Python is
made.
"""

import json
import os
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

folder = Path(os.environ["FAKE_GCLOUD"])
root = Path(__file__).parents[2]
program, *arguments = sys.argv[1:]
verb = arguments[3 if program == "gcloud" else 0]
given = dict(a.removeprefix("--").split("=", 1) for a in arguments if "=" in a)


def taken(name):
    """Remove and return the first entry of a list in the plan; the last entry stays."""
    file = folder / "plan.json"
    plan = json.loads(file.read_text())
    entries = plan[name]
    first = entries.pop(0) if len(entries) > 1 else entries[0]
    replace(file, plan)
    return first


def replace(file, content):
    """Write a file as a whole or not at all: a test interrupts this program at any moment."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps(content))
    new.replace(file)


def describe():
    pod = folder / "pod.json"
    if not pod.exists():
        sys.exit("ERROR: (gcloud) NOT_FOUND: Resource was not found")
    states = json.loads(pod.read_text())
    print(states[0])
    replace(pod, states[1:] or states)


def ssh(worker):
    home = folder / f"worker_{worker}"
    command = given["command"]
    if " install " in command:
        python = home / "prelu_jax_environment/bin/python"
        python.parent.mkdir(parents=True, exist_ok=True)
        python.unlink(missing_ok=True)
        python.symlink_to(sys.executable)
        command = command.replace("tpu_worker.sh install", "tpu_worker.sh true")
    state = {"HOME": str(home), "PRELU_JAX_STATE": str(home / "state")}
    return subprocess.call(["bash", "-c", command], cwd=home, env={**os.environ, **state})


def pack():
    """Write an archive with the current launcher and its test experiment, instead of HEAD."""
    with tarfile.open(given["output"], "w:gz") as archive:
        archive.add(root / "launch", "prelu_jax/launch")
        for name in ("__init__.py", "launch/__init__.py", "launch/experiment.py"):
            archive.add(root / "tests" / name, f"prelu_jax/tests/{name}")


if verb == "status":
    sys.exit()
with (folder / "calls.txt").open("a") as calls:
    calls.write(shlex.join([program, *arguments]) + "\n")
workers = range(json.loads((folder / "plan.json").read_text())["workers"])
status = 0
if verb == "describe":
    describe()
elif verb == "create":
    (folder / "pod.json").write_text(json.dumps(taken("pods")))
elif verb == "delete":
    (folder / "pod.json").unlink()
elif verb == "archive":
    pack()
elif verb == "scp":
    for i in workers:
        (folder / f"worker_{i}").mkdir(exist_ok=True)
        copy = folder / f"worker_{i}/prelu_jax.tar.gz"
        copy.write_bytes((root / arguments[4]).read_bytes())
elif verb == "ssh" and given["worker"] == "all":
    # Like gcloud, return the first status that is not 0.
    status = next((code for code in [ssh(i) for i in workers] if code), 0)
elif verb == "ssh":
    status = 1 if taken("follows") == "broken" else ssh(given["worker"])
sys.exit(status)
