"""What a run reads: its splits, its batches and its mean image."""

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from prelu_jax import arch
from prelu_jax.data import augment, moments, pipeline, sources
from prelu_jax.data.moments import PixelMoments
from prelu_jax.data.share import ALL, Share
from prelu_jax.training import identity
from prelu_jax.training.config import TrainConfig, drop_steps

_SMALL = 100_000  # images, which the start of a run can wait for; more are measured by a command


def splits(config: TrainConfig) -> tuple[sources.Split, sources.Split]:
    """What the run trains on and what it is tested on."""
    train, test = (
        sources.load(config.dataset, split, config.data_dir)
        for split in (config.train_split, config.test_split)
    )
    few = config.examples_per_class
    return (
        sources.subset(train, config.classes, few, config.seed),
        sources.subset(test, config.classes),
    )


def check(config: TrainConfig) -> None:
    """Raises a ValueError if what the run reads is not there, or does not go together."""
    train, _ = splits(config)
    if len(train.class_names) < 2:
        raise ValueError(
            f"{config.dataset} with config.classes {config.classes or 'all'} has one class, "
            f"{train.class_names[0]}: expected two or more to tell apart."
        )
    drop_steps(config, len(train) / config.batch_size)
    if not config.pretrained:  # else the mean image is that run's
        _kept_moments(config, len(train))


def _crop(config: TrainConfig) -> pipeline.Crop:
    return pipeline.Crop(arch.get(config.arch).image_size, config.min_side, config.max_side)


def _kept_moments(config: TrainConfig, images: int) -> Path | None:
    """The file of moments beside the dataset; None for a run that measures its images itself.

    Raises:
        ValueError: there is none, and too many images to measure; the error gives the command.
    """
    c, crop = config, _crop(config)
    if c.dataset == sources.DIGITS or c.classes or c.examples_per_class:
        return None
    folder = sources.version_folder(c.dataset, c.data_dir)
    file = moments.path(folder, c.train_split, crop.size, crop.min_side)
    if file.exists():
        return file
    if images > _SMALL:
        raise ValueError(
            f"{c.dataset}/{c.train_split} has {images} images, whose mean image and colours are "
            f"not yet measured: {file} is missing. Measure them once: "
            f"`{moments.command(c.dataset, c.train_split, crop.size, crop.min_side, c.data_dir)}`."
        )
    return None


class RunData:
    """The splits of a run and the batches that it reads from them.

    Args:
        config: of the run.
        share: of every batch, what is read here.
        watched: told of every batch that is asked for, and what it is for.
    """

    def __init__(
        self,
        config: TrainConfig,
        share: Share = ALL,
        watched: Callable[[Iterable[pipeline.Batch], str], Iterator[pipeline.Batch]] = (
            lambda batches, each: iter(batches)
        ),
    ) -> None:
        self._config = config
        self._share = share
        self._watched = watched
        self._train, self._test = splits(config)
        self._crop = _crop(config)
        self.tally = pipeline.Tally(config.on_bad_image == "skip", config.max_pixels)
        self.num_classes = len(self._train.class_names)
        self.facts = identity.data_facts(self._train, self._test)
        self.steps_per_epoch = len(self._train) / config.batch_size
        self._measured = functools.cache(self._measure)

    def train_batches(self, first: int = 0) -> Iterator[pipeline.Batch]:
        """The run's batches from step ``first`` on."""
        c = self._config
        batches = pipeline.train_batches(
            *(self._train, self._crop, c.batch_size, c.seed, first, c.num_steps, self.tally),
            share=self._share,
        )
        return self._watched(batches, "a training batch")

    def eval_batches(self, tally: pipeline.Tally | None = None) -> Iterator[pipeline.Batch]:
        """The test examples, each once; the run's tally is told what is odd, or another."""
        c = self._config
        batches = pipeline.eval_batches(
            *(self._test, self._crop, c.batch_size, c.test_examples),
            tally=tally or self.tally,
            share=self._share,
        )
        return self._watched(batches, "a test batch")

    def pixel_statistics(self) -> augment.PixelStatistics:
        """Of the training split: those kept with the dataset, or measured here if it is small.

        Raises:
            ValueError: it is large and nothing is kept; the error gives the command.
        """
        found, odd = self._measured()
        self.tally.add(odd)
        return augment.pixel_statistics(found, self._config.pixel_rms)

    def _measure(self) -> tuple[PixelMoments, dict[str, list[str]]]:
        """The moments, and what is odd about the images that had to be read for them."""
        tally = self.tally.empty()
        file = _kept_moments(self._config, len(self._train))
        if file:
            return moments.load(file, self._crop.size), tally.keys()
        every = pipeline.eval_batches(self._train, self._crop, 100, tally=tally)
        found = moments.measure(self._watched(every, "images for their mean"))
        return found, tally.keys()
