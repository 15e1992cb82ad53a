import logging

import cv2
import numpy as np
import pytest

from prelu_jax.data import pipeline, share, sources


def split_of(n, height=40, width=60):
    """Return a split whose pixels encode their index and position."""
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
        image = crop.random(split[0], np.random.default_rng(seed), pipeline.ImageIssues())
        widths.add(int(image[-1, 0, 1]) - int(image[0, 0, 1]))
    assert min(widths) < 25 < 35 < max(widths)


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


def decodable(n=10):
    """Return a split of JPEGs whose grey level encodes the index."""
    records = [
        {"image": cv2.imencode(".jpg", np.full((48, 64), 10 * i, np.uint8))[1].tobytes()}
        | {"label": i, "key": f"cat/{i}.jpg"}
        for i in range(n)
    ]
    return sources.Split(records, tuple(map(str, range(n))))


def with_broken(*indices):
    split = decodable()
    for i in indices:
        split.records[i]["image"] = b"broken"
    return split


READERS = {
    "train": lambda split: pipeline.train_batches(split, CROP, 5, 0, 0, 4),
    "eval": lambda split: pipeline.eval_batches(split, CROP, 5),
    "whole": lambda split: pipeline.whole_images(split, 32),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_record_that_does_not_decode_is_named_in_the_error(read):
    with pytest.raises(ValueError, match="Record 'cat/7.jpg' holds 6 bytes that do not decode"):
        list(read(with_broken(7)))


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_that_is_no_class_is_named_in_the_error(read, label):
    split = decodable()
    split.records[3]["label"] = label
    message = f"Record 'cat/3.jpg' has label {label}, expected one of the dataset's 10 classes"
    with pytest.raises(ValueError, match=message):
        list(read(split))


def test_in_training_the_next_image_takes_the_place_of_one_that_does_not_decode():
    issues = pipeline.ImageIssues(skip_bad_images=True)
    arguments = (CROP, 5, 3, 0, 6)  # three epochs
    whole = list(pipeline.train_batches(decodable(), *arguments))
    mended = list(pipeline.train_batches(with_broken(3, 4, 9), *arguments, issues))
    assert issues.left_out == {"cat/3.jpg", "cat/4.jpg", "cat/9.jpg"}
    replaced = {3: 5, 4: 5, 9: 0}
    for a, b in zip(whole, mended, strict=True):
        expected = [replaced.get(int(label), int(label)) for label in a["label"]]
        assert b["label"].tolist() == expected
        assert (b["image"] // 10).max(axis=(1, 2, 3)).tolist() == expected
    later = pipeline.train_batches(with_broken(3, 4, 9), CROP, 5, 3, 4, 6, issues)
    for a, b in zip(mended[4:], later, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
    assert len(issues.left_out) == 3


def test_the_crops_after_a_bad_image_are_the_same_whenever_that_is_noticed():
    photos = split_of(8, 90, 120).records
    png = [{**r, "image": cv2.imencode(".png", r["image"])[1].tobytes()} for r in photos]
    stored = cv2.imencode(".jpg", photos[0]["image"])[1].tobytes()
    read = []
    for bad in (b"broken", stored[:-30]):  # the header of the latter is readable
        split = sources.Split([*png, {"image": bad, "label": 8, "key": "8"}], tuple("012345678"))
        issues = pipeline.ImageIssues(skip_bad_images=True)
        batches = pipeline.train_batches(split, pipeline.Crop(24, 24, 60), 3, 7, 0, 9, issues)
        read.append([b["image"].tobytes() + b["label"].tobytes() for b in batches])
        assert issues.left_out == {"8"}
    assert read[0] == read[1]


def test_when_nothing_decodes_training_ends():
    issues = pipeline.ImageIssues(skip_bad_images=True)
    with pytest.raises(ValueError, match="None of the 10 images decodes"):
        next(pipeline.train_batches(with_broken(*range(10)), CROP, 5, 0, 0, 1, issues))


def test_in_a_test_an_image_that_does_not_decode_is_masked_and_counted(caplog):
    issues = pipeline.ImageIssues(skip_bad_images=True)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            split = with_broken(3, 8)
            batches = list(pipeline.eval_batches(split, CROP, 4, issues=issues))
    seen = np.concatenate([batch["label"][batch["mask"] > 0] for batch in batches])
    assert seen.tolist() == [0, 1, 2, 4, 5, 6, 7, 9]
    assert {batch["image"].shape for batch in batches} == {(4, 32, 32, 3)}
    assert issues.left_out == {"cat/3.jpg", "cat/8.jpg"}
    assert [record.message.split("; ")[1] for record in caplog.records] == [
        *("so far: 1.", "so far: 2.")
    ]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_neither_threads_nor_a_restart_change_a_byte(threads):
    crop = pipeline.Crop(size=24, min_side=24, max_side=60)
    photos = sources.Split(
        [*split_of(6, 90, 120).records, *with_broken(2).records], tuple("0123456789")
    )

    def read(first, threads):
        issues = pipeline.ImageIssues(skip_bad_images=True)
        batches = pipeline.train_batches(photos, crop, 3, 7, first, 20, issues, threads)
        return [b["image"].tobytes() + b["label"].tobytes() for b in batches]

    alone = read(0, 1)
    assert len(set(alone)) == 20
    assert read(0, threads) == alone
    for first in (1, 13, 19):
        assert read(first, threads) == alone[first:]


def test_whole_images_that_do_not_decode_are_passed_over_and_counted():
    issues = pipeline.ImageIssues(skip_bad_images=True)
    measured = [
        int(x["label"]) for x in pipeline.whole_images(with_broken(0, 5), 32, issues=issues)
    ]
    assert measured == [1, 2, 3, 4, 6, 7, 8, 9]
    assert issues.counts() == {"left_out": 2}


def test_images_smaller_than_the_crop_are_enlarged_and_counted(caplog):
    issues = pipeline.ImageIssues()
    crop = pipeline.Crop(size=50, min_side=50, max_side=60)
    with caplog.at_level(logging.WARNING):
        for batches in (
            pipeline.train_batches(decodable(), crop, 5, 0, 0, 4, issues),  # 48 × 64 pixels
            pipeline.eval_batches(decodable(), crop, 5, issues=issues),
        ):
            assert {batch["image"].shape for batch in batches} == {(5, 50, 50, 3)}
    assert issues.counts() == {"enlarged": 10}
    assert len(caplog.records) == 1
    assert "is 48×64 pixels, smaller than the crop of 50" in caplog.records[0].message
    untold = pipeline.ImageIssues()
    list(pipeline.eval_batches(decodable(), CROP, 5, issues=untold))
    assert untold.counts() == {}


@pytest.mark.parametrize("count", [2, 3])
def test_the_shares_of_several_processes_make_up_the_batches_of_one(count):
    def read(share=share.ALL):
        split, crop = split_of(10), pipeline.Crop(20, 24, 40)
        trained = pipeline.train_batches(split, crop, 6, 3, 2, 9, share=share)
        tested = pipeline.eval_batches(split, crop, 6, share=share)
        return list(trained) + list(tested)

    shares = [read(share.Share(index, count)) for index in range(count)]
    whole = read()
    assert len(whole) == 7 + 2
    for batch, *parts in zip(whole, *shares, strict=True):
        for key, value in batch.items():
            np.testing.assert_array_equal(value, np.concatenate([part[key] for part in parts]))
