import os
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from prelu_jax.data import decoding, folder, sources
from tests.conftest import write_images

COUNTS = {"train": {"cat": 3, "dog": 2}, "test": {"dog": 1}}


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images", COUNTS)


def test_a_folder_becomes_a_dataset_with_its_files_bytes(images, tmp_path):
    folder.prepare(images, "pets", str(tmp_path / "tfds"))
    train = sources.load("pets", "train", str(tmp_path / "tfds"))
    test = sources.load("pets", "test", str(tmp_path / "tfds"))
    assert train.class_names == test.class_names == ("cat", "dog")
    files = {f"{p.parent.name}/{p.name}": p.read_bytes() for p in images.glob("train/*/*.jpg")}
    assert {record["key"]: record["image"] for record in map(train.__getitem__, range(5))} == files
    assert (len(test), test[0]["label"], test[0]["key"]) == (1, 1, "dog/0.jpg")
    for split, length in (("train[:2]", 2), ("train+test", 6), ("all", 6)):
        assert len(sources.load("pets", split, str(tmp_path / "tfds"))) == length
    for split, message in (
        ("tset", "Unknown split of pets 'tset'. Did you mean 'test'"),
        ("train[:0]", r"Split 'train\[:0\]' of dataset 'pets': it holds no image"),
        ("train[-1:-3]", r"Split 'train\[-1:-3\]' of dataset 'pets': it holds no image"),
        ("train[oops]", r"Split 'train\[oops\]' of dataset 'pets'"),
    ):
        with pytest.raises(ValueError, match=message):
            sources.load("pets", split, str(tmp_path / "tfds"))


def test_a_folder_may_have_the_name_of_a_dataset_that_tfds_knows(images, tmp_path):
    folder.prepare(images, "cifar10", str(tmp_path / "tfds"))
    assert sources.load("cifar10", "train", str(tmp_path / "tfds")).class_names == ("cat", "dog")


def command(images, tmp_path, *more, **variables):
    arguments = [f"--images={images}", "--name=pets", f"--data_dir={tmp_path / 'tfds'}", *more]
    return subprocess.run(
        [sys.executable, "-m", "prelu_jax.data.folder", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore", **variables},
    )


def test_a_file_that_does_not_decode_is_named_or_counted(images, tmp_path):
    (images / "train/cat/broken.jpg").write_bytes(b"no image")
    (images / "train/dog/empty.png").write_bytes(b"")
    (images / "train/dog/photo.WEBP").write_bytes(b"")
    (images / "test/dog/LICENSE").write_bytes(b"")
    failed = command(images, tmp_path)
    assert failed.returncode == 78
    assert "broken.jpg does not decode" in failed.stderr
    assert "--on_bad_image=skip" in failed.stderr
    assert "Traceback" not in failed.stderr
    skipped = command(images, tmp_path, "--on_bad_image=skip")
    assert skipped.returncode == 0, skipped.stderr
    assert "pets/train: 5 images" in skipped.stdout
    assert "left out, not decodable: 2" in skipped.stdout
    assert "left out, named .webp: 1" in skipped.stdout
    assert "left out, named without a suffix: 1" in skipped.stdout
    assert "broken.jpg" in skipped.stdout


@pytest.mark.parametrize(
    ("renamed", "flags"),
    [
        ("test", ""),
        ("validation", " --config.test_split=validation"),
        (None, " --config.train_split='train[:80%]' --config.test_split='train[80%:]'"),
    ],
)
def test_the_command_ends_with_the_flags_of_an_experiment(images, tmp_path, renamed, flags):
    (images / "test").rename(images / renamed if renamed else tmp_path / "elsewhere")
    done = command(images, tmp_path)
    data_dir = f"--config.data_dir={tmp_path / 'tfds'}"
    assert done.stdout.endswith(f" --config.dataset=pets {data_dir}{flags}\n"), done.stderr


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "holds no folder and 0 files, expected a folder train"),
        ({"train": {"cat": 0}}, "train holds no image"),
        ({"train": {"cat": 1, "dog": 0}}, r"Classes of 'train' without images.*dog"),
        ({"test": {"cat": 1}}, "holds test, expected a folder train"),
        ({"photos/train": {"cat": 1}}, "holds photos, expected .* seems to be .*/photos"),
        ({"train": {"cat": 1}, "test": {"cow": 1}}, r"'test' has classes that 'train' lacks.*cow"),
    ],
)
def test_a_folder_that_is_no_dataset_is_refused(counts, message, tmp_path):
    root = write_images(tmp_path, counts)
    with pytest.raises(ValueError, match=message):
        folder.prepare(root, "pets", str(tmp_path / "tfds"))


def test_a_missing_folder_and_a_bad_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        folder.find_images(tmp_path / "nowhere")
    for name in ("My Pets", "digits"):
        with pytest.raises(ValueError, match=f"Dataset name '{name}'"):
            folder.prepare(tmp_path, name)


def test_a_name_in_use_is_refused_and_its_dataset_stays(images, tmp_path):
    folder.prepare(images, "pets", str(tmp_path / "tfds"))
    other = write_images(tmp_path / "other", {"train": {"cow": 1}})
    with pytest.raises(ValueError, match="already holds a dataset of that name"):
        folder.prepare(other, "pets", str(tmp_path / "tfds"))
    assert sources.load("pets", "train", str(tmp_path / "tfds")).class_names == ("cat", "dog")


def test_images_in_folders_within_a_class_are_not_left_out_in_silence(images):
    within = images / "train/dog/more"
    within.mkdir()
    (images / "train/dog/0.jpg").rename(within / "0.jpg")
    with pytest.raises(ValueError, match="1 images are in subfolders of class folders.*dog/more/0"):
        folder.find_images(images)


def test_hidden_folders_are_no_classes(images):
    (images / "train/.ipynb_checkpoints").mkdir()
    (images / ".cache").mkdir()
    assert list(folder.find_images(images)["train"]) == ["cat", "dog"]


def test_images_of_the_folder_decode(images):
    file = next(images.glob("train/*/*.jpg"))
    image = decoding.decode({"image": file.read_bytes(), "key": "k"})
    assert image.dtype == np.uint8


@pytest.mark.parametrize("split", ["val-2", "2nd", "_x", "Val", "été"])
def test_every_split_that_is_written_is_read_back(split, tmp_path):
    root = write_images(tmp_path / "images", {"train": {"cat": 1}, split: {"cat": 2}})
    folder.prepare(root, "pets", str(tmp_path / "tfds"))
    assert len(sources.load("pets", split, str(tmp_path / "tfds"))) == 2


@pytest.mark.parametrize(
    "split",
    [
        *("val 2", " val", "a+b", "train[1]", "a:b", "a.b", "50%", "val\n"),
        *("all", "ALL", "_", "-", "\udcff"),
    ],
)
def test_a_split_that_could_not_be_read_back_is_named(split, tmp_path):
    root = write_images(tmp_path / "images", {"train": {"cat": 1}, split: {"cat": 1}})
    with pytest.raises(ValueError, match="could not be read back") as error:
        folder.prepare(root, "pets", str(tmp_path / "tfds"))
    assert f"Split {split!r}" in str(error.value)
    assert not (tmp_path / "tfds/pets").exists()


@pytest.mark.parametrize(
    "label", ["a cat", "chat-é", "cafe\u0301", "猫", "cat,dog", "'cat'", "\u200bcat"]
)
def test_every_class_that_is_written_is_read_back(label, tmp_path):
    root = write_images(tmp_path / "images", {"train": {label: 1, "b": 1}, "test": {label: 1}})
    folder.prepare(root, "pets", str(tmp_path / "tfds"))
    test = sources.load("pets", "test", str(tmp_path / "tfds"))
    assert test.class_names == tuple(sorted((label, "b")))
    assert test.class_names[test[0]["label"]] == label
    assert test[0]["key"] == f"{label}/0.jpg"


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("cat\ndog", "has line breaks"),
        ("cat\r", "has line breaks"),
        ("a\x1b[31m", "control characters"),
        ("cat\u2028dog", "has line breaks"),
        ("cat ", "begins or ends with a space"),
        ("\u3000cat", "begins or ends with a space"),
        ("\udce9t\udce9", "is not UTF-8"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_that_could_not_be_read_back_is_named(label, message, split, tmp_path):
    counts = {"train": {"b": 1}, "test": {"b": 1}}
    counts[split][label] = 1
    root = write_images(tmp_path / "images", counts)
    with pytest.raises(ValueError, match=message) as error:
        folder.prepare(root, "pets", str(tmp_path / "tfds"))
    assert f"Class {label!r} of {root / split}" in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("split", ["train", "test"])
def test_one_name_in_two_unicode_forms_is_refused(split, tmp_path):
    counts = {"train": {"caf\u00e9": 1}, "test": {}}
    counts[split]["cafe\u0301"] = 1
    root = write_images(tmp_path / "images", counts)
    with pytest.raises(ValueError, match=r"'caf.*' and 'caf.*' are one name, .* in two") as error:
        folder.find_images(root)
    assert r"'caf\xe9'" in str(error.value)
    assert r"'cafe\u0301'" in str(error.value)


def spoil(parent):
    """Put entries that are not images into a folder; return how each is reported."""
    os.mkfifo(parent / "fifo.jpg")
    (parent / "dangling.jpg").symlink_to(parent / "nowhere")
    (parent / "loop.jpg").symlink_to(parent / "loop.jpg")
    (parent / "folder.jpg").mkdir()
    (parent / "link.jpg").symlink_to("/dev/zero")
    (parent / "line\nbreak.jpg").write_bytes(b"")
    (parent / "latin\udce9.jpg").write_bytes((parent / "0.jpg").read_bytes())
    return (
        "/fifo.jpg is a FIFO, not a file",
        "/dangling.jpg is a broken link (No such file or directory)",
        "/loop.jpg is a broken link (Too many levels of symbolic links)",
        "/folder.jpg is a folder, not a file",
        "/link.jpg is a device, not a file",
        r"/line\nbreak.jpg' does not decode",
        r"/latin\udce9.jpg' has a name that is not UTF-8",
    )


def test_every_kind_of_bad_file_is_named_or_counted(images, tmp_path):
    reports = spoil(images / "train/cat")
    failed = command(images, tmp_path)
    assert failed.returncode == 78
    assert "Traceback" not in failed.stderr
    assert "error: 7 of 13 images cannot be imported:" in failed.stderr
    assert sum(report in failed.stderr for report in reports) == 5
    assert "and 2 more" in failed.stderr
    assert not (tmp_path / "tfds/pets").exists()
    skipped = command(images, tmp_path, "--on_bad_image=skip")
    assert skipped.returncode == 0, skipped.stderr
    assert "pets/train: 5 images" in skipped.stdout
    assert "left out, not decodable: 7" in skipped.stdout
    assert [report for report in reports if f"{report}\n" not in skipped.stdout] == []


def test_a_socket_and_a_file_that_may_not_be_read_are_bad_images(images, tmp_path, monkeypatch):
    monkeypatch.chdir(images / "train/cat")  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket.png")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ValueError, match="7 of 7 images cannot be imported") as error:
        folder.prepare(images, "pets", str(tmp_path / "tfds"))
    assert "0.jpg cannot be read (Permission denied)" in str(error.value)
    assert "socket.png is a socket, not a file" in str(error.value)


def test_a_folder_that_may_not_be_read_is_named(images, monkeypatch):
    whole = Path.iterdir

    def refuse(path):
        if path.name == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ValueError, match="dog cannot be read: Permission denied"):
        folder.find_images(images)


@pytest.mark.parametrize("place", ["val", "train/cow"])
@pytest.mark.parametrize("target", ["nowhere", "itself"])
def test_a_link_in_the_place_of_a_split_or_class_that_leads_nowhere_is_named(place, target, images):
    link = images / place
    link.symlink_to(link if target == "itself" else images / target)
    with pytest.raises(ValueError, match=f"{place} is a broken link"):
        folder.find_images(images)


def test_links_to_files_and_folders_are_followed(images, tmp_path):
    (images / "train/cow").symlink_to(images / "train/cat")
    (images / "train/dog/2.jpg").symlink_to(images / "train/cat/2.jpg")
    folder.prepare(images, "pets", str(tmp_path / "tfds"))
    train = sources.load("pets", "train", str(tmp_path / "tfds"))
    assert (len(train), train.class_names) == (9, ("cat", "cow", "dog"))


@pytest.mark.parametrize("left_empty", ["train/dog", "test/dog"])
def test_a_class_of_which_skipping_leaves_nothing_is_named(left_empty, images, tmp_path):
    for path in (images / left_empty).iterdir():
        path.write_bytes(b"no image")
    split, label = left_empty.split("/")
    message = rf"All images of class '{label}' in split '{split}' are bad:\n.*0.jpg does not decode"
    with pytest.raises(ValueError, match=message):
        folder.prepare(images, "pets", str(tmp_path / "tfds"), skip_bad_images=True)
    assert not (tmp_path / "tfds/pets").exists()


def test_an_image_of_too_many_pixels_is_named_with_its_size_or_left_out(images, tmp_path):
    cv2.imwrite(str(images / "train/cat/large.png"), np.zeros((100, 300), np.uint8))
    failed = command(images, tmp_path, "--max_pixels=29999")
    assert failed.returncode == 78
    assert "cat/large.png is an image of 300×100 pixels: with more than 29,999" in failed.stderr
    skipped = command(images, tmp_path, "--max_pixels=29999", "--on_bad_image=skip")
    assert "left out, not decodable: 1" in skipped.stdout
    assert "pets/train: 5 images" in skipped.stdout


@pytest.mark.parametrize("data_dir", ["file/below", "file", "/proc/none"])
def test_a_data_dir_that_cannot_be_made_is_named(data_dir, images, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    given = str(tmp_path / data_dir)
    with pytest.raises(ValueError, match=f"cannot be written to {given}: .* another --data_dir"):
        folder.prepare(images, "pets", given)
    with pytest.raises(
        ValueError, match="data_dir is ~nobody_of_that_name/x, but there is no home"
    ):
        folder.prepare(images, "pets", "~nobody_of_that_name/x")


def test_a_data_dir_that_is_not_utf_8_and_a_name_that_is_too_long_are_named(images, tmp_path):
    with pytest.raises(ValueError, match="the path is not UTF-8"):
        folder.prepare(images, "pets", str(tmp_path / "tfds\udcff"))
    with pytest.raises(ValueError, match="cannot be written to .*File name too long"):
        folder.prepare(images, "x" * 300, str(tmp_path / "tfds"))


LIMITED = """
import resource, signal, sys
from pathlib import Path
from prelu_jax.data import folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # as on a disk that is nearly full
try:
    folder.prepare(Path(sys.argv[1]), "pets", sys.argv[2])
except ValueError as error:
    print(error)
"""
KILLED = """
import os, sys
from pathlib import Path
from prelu_jax.data import folder
whole = folder.FolderOfImages._generate_examples
def until_killed(self, classes):
    yield from whole(self, classes)
    if len(self.files["train"]) == len(classes):  # the last split to be written
        os._exit(9)
folder.FolderOfImages._generate_examples = until_killed
folder.prepare(Path(sys.argv[1]), "pets", sys.argv[2])
"""


@pytest.mark.parametrize(("program", "status"), [(LIMITED, 0), (KILLED, 9)], ids=["full", "killed"])
def test_an_interrupted_import_leaves_no_dataset_and_can_be_repeated(
    program, status, images, tmp_path
):
    tfds = str(tmp_path / "tfds")
    ended = subprocess.run(
        [sys.executable, "-c", program, str(images), tfds], capture_output=True, text=True
    )
    assert ended.returncode == status, ended.stderr
    if not status:
        assert "The dataset cannot be written to" in ended.stdout
        assert "File too large" in ended.stdout
    with pytest.raises(ValueError, match="Unknown dataset 'pets'"):
        sources.load("pets", "train", tfds)
    folder.prepare(images, "pets", tfds)
    assert len(sources.load("pets", "all", tfds)) == 6


def test_a_name_is_taken_by_any_version_of_a_dataset(images, tmp_path):
    """TFDS reads the newest version, so a new 1.0.0 would never be read."""
    (tmp_path / "tfds/pets/3.0.2").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"pets/3\.0\.2 already holds a dataset of that name"):
        folder.prepare(images, "pets", str(tmp_path / "tfds"))


@pytest.mark.parametrize("given", ["images/train", "images/train/cat", "."])
def test_a_folder_a_level_too_high_or_low_is_pointed_out(given, images, tmp_path):
    with pytest.raises(ValueError, match=r"It seems to be .*images\.$"):
        folder.find_images(tmp_path / given)


def test_classes_without_a_split_and_a_split_in_capitals_are_pointed_out(tmp_path):
    classes = write_images(tmp_path, {"photos": {"cat": 1}}) / "photos"
    with pytest.raises(ValueError, match="If these are the classes, move them into .*photos/train"):
        folder.find_images(classes)
    capitals = write_images(tmp_path / "other", {"Train": {"cat": 1}})
    with pytest.raises(ValueError, match="Rename .*Train to 'train'"):
        folder.find_images(capitals)


def test_images_beside_the_classes_are_not_left_out_in_silence(images):
    (images / "train/dog/0.jpg").rename(images / "train/loose.jpg")
    with pytest.raises(ValueError, match=r"1 images are next to .* first is .*train/loose\.jpg"):
        folder.find_images(images)


def test_the_command_prints_names_that_the_locale_lacks(images, tmp_path):
    (images / "train/cat/é.jpg").write_bytes(b"")
    done = command(images, tmp_path, "--on_bad_image=skip", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert r"\xe9.jpg does not decode" in done.stdout
