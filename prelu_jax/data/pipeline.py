"""Batches of uint8 crops from records, decoded and cropped on the host by Grain.

Batch s is a pure function of (seed, s, batch size), so that no checkpoint needs an iterator.
"""

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from absl import logging

from prelu_jax import extras
from prelu_jax.data import MAX_PIXELS, decoding, sources
from prelu_jax.data.share import ALL, Share

with extras.needed(__name__, "train"):
    import cv2
    import grain

cv2.setNumThreads(0)  # Grain's threads decode one image each; OpenCV's would compete with them

Batch = dict[str, np.ndarray]
Window = tuple[int, int, int, int]  # top, left, height, width
Place = Callable[[int, int], Window]  # from the height and width of an image

THREADS = 8
_PREFETCHED_BATCHES = 16


class ImageIssues:
    """Keys of the images that were left out or enlarged, each recorded once; thread-safe.

    Attributes:
        skip_bad_images: leave out records that do not decode; else they raise an error.
        max_pixels: an image with more pixels, by its header, counts as one that does not decode.
        left_out: keys of records that do not decode.
        enlarged: keys of images that are smaller than the crop.
    """

    def __init__(self, skip_bad_images: bool = False, max_pixels: int = MAX_PIXELS) -> None:
        self.skip_bad_images = skip_bad_images
        self.max_pixels = max_pixels
        self.left_out: set[str] = set()
        self.enlarged: set[str] = set()
        self._lock = threading.Lock()  # Grain reads in several threads

    def empty(self) -> "ImageIssues":
        """Return a new instance with the same settings and no keys."""
        return ImageIssues(self.skip_bad_images, self.max_pixels)

    def keys(self) -> dict[str, list[str]]:
        """Return the sorted keys of each kind."""
        with self._lock:
            return {"left_out": sorted(self.left_out), "enlarged": sorted(self.enlarged)}

    def add(self, keys: Mapping[str, Iterable[str]]) -> None:
        """Add the keys that `keys` of another instance returned."""
        with self._lock:
            for kind, keys_of_kind in keys.items():
                getattr(self, kind).update(keys_of_kind)

    def counts(self) -> dict[str, int]:
        """Return the number of keys of each kind that occurred."""
        kinds = {"left_out": len(self.left_out), "enlarged": len(self.enlarged)}
        return {kind: count for kind, count in kinds.items() if count}

    def window(
        self, record: sources.Record, side: int, place: Place, crop_size: int = 0
    ) -> np.ndarray | None:
        """Return the window at ``place`` of the image with its shorter side at ``side``.

        Returns:
            uint8 ``[h, w, 3]``; None for a record that is left out.

        Raises:
            BadImageError: the record does not decode and ``skip_bad_images`` is False.
        """
        try:
            image = decoding.scaled(record, side, self.max_pixels)
            window = image.window(*place(*image.shape))
        except decoding.BadImageError as error:
            if not self.skip_bad_images:
                raise
            with self._lock:
                if error.key not in self.left_out:
                    self.left_out.add(error.key)
                    logging.warning("%s It is left out; so far: %d.", error, len(self.left_out))
            return None
        height, width = image.source
        if min(height, width) < crop_size:
            with self._lock:
                if not self.enlarged:
                    logging.warning(
                        "Record %r is %d×%d pixels, smaller than the crop of %d: it is enlarged. "
                        "More such images are counted without a message.",
                        *(record["key"], height, width, crop_size),
                    )
                self.enlarged.add(record["key"])
        return window


@dataclasses.dataclass(frozen=True)
class Crop:
    """Square crops of images resized to a shorter side (He et al. 2015, §3).

    Attributes:
        size: side of the crop.
        min_side: smallest shorter side that a training image is resized to.
        max_side: largest one; 512 with ``min_side=256`` is the paper's scale jittering.
    """

    size: int
    min_side: int
    max_side: int

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.min_side <= self.max_side:
            raise ValueError(f"Crop: expected 1 <= size <= min_side <= max_side, got {self}.")

    def random(
        self, record: sources.Record, rng: np.random.Generator, issues: ImageIssues
    ) -> np.ndarray | None:
        """Return a crop at a random place and scale; None if the record is left out."""
        side = int(rng.integers(self.min_side, self.max_side + 1))
        before = rng.bit_generator.state

        def somewhere(height: int, width: int) -> Window:
            top, left = (int(rng.integers(0, n - self.size + 1)) for n in (height, width))
            return top, left, self.size, self.size

        image = issues.window(record, side, somewhere, self.size)
        if image is None:  # undo the draw of the place, which may or may not have happened
            rng.bit_generator.state = before
        return image

    def centre(self, record: sources.Record, issues: ImageIssues) -> np.ndarray | None:
        """Return the centre crop at the smallest scale; None if the record is left out."""
        centre = functools.partial(_middle, self.size, self.size)
        return issues.window(record, self.min_side, centre, self.size)


def train_batches(
    split: sources.Split,
    crop: Crop,
    batch_size: int,
    seed: int,
    first: int,
    stop: int,
    issues: ImageIssues | None = None,
    threads: int = THREADS,
    share: Share = ALL,
) -> Iterator[Batch]:
    """Yield batches ``first, …, stop - 1`` of an endless run, reshuffled in every epoch.

    Args:
        split: the source of the images.
        crop: the size of the crops and of the images.
        batch_size: examples per batch.
        seed: determines the order and the crops.
        first: number of the first batch.
        stop: number after the last batch.
        issues: records bad images and decides whether they are left out. The next record of the
            split that decodes takes the place of one that is left out.
        threads: number of threads that read ahead; it does not change the batches.
        share: the part of every batch to read; its count divides the batch size.

    Yields:
        ``image``, uint8 ``[b, size, size, 3]``, and ``label``, int32 ``[b]``, of the share.

    Raises:
        ValueError: an image does not decode and is not left out, or a label is not a class of the
            split; the error names the record.
    """
    issues = issues or ImageIssues()

    def example(index: int, rng: np.random.Generator) -> sources.Record:
        for i in range(index, index + len(split)):
            record = _labelled(split, i % len(split))
            image = crop.random(record, rng, issues)
            if image is not None:
                return {"image": image, "label": np.int32(record["label"])}
        raise ValueError(
            f"None of the {len(split)} images decodes. Prepare the dataset again or use another."
        )

    run = grain.MapDataset.range(len(split)).seed(seed).shuffle().repeat().random_map(example)
    part = batch_size // share.count
    places = grain.MapDataset.range(first * part, stop * part)
    batches = places.map(lambda i: run[share.place(i, batch_size)]).batch(part)
    return iter(batches.to_iter_dataset(_read_options(threads)))


def eval_batches(
    split: sources.Split,
    crop: Crop,
    batch_size: int,
    examples: int = 0,
    issues: ImageIssues | None = None,
    share: Share = ALL,
) -> Iterator[Batch]:
    """Yield every example of the split once, in centre crops; the last batch is padded.

    Args:
        split: the source of the images.
        crop: the size of the crops and of the images.
        batch_size: examples per batch.
        examples: number of examples to draw without replacement, the same in every call; 0 for all.
        issues: records bad images and decides whether they are left out; those left out are masked.
        share: the part of every batch to read; its count divides the batch size.

    Yields:
        ``image``, ``label``, and ``mask``, float32 ``[b]``, of the share; the mask is 1 for an
        example, 0 for padding and for records that are left out.

    Raises:
        ValueError: as `train_batches`.
    """
    issues = issues or ImageIssues()
    padding = {
        "image": np.zeros((crop.size, crop.size, 3), np.uint8),
        "label": np.int32(0),
        "mask": np.float32(0),
    }
    chosen = grain.MapDataset.range(len(split))
    if 0 < examples < len(split):
        chosen = chosen.seed(0).shuffle().slice(slice(0, examples))

    def example(i: int) -> sources.Record:
        place = share.place(i, batch_size)
        if place >= len(chosen):
            return padding
        record = _labelled(split, chosen[place])
        image = crop.centre(record, issues)
        if image is None:
            return padding
        return {"image": image, "label": np.int32(record["label"]), "mask": np.float32(1)}

    part = batch_size // share.count
    places = grain.MapDataset.range(-(-len(chosen) // batch_size) * part)
    yield from places.map(example).batch(part).to_iter_dataset(_read_options(THREADS))


def whole_images(
    split: sources.Split, side: int, multiple: int = 1, issues: ImageIssues | None = None
) -> Iterator[Batch]:
    """Yield every example of the split once, in order, as a whole image.

    Args:
        split: the source of the images.
        side: the shorter side that images are resized to.
        multiple: the longer side is trimmed at both ends to ``side`` plus a multiple of this, to
            compile for at most ``2 · (a - 1) · side / multiple + 1`` shapes if no image is longer
            than a times its shorter side.
        issues: records bad images and decides whether they are left out.

    Yields:
        ``image``, uint8 ``[h, w, 3]``, and ``label``, int32.

    Raises:
        ValueError: as `train_batches`.
    """
    issues = issues or ImageIssues()

    def trimmed(*shape: int) -> Window:
        return _middle(*(side + (n - side) // multiple * multiple for n in shape), *shape)

    def whole(index: int) -> sources.Record | None:
        record = _labelled(split, index)
        image = issues.window(record, side, trimmed)
        if image is None:
            return None  # Grain leaves it out
        return {"image": image, "label": np.int32(record["label"])}

    dataset = grain.MapDataset.range(len(split)).map(whole)
    yield from dataset.to_iter_dataset(_read_options(THREADS))


def _middle(height: int, width: int, image_height: int, image_width: int) -> Window:
    return (image_height - height) // 2, (image_width - width) // 2, height, width


def _labelled(split: sources.Split, index: int) -> sources.Record:
    """Return a record after a check of its label, because a loss would accept any integer."""
    record = split[index]
    if not 0 <= record["label"] < len(split.class_names):
        raise ValueError(
            f"Record {record['key']!r} has label {record['label']}, expected one of the dataset's "
            f"{len(split.class_names)} classes, numbered from 0. Choose a split with labels."
        )
    return record


def _read_options(threads: int) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=_PREFETCHED_BATCHES)
