"""The paper's own setting from files to tables, on a few generated photos and narrow models."""

import json

import cv2
import numpy as np
import pytest

from experiments.harness import record
from tests.experiments.conftest import run_module

CLASSES = 8
SIDES = ((300, 400), (375, 500), (450, 600))  # one shape, so that each scale compiles once


def write_photos(root):
    """``root/<split>/<class>/<i>.jpg``: a class is a colour, under clouds of its own."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("validation", 1)):
        for label in range(CLASSES):
            folder = root / split / f"class_{label:02}"
            folder.mkdir(parents=True)
            colour = np.random.default_rng(label).integers(60, 196, 3)
            for i in range(count):
                height, width = SIDES[(label + i) % len(SIDES)]
                clouds = rng.normal(0, 40, (6, 8, 3)).astype(np.float32)
                clouds = cv2.resize(clouds, (width, height), interpolation=cv2.INTER_CUBIC)
                pixels = np.clip(colour + clouds, 0, 255).astype(np.uint8)
                cv2.imwrite(str(folder / f"{i}.jpg"), pixels)


@pytest.mark.slow
def test_from_files_to_tables(tmp_path):
    write_photos(tmp_path / "images")
    data = f"--data_dir={tmp_path / 'tfds'}"
    prepared = run_module(
        "prelu_jax.data.folder", f"--images={tmp_path / 'images'}", "--name=photos", data
    )
    assert "photos/train: 24 images" in prepared.stdout, prepared.stderr
    assert prepared.returncode == 0
    measured = run_module("prelu_jax.data.statistics", "--dataset=photos", data)
    assert "24 images; mean red, green, blue" in measured.stdout, measured.stderr
    assert measured.returncode == 0
    workdir = tmp_path / "runs"
    done = run_module(
        *("experiments.large_models", "--scale=imagenet", "--config.dtype=bfloat16"),
        *("--seeds=1", f"--workdir={workdir}"),
        *("--config.dataset=photos", f"--config.data_dir={tmp_path / 'tfds'}"),
        *("--config.width=0.03125", "--config.num_steps=2", "--config.batch_size=8"),
        *("--config.log_every=1", "--config.eval_every=2", "--config.checkpoint_every=1"),
        "--config.scales=256,480",
        # Nets so narrow die at the paper's rate.
        *("--config.test_batch_size=4", "--config.learning_rate=0.001", "--config.pixel_rms=1"),
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 1  # two steps teach nothing
    assert "n = 1 seed of photos" in done.stdout, done.stderr
    assert len(record.read(workdir).claims) == 6
    for model in ("a_relu", "a_prelu", "b_prelu", "c_prelu"):
        folder = workdir / model / "seed_0"
        status = json.loads((folder / "status.json").read_text())
        assert (status["status"], status["step"]) == ("done", 2)
        assert sorted(int(step.name) for step in (folder / "checkpoints").iterdir()) == [1, 2]
        for side in (256, 480):
            scores = np.load(folder / f"scores/dense_{side}.npy")
            assert scores.shape == (CLASSES, CLASSES)
            np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)
