import jax
import numpy as np
import pytest

from prelu_jax import evaluation
from prelu_jax.data import augment, pipeline, sources
from prelu_jax.training.parallel import Parallel
from tests.training.conftest import make_state


def made_split(n):
    rng = np.random.default_rng(0)
    records = [
        {"image": rng.integers(0, 256, (32, 32, 3)).astype(np.uint8), "label": i % 10, "key": ""}
        for i in range(n)
    ]
    return sources.Split(records, tuple("0123456789"))


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 7), (1, 16), (4, 4), (4, 12), (4, 40)])
def test_every_example_counts_once_for_any_batch_size_and_device_count(devices, batch_size):
    split, state = made_split(37), make_state()
    parallel = Parallel(jax.local_devices()[:devices])
    crop = pipeline.Crop(32, 32, 32)
    results = evaluation.evaluate(
        lambda batch: parallel.eval_step(parallel.replicate(state), parallel.split(batch)),
        pipeline.eval_batches(split, crop, batch_size),
    )
    images = np.stack([record["image"] for record in split.records])
    labels = np.array([record["label"] for record in split.records])
    x = augment.normalize(jax.numpy.asarray(images), state.pixels)
    log_p = jax.nn.log_softmax(state.model.apply({"params": state.params}, x))
    wrong = int((np.argmax(log_p, axis=-1) != labels).sum())
    assert results["test_examples"] == 37
    assert results["test_error"] == wrong / 37
    loss = -np.mean(np.asarray(log_p)[np.arange(37), labels])
    np.testing.assert_allclose(results["test_loss"], loss, rtol=1e-5)


def test_no_example_is_an_error():
    with pytest.raises(ValueError, match="no example to evaluate"):
        evaluation.evaluate(lambda batch: {"loss": 0.0, "errors": 0, "count": 0}, [{}])
