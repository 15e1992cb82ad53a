import json

import jax
import numpy as np
import pytest

from prelu_jax.data import class_folders, folder, pipeline, statistics
from prelu_jax.runs import trainer
from prelu_jax.training import batches, recipe
from prelu_jax.training.batches import Batches
from prelu_jax.training.recipe import resolve
from tests.conftest import write_images
from tests.training.conftest import interrupt_at, one_device, tiny_config

pytestmark = pytest.mark.usefixtures("tiny_arch")

SHORT = {"num_steps": 4, "log_every": 2, "eval_every": 2, "checkpoint_every": 2, "batch_size": 4}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """TFDS's folder with a dataset 'photos' of 20 and 6 photos in two classes."""
    root = tmp_path_factory.mktemp("run_data")
    counts = {"train": {"a": 10, "b": 10}, "test": {"a": 3, "b": 3}}
    folder.prepare(write_images(root / "images", counts), "photos", str(root / "tfds"))
    return root / "tfds"


def of_photos(prepared, **fields):
    sides = {"min_side": 32, "max_side": 60, "num_steps": 20, "batch_size": 4}
    return tiny_config(**{"dataset": "photos", "data_dir": str(prepared), **sides, **fields})


def test_a_restart_changes_no_byte(prepared):
    def read(first=0):
        images = Batches(resolve(of_photos(prepared, seed=5))).train(first)
        return [batch["image"].tobytes() + batch["label"].tobytes() for batch in images]

    alone = read()
    assert len(set(alone)) == 20
    assert read(13) == alone[13:]


def test_what_is_kept_with_the_dataset_is_what_a_run_subtracts(prepared, monkeypatch):
    measured_here = Batches(resolve(of_photos(prepared))).pixel_statistics()
    crop = pipeline.Crop(32, 32, 32)
    file = statistics.measure("photos", "train", crop, str(prepared), pipeline.ImageIssues())
    monkeypatch.setattr(batches.moments, "measure", None)  # it is not called
    kept = Batches(resolve(of_photos(prepared))).pixel_statistics()
    jax.tree.map(np.testing.assert_array_equal, kept, measured_here)
    file.unlink()


def test_a_large_set_without_its_statistics_is_told_the_command(prepared, monkeypatch, tmp_path):
    monkeypatch.setattr(recipe, "_SMALL", 10)
    prepared = prepared.rename(prepared.with_name("with a space"))
    message = (
        "photos/train has 20 images, .*pixel_moments_train_32_of_40.npz is missing.*: `python -m "
        "prelu_jax.data.statistics --dataset=photos --size=32 --side=40 '--data_dir=.*a space'`"
    )
    with pytest.raises(ValueError, match=message):
        trainer.train(of_photos(prepared, min_side=40), tmp_path / "run", parallel=one_device())
    assert not (tmp_path / "run").exists()
    few = of_photos(prepared, examples_per_class=2)  # a few are measured at the start
    Batches(resolve(few)).pixel_statistics()
    prepared.rename(prepared.with_name("tfds"))


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A dataset in which one training image and one test image are cut short after they were
    prepared, and one image is smaller than the crop."""
    root = tmp_path_factory.mktemp("damaged")
    counts = {"train": {"a": 6, "b": 6}, "test": {"a": 3, "b": 3}}
    images = write_images(root / "images", counts, side=40)
    write_images(root / "small", {"train": {"a": 1}}, side=20)
    (images / "train/a/0.jpg").write_bytes((root / "small/train/a/0.jpg").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(class_folders.decoding, "decode", lambda *_, **limit: None)  # as if whole
        for file in (images / "train/b/3.jpg", images / "test/b/1.jpg"):
            file.write_bytes(file.read_bytes()[:20])
        folder.prepare(images, "photos", str(root / "tfds"))
    return root / "tfds"


def test_a_damaged_record_fails_the_run_by_its_name(damaged, tmp_path):
    with pytest.raises(ValueError, match=r"Record 'b/3.jpg' holds 20 bytes that do not decode"):
        trainer.train(of_photos(damaged, **SHORT), tmp_path, parallel=one_device())


@pytest.mark.parametrize("on_bad_image", ["fail", "skip"])
def test_an_image_of_too_many_pixels_is_not_decoded_in_training(prepared, on_bad_image):
    """The photos are 40 × 47 pixels and larger."""
    config = of_photos(prepared, on_bad_image=on_bad_image, max_pixels=2000)
    data = Batches(resolve(config))
    if on_bad_image == "fail":
        with pytest.raises(ValueError, match=r"is an image of 47×\d+ pixels: with more than 2,000"):
            next(iter(data.train()))
        return
    next(iter(data.train()))
    assert data.issues.left_out


def test_damaged_records_are_left_out_and_counted_by_a_flag(damaged, tmp_path, monkeypatch):
    config = of_photos(damaged, on_bad_image="skip", **SHORT)
    status = trainer.train(config, tmp_path / "whole", parallel=one_device())
    assert status["status"] == "done"
    assert (status["left_out"], status["enlarged"]) == (2, 1)

    with pytest.raises(KeyboardInterrupt):
        trainer.train(config, tmp_path / "stopped", interrupt_at(2), one_device())
    met = tmp_path / "stopped/odd_images.json"
    before = json.loads(met.read_text())
    met.write_text(json.dumps({**before, "enlarged": ["met before the stop"]}))
    monkeypatch.setattr(batches.moments, "measure", None)  # the checkpoint has the mean image
    assert trainer.train(config, tmp_path / "stopped", parallel=one_device())["enlarged"] == 2
    tmp_path = tmp_path / "whole"
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {line["test_examples"] for line in lines if "test_examples" in line} == {5}
