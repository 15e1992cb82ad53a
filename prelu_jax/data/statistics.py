"""Command that measures the pixels of a prepared dataset and stores the result with it.

    python -m prelu_jax.data.statistics --dataset=NAME --size=224 --side=256

It computes the mean image of the centre crops, which a run subtracts from its inputs, and the
covariance of their colours, by which a run alters colours (`moments`).
"""

from pathlib import Path

from absl import app, flags

from prelu_jax import entry, extras
from prelu_jax.data import MAX_PIXELS, moments, pipeline, sources

with extras.needed("prelu_jax.data.statistics", "train"):
    from tqdm import tqdm

_BATCH = 100


def measure(
    dataset: str, split: str, crop: pipeline.Crop, data_dir: str, issues: pipeline.ImageIssues
) -> Path:
    """Measure a split of a prepared dataset and return the file that it wrote.

    Raises:
        ValueError: the dataset or split does not exist, or an image does not decode and is not
            left out.
    """
    folder = sources.version_folder(dataset, data_dir)
    images = sources.load(dataset, split, data_dir)
    batches = pipeline.eval_batches(images, crop, _BATCH, issues=issues)
    measured = moments.measure(tqdm(batches, total=-(-len(images) // _BATCH), unit="batch"))
    file = moments.path(folder, split, crop.size, crop.min_side)
    moments.save(file, measured)
    return file


def main(argv: list[str]) -> None:
    """Run the command; see the module."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    values = flags.FLAGS
    issues = pipeline.ImageIssues(values.on_bad_image == "skip", values.max_pixels)
    try:
        if not 1 <= values.size <= values.side:
            raise ValueError(
                f"--size={values.size} --side={values.side}: expected crops of at least 1 pixel, "
                "and images no smaller than the crops."
            )
        crop = pipeline.Crop(values.size, values.side, values.side)
        file = measure(values.dataset, values.split, crop, values.data_dir, issues)
    except (ValueError, ImportError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    saved = moments.load(file, crop.size)
    print(f"{int(saved.images)} images; mean red, green, blue: {saved.mean.mean(axis=(0, 1))}")
    print("".join(f"{kind}: {count}\n" for kind, count in issues.counts().items()), end="")
    print(f"written to {file}")


if __name__ == "__main__":
    flags.DEFINE_string("dataset", None, "Name of a prepared dataset.", required=True)
    flags.DEFINE_string("split", "train", "Split to measure, in TFDS's syntax.")
    flags.DEFINE_string("data_dir", "", "TFDS's folder; by default its own default.")
    flags.DEFINE_integer("size", 224, "Side of the crops, in pixels.")
    flags.DEFINE_integer("side", 256, "Shorter side of the images from which they are cut.")
    flags.DEFINE_enum(
        "on_bad_image",
        "fail",
        ["fail", "skip"],
        "Fail on a record that does not decode, or leave it out.",
    )
    flags.DEFINE_integer(
        "max_pixels",
        MAX_PIXELS,
        "A record with more pixels counts as one that does not decode.",
        lower_bound=1,
    )
    with entry.command():
        main(entry.parse_flags())
