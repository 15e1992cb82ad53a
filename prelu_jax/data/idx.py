"""Command that converts IDX files, the format of MNIST and Fashion-MNIST, to folders of PNGs.

    python -m prelu_jax.data.idx --images=FILE --labels=FILE --folder=DIR/train

This writes one split, ``DIR/train/<label>/<index>.png``, for `prelu_jax.data.folder` to import. The
files may be compressed with gzip. A class is named after its label, 000 to 255.
"""

import gzip
import shutil
import zlib
from pathlib import Path

import numpy as np
from absl import app, flags

from prelu_jax import entry, extras, files

with extras.needed("prelu_jax.data.idx", "train"):
    import cv2
    from tqdm import tqdm

_UNSIGNED_BYTES = 8  # the type's code, in the third byte
_GZIP = b"\x1f\x8b"


def read(file: Path, axes: int) -> np.ndarray:
    """Return the array of an IDX file of unsigned bytes.

    The format is: two zero bytes, a code of the type, the number of axes, their sizes as big-endian
    32-bit integers, the values.

    Args:
        file: an IDX file, which may be compressed with gzip.
        axes: expected number of axes; 3 for images ``[n, height, width]``, 1 for labels ``[n]``.

    Raises:
        ValueError: the file cannot be read, is damaged, or holds something else.
    """
    expected = bytes((0, 0, _UNSIGNED_BYTES, axes))
    try:
        with file.open("rb") as raw:
            is_compressed = raw.read(len(_GZIP)) == _GZIP
        with gzip.open(file, "rb") if is_compressed else file.open("rb") as stored:
            magic = stored.read(len(expected))
            if magic != expected:
                raise ValueError(
                    f"{file} begins with the bytes '{magic.hex(' ')}', expected "
                    f"'{expected.hex(' ')}': an IDX file of unsigned bytes with {axes} "
                    f"{'axis' if axes == 1 else 'axes'}. --images takes the file of images, "
                    "--labels the file of labels."
                )
            sizes = stored.read(4 * axes)
            shape = tuple(int(n) for n in np.frombuffer(sizes[: len(sizes) // 4 * 4], ">u4"))
            count = int(np.prod(shape, dtype=object))
            values = stored.read() if len(shape) == axes else b""
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file} cannot be read: {error}. Copy or download it again.") from error
    if len(shape) != axes or len(values) != count:
        raise ValueError(
            f"{file} holds {len(values)} values, expected {count} for the shape {shape} in its "
            "header: it is damaged. Copy or download it again."
        )
    return np.frombuffer(values, np.uint8).reshape(shape)


def write_pngs(images: Path, labels: Path, folder: Path) -> dict[str, int]:
    """Write the images of one split as ``folder/<label>/<index>.png``; return counts by class.

    The folder gets its name when all images are written.

    Raises:
        ValueError: see `read`; the files do not match; the folder exists or cannot be written.
    """
    pixels, classes = read(images, 3), read(labels, 1)
    if len(pixels) != len(classes):
        raise ValueError(
            f"{images} holds {len(pixels)} images, {labels} holds {len(classes)} labels: expected "
            "equal numbers. Take both files from the same split."
        )
    if not pixels.size:
        raise ValueError(f"{images} holds no pixels: its shape is {pixels.shape}.")
    if folder.exists():
        raise ValueError(f"{folder} already exists. Remove it, or choose another --folder.")
    unfinished = folder.with_name(f".{folder.name}.unfinished")  # hidden, so not read as a split
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        for label in np.unique(classes):
            (unfinished / f"{label:03}").mkdir(parents=True)
        progress = tqdm(zip(pixels, classes, strict=True), total=len(pixels), unit="image")
        for index, (image, label) in enumerate(progress):
            encoded = cv2.imencode(".png", image)[1].tobytes()
            (unfinished / f"{label:03}" / f"{index:06}.png").write_bytes(encoded)
        unfinished.rename(folder)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise ValueError(f"{folder} cannot be written: {error}.") from error
    return {path.name: len(list(path.iterdir())) for path in sorted(folder.iterdir())}


def main(argv: list[str]) -> None:
    """Run the command; see the module."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    values = flags.FLAGS
    try:
        images, labels, folder = (
            files.local_path(path, f"--{name}")
            for name, path in (
                ("images", values.images),
                ("labels", values.labels),
                ("folder", values.folder),
            )
        )
        counts = write_pngs(images, labels, folder)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{sum(counts.values())} images of {len(counts)} classes: {counts}")
    print(f"written to {folder}")


if __name__ == "__main__":
    flags.DEFINE_string("images", None, "IDX file of images.", required=True)
    flags.DEFINE_string("labels", None, "IDX file of their labels.", required=True)
    flags.DEFINE_string("folder", None, "Folder to write: DIR/train, DIR/test.", required=True)
    with entry.command():
        main(entry.parse_flags())
