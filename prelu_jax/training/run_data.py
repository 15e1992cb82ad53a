"""What a run reads: its splits, its batches and its mean image."""

from collections.abc import Iterator

from prelu_jax import arch
from prelu_jax.data import augment, moments, pipeline, sources
from prelu_jax.training.config import TrainConfig

_STATISTICS_EXAMPLES = 10_000  # the mean image of more is the same to a grey level


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


class RunData:
    """The splits of a run and the batches that it reads from them."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._train, self._test = splits(config)
        size = arch.get(config.arch).image_size
        self._crop = pipeline.Crop(size, config.min_side, config.max_side)
        self.num_classes = len(self._train.class_names)
        self.steps_per_epoch = len(self._train) / config.batch_size

    def train_batches(self, first: int = 0) -> Iterator[pipeline.Batch]:
        """The run's batches from step ``first`` on."""
        c = self._config
        return pipeline.train_batches(
            self._train, self._crop, c.batch_size, c.seed, first, c.num_steps
        )

    def eval_batches(self) -> Iterator[pipeline.Batch]:
        """The test examples, each once."""
        c = self._config
        return pipeline.eval_batches(self._test, self._crop, c.batch_size, c.test_examples)

    def pixel_statistics(self) -> augment.PixelStatistics:
        """Of the training split."""
        batches = pipeline.eval_batches(self._train, self._crop, 100, _STATISTICS_EXAMPLES)
        return augment.pixel_statistics(moments.measure(batches), self._config.pixel_rms)
