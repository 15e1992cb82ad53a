import shlex
import subprocess
import sys

import cv2
import numpy as np
import pytest

from prelu_jax.data import decoding, folder, moments, pipeline, sources, statistics
from tests.conftest import write_images
from tests.data.conftest import resize_shorter_side
from tests.experiments.conftest import ROOT, environment

CROP = pipeline.Crop(24, 32, 32)


def run(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Return TFDS's folder with a dataset 'photos'."""
    root = tmp_path_factory.mktemp("statistics")
    images = write_images(root / "images", {"train": {"a": 3, "b": 2}, "test": {"a": 1}})
    folder.prepare(images, "photos", str(root / "tfds"))
    return root / "tfds"


def test_the_moments_are_those_of_all_centre_crops(prepared):
    file = statistics.measure("photos", "train", CROP, str(prepared), pipeline.ImageIssues())
    assert file == prepared / "photos/1.0.0/pixel_moments_train_24_of_32.npz"
    measured = moments.load(file, 24)
    crops = []
    split = sources.load("photos", "train", str(prepared))
    for record in map(split.__getitem__, range(len(split))):
        image = resize_shorter_side(decoding.decode(record, 32), 32).astype(float)
        top, left = ((n - 24) // 2 for n in image.shape[:2])
        crops.append(image[top : top + 24, left : left + 24])
    assert int(measured.images) == 5
    np.testing.assert_allclose(measured.mean, np.mean(crops, axis=0), rtol=1e-12)
    np.testing.assert_allclose(measured.variance, np.var(crops, axis=0).mean(), rtol=1e-9)
    covariance = np.cov(np.reshape(crops, (-1, 3)).T, bias=True)
    np.testing.assert_allclose(measured.covariance, covariance, rtol=1e-9)
    before = file.read_bytes()
    statistics.measure("photos", "train", CROP, str(prepared), pipeline.ImageIssues())
    assert file.read_bytes() == before


def test_the_command_that_an_error_gives_measures_what_was_missing(prepared):
    command = moments.command("photos", "test", 24, 32, str(prepared))
    done = run(*shlex.split(command)[1:])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 images; mean red, green, blue: [")
    file = prepared / "photos/1.0.0/pixel_moments_test_24_of_32.npz"
    assert int(moments.load(file, 24).images) == 1
    with pytest.raises(ValueError, match=r"shape \(24, 24, 3\), not \(32, 32, 3\).*measure again"):
        moments.load(file, 32)


def test_a_dataset_that_cannot_be_measured_is_an_error(prepared):
    for arguments, message in (
        (["--dataset=photso"], "Did you mean 'photos'"),
        (["--dataset=digits"], "'digits' is the embedded dataset"),
        (["--dataset=photos", "--size=64", "--side=32"], "--size=64 --side=32: expected crops"),
        (["--dataset=photos", "--split=dev"], "split of photos 'dev'"),
    ):
        where = f"--data_dir={prepared}"
        done = run("-m", "prelu_jax.data.statistics", *arguments, where)
        assert done.returncode == 78
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_a_damaged_file_is_named(tmp_path):
    file = tmp_path / "pixel_moments_train_24_of_32.npz"
    for content in (b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="24_of_32.npz cannot be read .*measure again"):
            moments.load(file, 24)


def test_records_that_do_not_decode_are_left_out_of_the_moments():
    grey = cv2.imencode(".png", np.full((24, 24), 50, np.uint8))[1].tobytes()
    records = [{"image": image, "label": 0, "key": "k"} for image in (grey, b"broken", grey)]
    issues = pipeline.ImageIssues(skip_bad_images=True)
    crop = pipeline.Crop(24, 24, 24)
    batches = pipeline.eval_batches(sources.Split(records, ("a",)), crop, 2, issues=issues)
    measured = moments.measure(batches)
    assert int(measured.images) == 2
    np.testing.assert_array_equal(measured.mean, 50.0)
    bad = sources.Split(records[1:2], ("a",))
    with pytest.raises(
        ValueError, match="no image to measure: the split is empty, or no image decodes"
    ):
        moments.measure(pipeline.eval_batches(bad, crop, 2, issues=issues))
