import gzip
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from prelu_jax.data import decoding, folder, idx, sources
from tests.conftest import idx_bytes

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8)  # a 5×3 image each
LABELS = np.array([2, 11, 2, 0], np.uint8)


@pytest.fixture
def files(tmp_path):
    """Write IDX files of images (compressed) and of their labels (not compressed)."""
    images, labels = tmp_path / "images.gz", tmp_path / "labels"
    images.write_bytes(gzip.compress(idx_bytes(PIXELS)))
    labels.write_bytes(idx_bytes(LABELS))
    return images, labels


def test_idx_files_become_a_dataset_with_the_same_labels_and_pixels(files, tmp_path):
    root = tmp_path / "root"
    counts = idx.write_pngs(*files, root / "train")
    assert counts == {"000": 1, "002": 2, "011": 1}
    assert [path.name for path in root.iterdir()] == ["train"]
    folder.prepare(root, "tiny", str(tmp_path / "tfds"))
    train = sources.load("tiny", "train", str(tmp_path / "tfds"))
    assert train.class_names == ("000", "002", "011")
    for record in map(train.__getitem__, range(4)):
        index = int(record["key"].removesuffix(".png").partition("/")[2])
        assert train.class_names[record["label"]] == f"{LABELS[index]:03}"
        grey = np.repeat(PIXELS[..., None], 3, axis=-1)[index]
        np.testing.assert_array_equal(decoding.decode(record), grey)


def test_a_class_has_the_same_name_in_every_split(files, tmp_path):
    """The name does not depend on the largest label of a split."""
    few = tmp_path / "few"
    few.write_bytes(idx_bytes(np.array([0, 0, 2, 2], np.uint8)))
    assert set(idx.write_pngs(files[0], few, tmp_path / "test")) == {"000", "002"}


WHOLE = gzip.compress(idx_bytes(PIXELS))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        pytest.param(images, message, id=name)
        for name, images, message in (
            (
                "labels",
                idx_bytes(LABELS),
                "begins with the bytes '00 00 08 01', expected '00 00 08",
            ),
            ("floats", b"\0\0\x0d\3" + idx_bytes(PIXELS)[4:], "'00 00 0d 03', expected"),
            ("png", b"\x89PNG", "'89 50 4e 47', expected"),
            ("empty", b"", "begins with the bytes '', expected"),
            ("part of header", idx_bytes(PIXELS)[:9], "holds 0 values"),
            ("cut", idx_bytes(PIXELS)[:-1], r"59 values, expected 60 for the shape \(4, 5, 3\)"),
            ("longer", idx_bytes(PIXELS) + b"\0", "holds 61 values, expected 60"),
            ("cut, compressed", gzip.compress(idx_bytes(PIXELS)[:-1]), "59 values, expected 60"),
            ("cut gzip", WHOLE[:-9], "cannot be read: "),
            ("a byte of gzip", WHOLE[:1], "begins with the bytes '1f', expected"),
            ("damaged gzip", WHOLE[:-20] + bytes(8) + WHOLE[-12:], "cannot be read: "),
            (
                "fewer",
                idx_bytes(PIXELS[:3]),
                " 3 images, .*labels holds 4 labels: expected equal numbers",
            ),
            ("no pixel", idx_bytes(PIXELS[:, :0]), r"holds no pixels: its shape is \(4, 0, 3\)"),
            ("huge", b"\0\0\x08\3" + b"\xff" * 12, "0 values, expected 79228162458"),
        )
    ],
)
def test_a_file_that_is_damaged_or_another_is_named(images, message, files, tmp_path):
    files[0].write_bytes(images)
    with pytest.raises(ValueError, match=rf"images\.gz.*{message}"):
        idx.write_pngs(*files, tmp_path / "train")
    assert not list(tmp_path.glob("*train*"))


def test_an_interrupted_write_leaves_no_split(files, tmp_path, monkeypatch):
    encode = cv2.imencode
    calls = iter([True, True, False])

    def fail(*arguments):
        if next(calls):
            return encode(*arguments)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cv2, "imencode", fail)
    with pytest.raises(ValueError, match="train cannot be written: .*No space left"):
        idx.write_pngs(*files, tmp_path / "train")
    assert not list(tmp_path.glob("*train*"))
    # A killed process leaves its hidden folder, which the next one replaces.
    (tmp_path / ".train.unfinished/999").mkdir(parents=True)
    monkeypatch.undo()
    assert "999" not in idx.write_pngs(*files, tmp_path / "train")
    with pytest.raises(ValueError, match="train already exists"):
        idx.write_pngs(*files, tmp_path / "train")


def test_the_command_reports_errors(files, tmp_path):
    def command(images):
        arguments = [f"--images={images}", f"--labels={files[1]}", f"--folder={tmp_path}/train"]
        return subprocess.run(
            [sys.executable, "-m", "prelu_jax.data.idx", *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )

    failed = command(tmp_path / "nowhere")
    assert (failed.returncode, failed.stdout) == (78, "")
    assert failed.stderr.startswith(f"error: {tmp_path / 'nowhere'} cannot be read: ")
    done = command(files[0])
    assert done.returncode == 0, done.stderr
    assert "4 images of 3 classes" in done.stdout
