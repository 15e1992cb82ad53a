"""Tests of docs/clusters.md: data commands are run, cluster commands as a dry run."""

import io
import re
import shlex
import subprocess
import sys
import tarfile

import cv2
import numpy as np
import pytest

from tests.experiments.conftest import ROOT, environment

PAGE = (ROOT / "docs/clusters.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
SHARE = "/mnt/share"
CLASSES = ("n01440764", "n01443537")


def starting(start):
    return [line for line in LINES if line.startswith(start)]


def python(arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True
    )


@pytest.mark.parametrize("line", starting("python -m launch."))
def test_launchers_take_their_commands(line):
    _, _, module, *arguments = shlex.split(line)
    done = python(["-m", module, "--dry_run", *arguments])
    assert done.returncode == 0, done.stderr
    if "--action=delete" not in arguments:
        assert "experiments.convergence_22 --scale=imagenet" in done.stdout


def test_every_launched_experiment_takes_its_flags(tmp_path):
    launched = {line.partition(" -- ")[2] for line in starting("python -m launch.")} - {""}
    alone = {line.removeprefix("python -m ") for line in starting("python -m experiments.")}
    (experiment,) = launched | alone  # the same everywhere
    asked = shlex.split(experiment)
    done = python(["-m", *asked, f"--workdir={tmp_path}", f"--config.data_dir={tmp_path}"])
    assert f"TFDS datasets are looked for in {tmp_path}" in done.stderr
    assert asked[:3] == [
        "experiments.convergence_22",
        "--scale=imagenet",
        "--config.dtype=bfloat16",
    ]


def test_the_command_on_the_worker_exists():
    (line,) = [line for line in LINES if "tpu_worker.sh" in line]
    script = re.search(r"prelu_jax/(launch/\S+) stop", line)[1]
    assert subprocess.run(["bash", ROOT / script, "stop"]).returncode == 0  # nothing runs here


def jpeg(rng):
    _, encoded = cv2.imencode(".jpg", rng.integers(0, 256, (300, 280, 3), np.uint8))
    return encoded.tobytes()


def write_tar(target, members):
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_archives_become_a_measured_dataset(tmp_path):
    rng = np.random.default_rng(0)
    train = {}
    for name in CLASSES:
        inner = io.BytesIO()
        write_tar(inner, {f"{name}_{i}.JPEG": jpeg(rng) for i in range(2)})
        train[f"{name}.tar"] = inner.getvalue()
    with (tmp_path / "ILSVRC2012_img_train.tar").open("wb") as file:
        write_tar(file, train)
    # Not sorted by name, like the real file.
    names = [f"ILSVRC2012_val_0000000{i}.JPEG" for i in (3, 1, 2)]
    with (tmp_path / "ILSVRC2012_img_val.tar").open("wb") as file:
        write_tar(file, {name: jpeg(rng) for name in names})
    (tmp_path / "labels.txt").write_text("\n".join([CLASSES[0], *CLASSES]) + "\n")

    section = PAGE.partition("## The data\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    script = "".join(block for block in blocks if not block.startswith("pip "))
    labels = re.search(r"^labels=.*$", script, re.MULTILINE)[0]
    script = script.replace(labels, f"labels={SHARE}/labels.txt").replace("python ", "$PYTHON ")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace(SHARE, str(tmp_path))],
        cwd=ROOT,
        env=environment(PYTHON=sys.executable),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for output in ("train: 4 images", "validation: 3 images", "4 images; mean red, green, blue"):
        assert output in done.stdout
    placed = {p.name: p.parent.name for p in (tmp_path / "images/validation").glob("*/*")}
    assert [placed[name] for name in sorted(names)] == [CLASSES[0], *CLASSES]


def test_tfds_comes_with_the_classes_of_validation():
    (line,) = starting("labels=$(python -c ")
    (code,) = re.findall(r'python -c "(.*?)"', line)
    done = python(["-c", code])
    with open(done.stdout.strip()) as file:
        classes = file.read().split()
    assert len(classes) == 50_000
    assert len(set(classes)) == 1000
    assert set(CLASSES) < set(classes)
