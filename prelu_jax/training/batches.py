"""The batches of a run and its mean image."""

import functools
from collections.abc import Callable, Iterable, Iterator

from prelu_jax.data import augment, moments, pipeline
from prelu_jax.data.moments import PixelMoments
from prelu_jax.data.share import ALL, Share
from prelu_jax.training.recipe import Recipe

Watch = Callable[[Iterable[pipeline.Batch], str], Iterator[pipeline.Batch]]


def _unwatched(batches: Iterable[pipeline.Batch], kind: str) -> Iterator[pipeline.Batch]:
    del kind
    return iter(batches)


class Batches:
    """Reader of a run's batches.

    Args:
        recipe: of the run.
        share: the part of every batch that this process reads.
        watch: wraps an iterator of batches and takes their kind, as `Watchdog.over` does.

    Attributes:
        issues: records of images that did not decode or were enlarged.
    """

    def __init__(self, recipe: Recipe, share: Share = ALL, watch: Watch = _unwatched) -> None:
        self._recipe = recipe
        self._share = share
        self._watch = watch
        config = recipe.config
        self.issues = pipeline.ImageIssues(config.on_bad_image == "skip", config.max_pixels)
        self._measured = functools.cache(self._measure)

    def train(self, first: int = 0) -> Iterator[pipeline.Batch]:
        """Yield the training batches from step ``first`` on."""
        r, c = self._recipe, self._recipe.config
        batches = pipeline.train_batches(
            *(r.train, r.crop, c.batch_size, c.seed, first, c.num_steps, self.issues),
            share=self._share,
        )
        return self._watch(batches, "a training batch")

    def test(self) -> Iterator[pipeline.Batch]:
        """Yield every test example once."""
        r, c = self._recipe, self._recipe.config
        batches = pipeline.eval_batches(
            *(r.test, r.crop, c.batch_size, c.test_examples),
            issues=self.issues,
            share=self._share,
        )
        return self._watch(batches, "a test batch")

    def pixel_statistics(self) -> augment.PixelStatistics:
        """Return the training split's mean image and colours, from its file or measured here."""
        pixels, bad_images = self._measured()
        self.issues.add(bad_images)
        return augment.pixel_statistics(pixels, self._recipe.config.pixel_rms)

    def _measure(self) -> tuple[PixelMoments, dict[str, list[str]]]:
        """Return the moments, and the bad images that were read for them."""
        r, issues = self._recipe, self.issues.empty()
        if r.moments:
            return moments.load(r.moments, r.crop.size), issues.keys()
        images = pipeline.eval_batches(r.train, r.crop, 100, issues=issues)
        pixels = moments.measure(self._watch(images, "images for their mean"))
        return pixels, issues.keys()
