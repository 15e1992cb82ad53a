"""Tests that the benchmark of the input pipeline runs; speeds are not asserted."""

import sys

import pytest

from benchmarks import input_pipeline, input_readers
from prelu_jax.arch import REGISTRY
from tests.training.conftest import TINY

TINY_RUN = {"images": 3, "batches": 1, "repeats": 2, "net": "tiny", "batch_size": 4, "steps": 3}


@pytest.fixture
def few_images(monkeypatch):
    monkeypatch.setitem(REGISTRY, "tiny", TINY)
    monkeypatch.delenv(input_pipeline.TF_PYTHON, raising=False)


def test_readers_are_compared_and_missing_ones_are_noted(few_images, monkeypatch):
    monkeypatch.setattr(input_pipeline.importlib.util, "find_spec", lambda name: None)
    measured = input_pipeline.run(**TINY_RUN)
    ours, reading, having = measured.rows
    assert len(ours.values) == 2
    assert len(reading.values) == len(having.values) == 3
    assert reading.figures["% for the input"] < 100
    assert [ratio.what for ratio in measured.ratios] == ["core-seconds per 1,000 images / 1"]
    assert measured.ratios[0].value == ours.median > 0
    assert [note.split()[2] for note in measured.notes] == ["PyTorch", "tf.data;"]


def test_the_best_peer_is_listed_with_and_without_readers_that_omit_the_filter(monkeypatch):
    rates = {"ours": [1000.0], "pillow": [500.0], "tf.data": [800.0], "tf.data, aliased": [2000.0]}
    monkeypatch.setattr(input_pipeline, "_rates", lambda *arguments: (rates, ()))
    monkeypatch.setattr(input_pipeline, "_of_a_run", lambda *arguments: [])
    monkeypatch.setattr(input_pipeline.input_scaling, "write", lambda *arguments: 100)
    cost, antialiased, best = input_pipeline.run().ratios
    assert cost.value == 1
    assert not cost.is_missed()
    assert (antialiased.value, antialiased.is_missed()) == (pytest.approx(0.8), True)
    assert (best.value, best.where.split(", ", 1)[1]) == (2, "tf.data, aliased")


@pytest.mark.parametrize("reader", ["ours", "pillow", "pillow, crop first"])
def test_a_reader_reads_batches_of_crops(reader, tmp_path):
    if reader != "ours":
        pytest.importorskip("torch")
    input_pipeline.input_scaling.write(tmp_path, 3)
    (batch,) = input_readers.READERS[reader](tmp_path)(1)
    images = batch["image"] if reader == "ours" else batch.numpy()
    assert images.shape == (128, 224, 224, 3)
    assert images.dtype == "uint8"
    assert len({image.tobytes() for image in images}) > 100


def test_a_reader_that_ends_is_named(tmp_path):
    with (
        input_pipeline._started(sys.executable, "nobody", tmp_path) as process,
        pytest.raises((RuntimeError, BrokenPipeError), match="'nobody' ended|Broken pipe"),
    ):
        input_pipeline._ask(process, "nobody", 1)
