"""From records to batches of uint8 crops: decoding and cropping on the host, read by Grain.

Batch s is a pure function of (seed, s, batch size): nothing of an iterator needs saving, and a run
that resumes at step s asks for the batches from s on.
"""

import dataclasses
from collections.abc import Iterator

import cv2
import grain
import numpy as np

from prelu_jax.data import sources

cv2.setNumThreads(0)  # Grain's threads decode one image each; threads inside would compete

Batch = dict[str, np.ndarray]

_THREADS = 8
_PREFETCHED_BATCHES = 16


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

    def random(self, record: sources.Record, rng: np.random.Generator) -> sources.Record:
        """A crop at a random place of the image at a random scale."""
        side = int(rng.integers(self.min_side, self.max_side + 1))
        image = resize_shorter_side(sources.decode(record), side)
        top, left = (int(rng.integers(0, n - self.size + 1)) for n in image.shape[:2])
        return self._cut(record, image, top, left)

    def centre(self, record: sources.Record) -> sources.Record:
        """The crop in the middle of the image at the smallest scale."""
        image = resize_shorter_side(sources.decode(record), self.min_side)
        top, left = ((n - self.size) // 2 for n in image.shape[:2])
        return self._cut(record, image, top, left)

    def _cut(
        self, record: sources.Record, image: np.ndarray, top: int, left: int
    ) -> sources.Record:
        crop = image[top : top + self.size, left : left + self.size]
        return {"image": crop, "label": np.int32(record["label"])}


def resize_shorter_side(image: np.ndarray, side: int) -> np.ndarray:
    """The image with its shorter side at ``side`` pixels and its shape kept."""
    height, width = image.shape[:2]
    if min(height, width) == side:
        return image
    scale = side / min(height, width)
    size = (max(side, round(width * scale)), max(side, round(height * scale)))
    # INTER_LINEAR alone does not antialias when it shrinks.
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def train_batches(
    split: sources.Split, crop: Crop, batch_size: int, seed: int, first: int, stop: int
) -> Iterator[Batch]:
    """Batches ``first, …, stop - 1`` of an endless run through the split, shuffled every epoch.

    Yields:
        ``image``, uint8 ``[batch_size, size, size, 3]``, and ``label``, int32 ``[batch_size]``.
    """
    batches = (
        grain.MapDataset.source(split)
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(crop.random)
        .batch(batch_size)
    )
    return iter(batches.slice(slice(first, stop)).to_iter_dataset(_read_options()))


def eval_batches(
    split: sources.Split, crop: Crop, batch_size: int, examples: int = 0, seed: int = 0
) -> Iterator[Batch]:
    """Every example of the split once, in centre crops; the last batch is padded.

    Args:
        split: where the images come from.
        crop: the size of the crops and of the images.
        batch_size: examples a batch.
        examples: 0 for all, else how many to draw without replacement.
        seed: chooses the examples when not all are asked for.

    Yields:
        ``image``, ``label``, and ``mask``, float32 ``[batch_size]``: 1 for an example, 0 for
        padding.
    """
    dataset = grain.MapDataset.source(split)
    if 0 < examples < len(split):
        dataset = dataset.seed(seed).shuffle().slice(slice(0, examples))
    batches = dataset.map(crop.centre).batch(batch_size)
    for batch in batches.to_iter_dataset(_read_options()):
        yield _pad({**batch, "mask": np.ones(len(batch["label"]), np.float32)}, batch_size)


def whole_images(split: sources.Split, side: int, multiple: int = 1) -> Iterator[Batch]:
    """Every example of the split once, in order, as a whole image.

    Args:
        split: where the images come from.
        side: the shorter side that images are resized to.
        multiple: the longer side is trimmed, evenly at both ends, to ``side`` and a multiple of
            this, so that there are fewer shapes to compile for: of images up to a times as long
            as wide, at most ``2 · (a - 1) · side / multiple + 1``.

    Yields:
        ``image``, uint8 ``[h, w, 3]``, and ``label``, int32.
    """

    def whole(record: sources.Record) -> sources.Record:
        image = resize_shorter_side(sources.decode(record), side)
        height, width = (side + (n - side) // multiple * multiple for n in image.shape[:2])
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        image = image[top : top + height, left : left + width]
        return {"image": image, "label": np.int32(record["label"])}

    yield from grain.MapDataset.source(split).map(whole).to_iter_dataset(_read_options())


def _pad(batch: Batch, batch_size: int) -> Batch:
    missing = batch_size - len(batch["label"])
    return {k: np.pad(v, [(0, missing)] + [(0, 0)] * (v.ndim - 1)) for k, v in batch.items()}


def _read_options() -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_PREFETCHED_BATCHES)
