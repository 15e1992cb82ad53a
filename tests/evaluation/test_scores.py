import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prelu_jax import evaluation
from prelu_jax.data import pipeline, sources
from prelu_jax.training import step as step_lib
from prelu_jax.training.parallel import AXIS, Parallel
from tests.training.conftest import make_state


def images_of_many_shapes(n=23):
    """Yield noise in portrait and landscape shapes; the last shape occurs once."""
    rng = np.random.default_rng(0)
    shapes = [(40, 48), (48, 40)]
    for i in range(n):
        shape = (40, 56) if i == n - 1 else shapes[i % 2]
        yield {"image": rng.integers(0, 256, (*shape, 3)).astype(np.uint8), "label": np.int32(i)}


def on_devices(function, state, devices):
    parallel = Parallel(jax.local_devices()[:devices])
    program = parallel.over_batch(functools.partial(function, axis_name=AXIS))
    return lambda batch: program(state, parallel.split(batch))


@pytest.mark.compiled("jax.pmap over several devices")
@pytest.mark.parametrize("function", [evaluation.dense_step, evaluation.ten_view_step])
def test_every_example_is_scored_alone_for_any_batch_size_and_device_count(function):
    state = make_state()
    alone = jax.jit(lambda images: function(state, {"image": images}))
    expected = [alone(example["image"][None])[0] for example in images_of_many_shapes()]
    for devices, batch_size in [(1, 5), (4, 8)]:
        step = on_devices(function, state, devices)
        scores, labels = evaluation.predict(step, images_of_many_shapes(), batch_size)
        assert labels.tolist() == list(range(23))
        np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.fixture(scope="module")
def trained():
    """Return a state that can read digits, and their test split."""
    train, test = (sources.load("digits", split) for split in ("train", "test"))
    state, take = make_state(flip=False), jax.jit(step_lib.train_step)
    for batch in pipeline.train_batches(train, pipeline.Crop(32, 32, 32), 64, 0, 0, 120):
        state, _ = take(state, batch)
    return state, test


@pytest.mark.compiled("too slow")
def test_digits_are_predicted_the_same_for_any_batch_size_and_device_count(trained):
    state, test = trained
    measured = [
        evaluation.predict(
            on_devices(evaluation.dense_step, state, devices),
            pipeline.whole_images(test, 36),
            batch_size,
        )
        for devices, batch_size in [(1, 297), (1, 64), (4, 40)]
    ]
    for scores, labels in measured:
        assert labels.tolist() == test.labels.tolist()
        assert scores.argmax(axis=1).tolist() == measured[0][0].argmax(axis=1).tolist()
        assert evaluation.top_error(scores, labels, 1) < 0.5
        assert evaluation.top_error(scores, labels, 5) < 0.1


@pytest.mark.compiled("too slow")
@pytest.mark.slow
def test_10_000_of_10_000_examples_are_predicted_the_same(trained):
    state, test = trained
    digits = [test.records[i] for i in range(len(test))]

    class Many(Sequence):  # all of them different
        def __len__(self):
            return 10_000

        def __getitem__(self, i):
            digit = digits[i % len(digits)]
            image = np.roll(digit["image"] // 2 + i // len(digits), i % 7, axis=1)
            return {**digit, "image": image.astype(np.uint8)}

    split = sources.Split(Many(), test.class_names)

    def measured(devices, batch_size):
        step = on_devices(evaluation.dense_step, state, devices)
        scores, labels = evaluation.predict(step, pipeline.whole_images(split, 32), batch_size)
        summed = evaluation.evaluate(
            on_devices(evaluation.eval_step, state, devices),
            pipeline.eval_batches(split, pipeline.Crop(32, 32, 32), batch_size),
        )
        assert (len(scores), summed["test_examples"]) == (10_000, 10_000)
        assert labels.tolist() == [digits[i % len(digits)]["label"] for i in range(10_000)]
        return scores.argmax(axis=1).tolist(), summed["test_error"]

    assert measured(devices=1, batch_size=1000) == measured(devices=4, batch_size=1024)


def test_at_the_crops_size_ten_views_are_the_plain_test_of_the_image_and_its_mirror_image(trained):
    state, test = trained
    plain = jax.jit(lambda x: jax.nn.softmax(state.model.apply({"params": state.params}, x)))
    ten = jax.jit(lambda batch: evaluation.ten_view_step(state, batch))
    scores, labels = evaluation.predict(ten, pipeline.whole_images(test, 32), 99)
    images = np.stack([e["image"] for e in pipeline.whole_images(test, 32)])
    x = (jnp.asarray(images, jnp.float32) - 127) / 64
    expected = (plain(x) + plain(x[:, :, ::-1])) / 2
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    wrong = int((np.argmax(expected, axis=1) != labels).sum())
    assert evaluation.top_error(scores, labels, 1) == wrong / 297


@pytest.mark.compiled("counts compilations")
@pytest.mark.parametrize("size", [1, 2])
def test_predictions_keep_the_order_of_examples_and_compile_each_shape_once(size):
    traced = []

    @jax.jit
    def step(batch):
        traced.append(batch["image"].shape)
        return batch["image"].mean(axis=(1, 2))

    scores, _ = evaluation.predict(step, images_of_many_shapes(), size)
    assert sorted(traced) == [(size, 40, 48, 3), (size, 40, 56, 3), (size, 48, 40, 3)]
    means = [example["image"].mean(axis=(0, 1)) for example in images_of_many_shapes()]
    np.testing.assert_allclose(scores, means, rtol=1e-5)


def test_an_average_over_scales_and_models_is_that_of_their_scores():
    rng = np.random.default_rng(0)
    scores = {name: rng.dirichlet(np.ones(4), 6) for name in ("model A", "model B", "model C")}
    expected = (scores["model A"] + scores["model B"] + scores["model C"]) / 3
    np.testing.assert_allclose(evaluation.average(scores), expected)
    by_scale = {256: scores["model A"], 384: scores["model B"]}
    expected = (scores["model A"] + scores["model B"]) / 2
    np.testing.assert_allclose(evaluation.average(by_scale), expected)


def test_models_of_other_classes_or_examples_are_refused_by_name():
    a, classes, examples = np.ones((6, 10)) / 10, np.ones((6, 7)) / 7, np.ones((5, 10)) / 10
    with pytest.raises(ValueError, match="'small' scores 7 classes, 'large' 10"):
        evaluation.average({"large": a, "same": a, "small": classes})
    with pytest.raises(ValueError, match="'384' scores 5 examples, '256' 6"):
        evaluation.average({256: a, 384: examples})
    with pytest.raises(ValueError, match="no scores are given"):
        evaluation.average({})


def test_top_error_is_that_of_a_stable_sort():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (500, 9)) / 4  # many are equal
    labels = rng.integers(0, 9, 500)
    order = np.argsort(-scores, axis=1, kind="stable")
    for k in (1, 5, 9):
        expected = sum(label not in row[:k] for label, row in zip(labels, order, strict=True))
        assert evaluation.top_error(scores, labels, k) == expected / 500
    assert evaluation.top_error(scores, scores.argmax(axis=1), 1) == 0


def test_bad_input_is_named():
    scores, labels = np.full((3, 4), 0.25), np.zeros(3, np.int32)
    with pytest.raises(ValueError, match="k is 5, expected 1 to the 4 classes"):
        evaluation.top_error(scores, labels, 5)
    scores[1, 2] = np.nan
    with pytest.raises(ValueError, match="1 examples are not finite, the first is example 1"):
        evaluation.top_error(scores, labels, 1)
    with pytest.raises(ValueError, match="there is no image"):
        evaluation.predict(lambda batch: jnp.zeros((1, 1)), [], 1)
