"""Readers of JPEGs for `input_pipeline`, each in its own process on one core.

    python -m benchmarks.input_readers READER FOLDER

`input_scaling.write` has written FOLDER. For every line on stdin, a number of batches, the process
reads as many and prints the images per core-second.

Every reader resizes to a random shorter side from 256 to 512, crops 224×224 pixels at a random
place and makes uint8 batches of 128. Libraries are imported where they are used, because the
interpreter with tf.data lacks the others.
"""

import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prelu_jax import entry

BATCH = 128
SIZE, MIN_SIDE, MAX_SIDE = 224, 256, 512
EPOCH = 1_281_167  # ImageNet's length, because Grain shuffles short datasets more slowly

Read = Callable[[int], Iterator[Any]]  # reads a number of batches


def ours(folder: Path) -> Read:
    """Return `pipeline.train_batches` of a prepared dataset whose photos repeat."""
    from prelu_jax.data import pipeline, sources

    split = sources.load("photos", "train", str(folder / "tfds"))
    again: Any = _Again(split.records)
    endless = sources.Split(again, split.class_names)
    crop = pipeline.Crop(SIZE, MIN_SIDE, MAX_SIDE)
    return lambda count: pipeline.train_batches(endless, crop, BATCH, 0, 0, count, threads=1)


class _Again:
    """Records that repeat up to the length of an epoch."""

    def __init__(self, records: Any) -> None:
        self.records = records

    def __len__(self) -> int:
        return EPOCH

    def __getitem__(self, index: int) -> Any:
        return self.records[index % len(self.records)]


def pillow(folder: Path, crop_first: bool = False) -> Read:
    """Return PyTorch's DataLoader of files that Pillow opens, converts, resizes and crops.

    Args:
        folder: folder of the photos.
        crop_first: resize only the crop, as torchvision's RandomResizedCrop does.
    """
    import numpy as np
    import torch
    from PIL import Image

    torch.set_num_threads(1)

    class Photos(torch.utils.data.Dataset):
        files = _files(folder)

        def __len__(self) -> int:
            return EPOCH

        def __getitem__(self, index: int) -> Any:
            with Image.open(self.files[index % len(self.files)]) as file:
                image = file.convert("RGB")
            scale = random.randint(MIN_SIDE, MAX_SIDE) / min(image.size)
            width, height = (round(n * scale) for n in image.size)
            left, top = random.randint(0, width - SIZE), random.randint(0, height - SIZE)
            box = (left, top, left + SIZE, top + SIZE)
            if crop_first:
                box_before: Any = tuple(
                    min(n / scale, most) for n, most in zip(box, 2 * image.size, strict=True)
                )
                image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box_before)
            else:
                image = image.resize((width, height), Image.Resampling.BILINEAR).crop(box)
            return torch.from_numpy(np.array(image))

    def read(count: int) -> Iterator[Any]:
        some = torch.utils.data.Subset(Photos(), range(count * BATCH))
        return iter(torch.utils.data.DataLoader(some, BATCH, num_workers=0))

    return read


def tf_data(folder: Path, antialias: bool) -> Read:
    """Return a tf.data pipeline that decodes only the crop and resizes it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)

    def example(file: Any) -> Any:
        stored = tf.io.read_file(file)
        shape = tf.io.extract_jpeg_shape(stored)[:2]
        side = tf.random.uniform([], MIN_SIDE, MAX_SIDE + 1, tf.int32)
        size = tf.cast(tf.round(SIZE * tf.reduce_min(shape) / side), tf.int32)
        top = tf.random.uniform([], 0, shape[0] - size + 1, tf.int32)
        left = tf.random.uniform([], 0, shape[1] - size + 1, tf.int32)
        image = tf.io.decode_and_crop_jpeg(stored, [top, left, size, size], channels=3)
        image = tf.image.resize(image, [SIZE, SIZE], antialias=antialias)
        return tf.cast(tf.round(image), tf.uint8)

    batches = tf.data.Dataset.from_tensor_slices(_files(folder)).repeat().map(example).batch(BATCH)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    return lambda count: iter(batches.take(count).with_options(options))


def _files(folder: Path) -> list[str]:
    return sorted(map(str, folder.glob("images/train/*/*.jpg")))


READERS: dict[str, Callable[[Path], Read]] = {
    "ours": ours,
    "pillow": pillow,
    "pillow, crop first": lambda folder: pillow(folder, crop_first=True),
    "tf.data": lambda folder: tf_data(folder, antialias=True),
    "tf.data, aliased": lambda folder: tf_data(folder, antialias=False),
}


def main(name: str, folder: str) -> None:
    """Run the command; see the module."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    read = READERS[name](Path(folder))
    for line in sys.stdin:
        began = time.process_time()
        batches = sum(1 for _ in read(int(line)))
        print(batches * BATCH / (time.process_time() - began), flush=True)


if __name__ == "__main__":
    entry.answer_help()
    main(*sys.argv[1:])
