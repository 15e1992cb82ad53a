"""What a run reads: its splits, its batches and its mean image."""

from collections.abc import Iterator

from prelu_jax import arch
from prelu_jax.data import augment, moments, pipeline, sources, statistics
from prelu_jax.training.config import TrainConfig

# A start of a run can wait for so many images, whose mean is that of all to a grey level.
_MEASURED_AT_START = 10_000
_SMALL = 100_000  # images: larger splits are measured whole, once, by `data.statistics`


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
        self.tally = pipeline.Tally(config.on_bad_image == "skip")
        self.num_classes = len(self._train.class_names)
        self.steps_per_epoch = len(self._train) / config.batch_size

    def train_batches(self, first: int = 0) -> Iterator[pipeline.Batch]:
        """The run's batches from step ``first`` on."""
        c = self._config
        return pipeline.train_batches(
            self._train, self._crop, c.batch_size, c.seed, first, c.num_steps, self.tally
        )

    def eval_batches(self) -> Iterator[pipeline.Batch]:
        """The test examples, each once."""
        c = self._config
        return pipeline.eval_batches(
            self._test, self._crop, c.batch_size, c.test_examples, tally=self.tally
        )

    def pixel_statistics(self) -> augment.PixelStatistics:
        """Of the training split: those kept with the dataset, or measured here if it is small.

        Raises:
            ValueError: it is large and nothing is kept; the error gives the command.
        """
        return augment.pixel_statistics(self._moments(), self._config.pixel_rms)

    def _moments(self) -> moments.PixelMoments:
        c = self._config
        if c.dataset != sources.DIGITS and not (c.classes or c.examples_per_class):
            folder = sources.version_folder(c.dataset, c.data_dir)
            file = moments.path(folder, c.train_split, self._crop.size, self._crop.min_side)
            if file.exists():
                return moments.load(file)
            if len(self._train) > _SMALL:
                raise ValueError(
                    f"{c.dataset}/{c.train_split} has {len(self._train)} images, whose mean image "
                    f"and colours are not yet measured: {file} is missing. Measure them once: "
                    f"`{statistics.command(c.dataset, c.train_split, self._crop, c.data_dir)}`."
                )
        batches = pipeline.eval_batches(
            self._train, self._crop, 100, _MEASURED_AT_START, tally=self.tally
        )
        return moments.measure(batches)
