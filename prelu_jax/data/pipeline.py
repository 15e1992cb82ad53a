"""From records to batches of uint8 crops: decoding and cropping on the host, read by Grain.

Batch s is a pure function of (seed, s, batch size): nothing of an iterator needs saving, and a run
that resumes at step s asks for the batches from s on.
"""

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

import cv2
import grain
import numpy as np
from absl import logging

from prelu_jax.data import MAX_PIXELS, decoding, sources
from prelu_jax.data.share import ALL, Share

cv2.setNumThreads(0)  # Grain's threads decode one image each; threads inside would compete

Batch = dict[str, np.ndarray]
Window = tuple[int, int, int, int]  # top, left, height, width
Place = Callable[[int, int], Window]  # of the height and width of an image

THREADS = 8
_PREFETCHED_BATCHES = 16


class Tally:
    """What is odd about the images that were read: the keys of records, each once.

    Attributes:
        skip_bad_images: whether records that do not decode are left out; else they raise.
        max_pixels: a file with more of them in its header counts as one that does not decode.
        left_out: those that do not decode.
        enlarged: those that are smaller than the crop.
    """

    def __init__(self, skip_bad_images: bool = False, max_pixels: int = MAX_PIXELS) -> None:
        self.skip_bad_images = skip_bad_images
        self.max_pixels = max_pixels
        self.left_out: set[str] = set()
        self.enlarged: set[str] = set()
        self._lock = threading.Lock()  # Grain's threads read side by side

    def empty(self) -> "Tally":
        """Return a tally with the same settings and no keys."""
        return Tally(self.skip_bad_images, self.max_pixels)

    def keys(self) -> dict[str, list[str]]:
        """The keys of each kind, sorted."""
        with self._lock:
            return {"left_out": sorted(self.left_out), "enlarged": sorted(self.enlarged)}

    def add(self, keys: Mapping[str, Iterable[str]]) -> None:
        """Takes over what another tally's `keys` says."""
        with self._lock:
            for kind, of_kind in keys.items():
                getattr(self, kind).update(of_kind)

    def counts(self) -> dict[str, int]:
        """How many there are of each kind that there is."""
        kinds = {"left_out": len(self.left_out), "enlarged": len(self.enlarged)}
        return {kind: count for kind, count in kinds.items() if count}

    def window(
        self, record: sources.Record, side: int, place: Place, crop_size: int = 0
    ) -> np.ndarray | None:
        """What lies at a place of the image with its shorter side at ``side``.

        Returns:
            uint8 ``[h, w, 3]``; None for a record that is left out.

        Raises:
            BadImageError: the record does not decode, and such records are not left out.
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
                        "Record %r is %d×%d pixels, smaller than the crop of %d: it is enlarged; "
                        "others are counted.",
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
        max_side: largest; 512 with ``min_side=256`` is the paper's scale jittering.
    """

    size: int
    min_side: int
    max_side: int

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.min_side <= self.max_side:
            raise ValueError(f"Crop: expected 1 <= size <= min_side <= max_side, got {self}.")

    def random(
        self, record: sources.Record, rng: np.random.Generator, tally: Tally
    ) -> np.ndarray | None:
        """A crop at a random place of the image at a random scale; None if it is left out."""
        side = int(rng.integers(self.min_side, self.max_side + 1))
        before = rng.bit_generator.state

        def somewhere(height: int, width: int) -> Window:
            top, left = (int(rng.integers(0, n - self.size + 1)) for n in (height, width))
            return top, left, self.size, self.size

        image = tally.window(record, side, somewhere, self.size)
        if image is None:  # whether that is seen before the place is drawn or after
            rng.bit_generator.state = before
        return image

    def centre(self, record: sources.Record, tally: Tally) -> np.ndarray | None:
        """The crop in the middle of the image at the smallest scale; None if it is left out."""
        centre = functools.partial(_middle, self.size, self.size)
        return tally.window(record, self.min_side, centre, self.size)


def train_batches(
    split: sources.Split,
    crop: Crop,
    batch_size: int,
    seed: int,
    first: int,
    stop: int,
    tally: Tally | None = None,
    threads: int = THREADS,
    share: Share = ALL,
) -> Iterator[Batch]:
    """Batches ``first, …, stop - 1`` of an endless run through the split, shuffled every epoch.

    Args:
        split: where the images come from.
        crop: the size of the crops and of the images.
        batch_size: examples a batch.
        seed: chooses the order and the crops.
        first: the number of the first batch.
        stop: the number after the last one.
        tally: told what is odd. In the place of a record that is left out comes the next of the
            split that decodes.
        threads: that read ahead; they make no difference to what is read.
        share: of every batch, what is read here; its count divides the batch size.

    Yields:
        ``image``, uint8 ``[b, size, size, 3]``, and ``label``, int32 ``[b]``, of the share.

    Raises:
        ValueError: an image does not decode and is not left out, or a label is none of the split's
            classes; the error names the record.
    """
    of_run = tally or Tally()

    def example(index: int, rng: np.random.Generator) -> sources.Record:
        for i in range(index, index + len(split)):
            record = _labelled(split, i % len(split))
            image = crop.random(record, rng, of_run)
            if image is not None:
                return {"image": image, "label": np.int32(record["label"])}
        raise ValueError(f"None of the {len(split)} images decodes.")

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
    seed: int = 0,
    tally: Tally | None = None,
    threads: int = THREADS,
    share: Share = ALL,
) -> Iterator[Batch]:
    """Every example of the split once, in centre crops; the last batch is padded.

    Args:
        split: where the images come from.
        crop: the size of the crops and of the images.
        batch_size: examples a batch.
        examples: 0 for all, else how many to draw without replacement.
        seed: chooses the examples when not all are asked for.
        tally: told what is odd; a record that is left out is masked.
        threads: that read ahead; they make no difference to what is read.
        share: of every batch, what is read here; its count divides the batch size.

    Yields:
        ``image``, ``label``, and ``mask``, float32 ``[b]``: 1 for an example, 0 for padding and for
        what is left out; of the share.

    Raises:
        ValueError: as `train_batches`.
    """

    of_run = tally or Tally()

    none = {
        "image": np.zeros((crop.size, crop.size, 3), np.uint8),
        "label": np.int32(0),
        "mask": np.float32(0),
    }
    chosen = grain.MapDataset.range(len(split))
    if 0 < examples < len(split):
        chosen = chosen.seed(seed).shuffle().slice(slice(0, examples))

    def example(i: int) -> sources.Record:
        place = share.place(i, batch_size)
        if place >= len(chosen):
            return none
        record = _labelled(split, chosen[place])
        image = crop.centre(record, of_run)
        if image is None:
            return none
        return {"image": image, "label": np.int32(record["label"]), "mask": np.float32(1)}

    part = batch_size // share.count
    places = grain.MapDataset.range(-(-len(chosen) // batch_size) * part)
    yield from places.map(example).batch(part).to_iter_dataset(_read_options(threads))


def whole_images(
    split: sources.Split, side: int, multiple: int = 1, tally: Tally | None = None
) -> Iterator[Batch]:
    """Every example of the split once, in order, as a whole image; but for what is left out.

    Args:
        split: where the images come from.
        side: the shorter side that images are resized to.
        multiple: the longer side is trimmed, evenly at both ends, to ``side`` and a multiple of
            this, so that there are fewer shapes to compile for: of images up to a times as long
            as wide, at most ``2 · (a - 1) · side / multiple + 1``.
        tally: told what is odd.

    Yields:
        ``image``, uint8 ``[h, w, 3]``, and ``label``, int32.

    Raises:
        ValueError: as `train_batches`.
    """

    of_run = tally or Tally()

    def trimmed(*shape: int) -> Window:
        return _middle(*(side + (n - side) // multiple * multiple for n in shape), *shape)

    def whole(index: int) -> sources.Record | None:
        record = _labelled(split, index)
        image = of_run.window(record, side, trimmed)
        if image is None:
            return None  # Grain leaves it out
        return {"image": image, "label": np.int32(record["label"])}

    dataset = grain.MapDataset.range(len(split)).map(whole)
    yield from dataset.to_iter_dataset(_read_options(THREADS))


def _middle(height: int, width: int, of_height: int, of_width: int) -> Window:
    return (of_height - height) // 2, (of_width - width) // 2, height, width


def _labelled(split: sources.Split, index: int) -> sources.Record:
    """The record at an index, whose label is a class: a loss of another would be no error."""
    record = split[index]
    if not 0 <= record["label"] < len(split.class_names):
        raise ValueError(
            f"Record {record['key']!r} has label {record['label']}, expected one of the dataset's "
            f"{len(split.class_names)} classes, numbered from 0. Is it a split without labels?"
        )
    return record


def _read_options(threads: int) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=_PREFETCHED_BATCHES)
