import numpy as np
import pytest

from prelu_jax.data import pipeline, sources


def split_of(n, height=40, width=60):
    """A split whose images tell their index and the place of every pixel."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    records = [
        {"image": np.stack([np.full_like(rows, i), rows, columns], -1), "label": i, "key": str(i)}
        for i in range(n)
    ]
    return sources.Split(records, tuple(map(str, range(n))))


CROP = pipeline.Crop(size=32, min_side=40, max_side=40)


def test_batch_s_depends_on_seed_and_s_alone():
    split = split_of(10)
    whole = list(pipeline.train_batches(split, CROP, 4, seed=3, first=0, stop=12))
    part = list(pipeline.train_batches(split, CROP, 4, seed=3, first=7, stop=12))
    other = list(pipeline.train_batches(split, CROP, 4, seed=4, first=0, stop=12))
    assert len(whole) == 12
    for a, b in zip(whole[7:], part, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["label"], b["label"])
    assert any((a["label"] != b["label"]).any() for a, b in zip(whole, other, strict=True))


def test_every_epoch_shows_every_example_once_in_an_order_of_its_own():
    labels = [batch["label"] for batch in pipeline.train_batches(split_of(10), CROP, 5, 0, 0, 6)]
    epochs = np.concatenate(labels).reshape(3, 10)
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_random_crops_are_windows_of_the_image_that_reach_every_place():
    batch = next(pipeline.train_batches(split_of(1), CROP, 400, 0, 0, 1))
    images = batch["image"]
    assert images.shape == (400, 32, 32, 3)
    assert images.dtype == np.uint8
    tops, lefts = images[:, 0, 0, 1], images[:, 0, 0, 2]
    assert set(tops) == set(range(9))
    assert set(lefts) == set(range(29))
    np.testing.assert_array_equal(images[:, -1, -1, 1] - tops, np.full(400, 31))


def test_scales_are_drawn_between_the_two_sides():
    crop = pipeline.Crop(size=20, min_side=20, max_side=40)
    split = split_of(1)
    widths = set()
    for seed in range(30):
        image = crop.random(split[0], np.random.default_rng(seed))["image"]
        widths.add(int(image[-1, 0, 1]) - int(image[0, 0, 1]))
    assert min(widths) < 25 < 35 < max(widths)


@pytest.mark.parametrize(("height", "width", "expected"), [(40, 60, (20, 30)), (10, 15, (20, 30))])
def test_the_shorter_side_is_resized_and_the_shape_kept(height, width, expected):
    image = np.zeros((height, width, 3), np.uint8)
    assert pipeline.resize_shorter_side(image, 20).shape[:2] == expected
    transposed = pipeline.resize_shorter_side(image.transpose(1, 0, 2), 20)
    assert transposed.shape[:2] == expected[::-1]


def test_evaluation_sees_every_example_once_and_pads_the_last_batch():
    batches = list(pipeline.eval_batches(split_of(10), CROP, 4))
    masks = np.concatenate([batch["mask"] for batch in batches])
    labels = np.concatenate([batch["label"] for batch in batches])
    assert {len(batch["label"]) for batch in batches} == {4}
    assert labels[masks > 0].tolist() == list(range(10))
    assert batches[0]["image"][0, 0, 0].tolist() == [0, 4, 14]  # the centre


def test_a_part_of_the_test_split_is_drawn_without_replacement_and_always_the_same():
    draws = [
        np.concatenate([b["label"][b["mask"] > 0] for b in batches])
        for batches in (pipeline.eval_batches(split_of(50), CROP, 4, 10) for _ in range(2))
    ]
    assert len(set(draws[0])) == 10
    assert draws[0].tolist() == draws[1].tolist()
    assert draws[0].tolist() != list(range(10))


def test_whole_images_come_once_in_order_with_the_shorter_side_resized():
    split = split_of(10, height=20, width=30)
    images = list(pipeline.whole_images(split, 40))
    assert [int(example["label"]) for example in images] == list(range(10))
    assert {example["image"].shape for example in images} == {(40, 60, 3)}
    for i, example in enumerate(images):
        assert example["image"].dtype == np.uint8
        assert (example["image"][..., 0] == i).all()


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (40, 40), (40, 47)])
def test_the_longer_side_is_trimmed_evenly_to_few_lengths(height, width):
    (example,) = pipeline.whole_images(split_of(1, height, width), 40, multiple=8)
    image = example["image"]
    assert image.shape == (height // 8 * 8, width // 8 * 8, 3)
    for axis, n in ((0, height), (1, width)):
        places = image[..., 1 + axis]
        before, after = int(places.min()), n - 1 - int(places.max())
        assert 0 <= after - before <= 1
        assert before + after < 8


def test_a_crop_larger_than_the_image_side_is_refused():
    with pytest.raises(ValueError, match="size <= min_side"):
        pipeline.Crop(size=32, min_side=20, max_side=40)


def test_a_record_that_does_not_decode_is_named_in_the_error():
    split = split_of(3)
    split.records[1]["image"] = b"broken"
    with pytest.raises(ValueError, match="Record '1'"):
        list(pipeline.eval_batches(split, CROP, 2))
