"""One damaged small file of a run: it is named, and costs no more than itself."""

import json
import logging
import os
import shutil

import pytest

from prelu_jax import arch
from prelu_jax.runs import finished as finished_lib
from prelu_jax.runs import trainer
from prelu_jax.runs.checkpoint import Checkpoints
from prelu_jax.runs.recorder import StoppedError
from tests.training.conftest import TINY, one_device, tiny_config

pytestmark = pytest.mark.usefixtures("tiny_arch")

DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "NUL": lambda content: bytes(len(content)),
    "list": lambda content: b"[1, 2]",
    "object": lambda content: b'{"step": [], "status": 3, "seed": "x"}',
    "number": lambda content: b"1e999",
    "null": lambda content: b"null",
    "not UTF-8": lambda content: b'{"status": "\xff"}',
    "deep": lambda content: b"[" * 100_000,
}
CONFIG = tiny_config(rectifier="prelu")
COMPARED = ("metrics.jsonl", "status.json", "init_report.json", "config.json")


def damage(file, kind):
    file.write_bytes(DAMAGES[kind](file.read_bytes()))


def stop_at(step, config, folder):
    answers = iter([False] * (step - 1) + [True])
    with pytest.raises(StoppedError):
        trainer.train(config, folder, parallel=one_device(), stop=lambda: next(answers))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a finished run and of the same run, stopped in the interval after step 10."""
    folder = tmp_path_factory.mktemp("damage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(arch.REGISTRY, "tiny", TINY)
        trainer.train(CONFIG, folder / "done", parallel=one_device())
        stop_at(11, CONFIG, folder / "stopped")
    return folder


def copy(runs, kind, tmp_path):
    return shutil.copytree(runs / kind, tmp_path / "copy")


def assert_same_end(runs, folder):
    for name in COMPARED:
        assert (folder / name).read_bytes() == (runs / "done" / name).read_bytes(), name


@pytest.mark.parametrize("name", ["status.json", "config.json", "init_report.json"])
@pytest.mark.parametrize("kind", ["empty", "NUL", "object", "not UTF-8", "deep"])
def test_a_stopped_run_continues_to_the_same_end(name, kind, runs, tmp_path, caplog):
    if (name, kind) == ("config.json", "object"):
        pytest.skip("that is another configuration")
    folder = copy(runs, "stopped", tmp_path)
    damage(folder / name, kind)
    with caplog.at_level(logging.WARNING):
        trainer.train(CONFIG, folder, parallel=one_device())
    assert_same_end(runs, folder)
    assert name in caplog.text or name == "init_report.json"


@pytest.mark.parametrize("kind", [*DAMAGES, "missing"])
@pytest.mark.parametrize("name", ["status.json", "config.json", "init_report.json"])
def test_a_finished_run_gets_its_file_back(name, kind, runs, tmp_path, caplog):
    folder = copy(runs, "done", tmp_path)
    if kind == "missing":
        (folder / name).unlink()
    else:
        damage(folder / name, kind)
    if name == "config.json" and kind == "object":
        with pytest.raises(ValueError, match=r"config.json is unknown here|config.json \(seed"):
            trainer.train(CONFIG, folder, parallel=one_device())
        return
    if name == "init_report.json" and kind in ("list", "missing"):
        pytest.skip("a list is what it holds")
    with caplog.at_level(logging.WARNING):
        trainer.train(CONFIG, folder, parallel=one_device())
    assert_same_end(runs, folder)
    assert name in caplog.text or (name, kind) == ("status.json", "missing")


def test_records_that_a_checkpoint_is_old_enough_for_are_taken_again(runs, tmp_path, caplog):
    """The lines of steps 10 and 12 are damaged, and checkpoints 8 and 12 are there."""
    whole = (runs / "done/metrics.jsonl").read_bytes()
    end = whole.index(b'{"step": 10')
    for number, rest in enumerate((b"", bytes(100), b"{\n[]\n", whole[end:][:20], b"null\n")):
        folder = shutil.copytree(runs / "done", tmp_path / str(number))
        (folder / "metrics.jsonl").write_bytes(whole[:end] + rest)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            trainer.train(CONFIG, folder, parallel=one_device())
        assert_same_end(runs, folder)
        assert "metrics.jsonl: damaged or missing" in caplog.text
        assert "the one of step 8" in caplog.text


@pytest.mark.parametrize("kind", ["empty", "NUL", "list", "not UTF-8", "missing"])
@pytest.mark.parametrize("run", ["stopped", "done"])
def test_records_that_no_checkpoint_is_old_enough_for_are_a_loss_that_is_logged(
    run, kind, runs, tmp_path, caplog
):
    folder = copy(runs, run, tmp_path)
    if kind == "missing":
        (folder / "metrics.jsonl").unlink()
    else:
        damage(folder / "metrics.jsonl", kind)
    with caplog.at_level(logging.WARNING):
        status = trainer.train(CONFIG, folder, parallel=one_device())
    assert status == json.loads((runs / "done/status.json").read_text())
    assert "metrics.jsonl lacks records of" in caplog.text
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    expected = (runs / "done/metrics.jsonl").read_bytes().splitlines(keepends=True)
    assert lines == [line for line in expected if line in lines]
    assert lines[-1] == expected[-1]  # with the last test error


@pytest.mark.parametrize("name", ["status.json", "metrics.jsonl", "config.json"])
def test_a_directory_where_a_file_belongs_is_named(name, runs, tmp_path):
    folder = copy(runs, "stopped", tmp_path)
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(ValueError, match=rf"{name} is a directory, expected a file"):
        trainer.train(CONFIG, folder, parallel=one_device())


@pytest.mark.parametrize("fields", [{"learning_rate": 0.5}, {"seed": 3}, {"initializer": "zeros"}])
@pytest.mark.parametrize("run", ["stopped", "done"])
def test_a_run_without_its_configuration_is_no_other_run(run, fields, runs, tmp_path):
    folder = copy(runs, run, tmp_path)
    (folder / "config.json").unlink()
    fields = fields if "initializer" not in fields else {"initializer": "orthogonal"}
    (field,) = fields
    with pytest.raises(ValueError, match=rf"by its checkpoint \({field}: "):
        trainer.train(tiny_config(rectifier="prelu", **fields), folder, parallel=one_device())
    assert not (folder / "config.json").exists()


def test_a_checkpoint_beside_the_configuration_of_another_run_is_refused(runs, tmp_path):
    folder = copy(runs, "stopped", tmp_path)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "seed": 3}))
    with pytest.raises(ValueError, match=r"by its checkpoint \(seed: 0 there, 3 asked"):
        trainer.train(tiny_config(rectifier="prelu", seed=3), folder, parallel=one_device())


def without_notes(folder):
    """Remove the notes that earlier versions did not write."""
    for file in (folder / "checkpoints").glob("*/_CHECKPOINT_METADATA"):
        content = json.loads(file.read_text())
        for name in ("config", "data", "odd_images", "test_error", "interval", "evaluation"):
            content["custom_metadata"].pop(name, None)
        file.write_text(json.dumps(content))


def test_a_run_of_an_earlier_version_continues(runs, tmp_path):
    folder = copy(runs, "stopped", tmp_path)
    step = folder / "checkpoints/11/_CHECKPOINT_METADATA"
    interval = json.loads(step.read_text())["custom_metadata"]["interval"]
    (folder / "intervals.json").write_text(json.dumps({"11": interval}))
    without_notes(folder)
    trainer.train(CONFIG, folder, parallel=one_device())
    assert_same_end(runs, folder)


def test_without_a_configuration_a_run_of_an_earlier_version_is_refused(runs, tmp_path):
    folder = copy(runs, "stopped", tmp_path)
    without_notes(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config.json is missing. Nothing else holds the"):
        trainer.train(CONFIG, folder, parallel=one_device())


def test_a_field_of_a_later_version_is_at_its_default_in_a_checkpoint(runs, tmp_path):
    folder = copy(runs, "stopped", tmp_path)
    for file in (folder / "checkpoints").glob("*/_CHECKPOINT_METADATA"):
        content = json.loads(file.read_text())
        del content["custom_metadata"]["config"]["width"]
        file.write_text(json.dumps(content))
    trainer.train(CONFIG, folder, parallel=one_device())
    assert_same_end(runs, folder)


@pytest.mark.parametrize("kind", DAMAGES)
def test_the_notes_of_a_checkpoint_are_a_small_file_too(kind, runs, tmp_path, caplog):
    folder = copy(runs, "stopped", tmp_path)
    damage(folder / "checkpoints/11/_CHECKPOINT_METADATA", kind)
    with caplog.at_level(logging.WARNING):
        trainer.train(CONFIG, folder, parallel=one_device())
    assert_same_end(runs, folder)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"class_names": ["0", "cat", *"23456789"]}, "class 1 is 'cat' there, '1' now"),
        ({"class_names": list("012345678")}, r"9 classes there, 10 now, with \['9'\]"),
        ({"train_examples": 7}, "train examples: 7 there, 1500 now"),
    ],
)
@pytest.mark.parametrize("run", ["stopped", "done"])
def test_other_data_under_the_same_name_are_refused(run, facts, message, runs, tmp_path):
    folder = copy(runs, run, tmp_path)
    for file in (folder / "checkpoints").glob("*/_CHECKPOINT_METADATA"):
        content = json.loads(file.read_text())
        content["custom_metadata"]["data"].update(facts)
        file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"other data .*{message}"):
        trainer.train(CONFIG, folder, parallel=one_device())


@pytest.mark.parametrize("kind", ["empty", "NUL", "list", "missing"])
def test_a_finished_run_is_read_without_its_configuration(kind, runs, tmp_path):
    folder = copy(runs, "done", tmp_path)
    if kind == "missing":
        (folder / "config.json").unlink()
    else:
        damage(folder / "config.json", kind)
    run = finished_lib.load(folder)
    assert run.config == CONFIG
    assert run.data["train_examples"] == 1500


def test_a_configuration_with_a_value_of_another_type_is_named(runs, tmp_path):
    folder = copy(runs, "done", tmp_path)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "width": "wide"}))
    with pytest.raises(ValueError, match=r"config.json is damaged: width is 'wide'"):
        finished_lib.config(folder)


TUNED = {"reinit": "fc", "classes": "5-9", "num_steps": 4}


@pytest.mark.parametrize("way", ["moved", "relative", "link", "run moved alone", "earlier"])
def test_what_is_pretrained_may_be_reached_by_another_path(way, runs, tmp_path, monkeypatch):
    work = tmp_path / "work"
    shutil.copytree(runs / "done", work / "first")
    config = tiny_config(rectifier="prelu", pretrained=str(work / "first"), **TUNED)
    stop_at(2, config, work / "tuned")
    assert json.loads((work / "tuned/config.json").read_text())["pretrained"] == "../first"
    source, folder = work / "first", work / "tuned"
    if way == "moved":
        work.rename(tmp_path / "elsewhere")
        source, folder = tmp_path / "elsewhere/first", tmp_path / "elsewhere/tuned"
    elif way == "relative":
        monkeypatch.chdir(tmp_path)
        source, folder = (path.relative_to(tmp_path) for path in (source, folder))
    elif way == "link":
        (tmp_path / "link").symlink_to(work)
        source, folder = tmp_path / "link/first", tmp_path / "link/tuned"
    elif way == "run moved alone":
        folder = (work / "tuned").rename(tmp_path / "tuned")
    else:
        monkeypatch.chdir(tmp_path)
        fields = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**fields, "pretrained": "work/first"}))
    again = tiny_config(rectifier="prelu", pretrained=str(source), **TUNED)
    for _ in range(2):  # the second time, it is finished
        assert trainer.train(again, folder, parallel=one_device())["status"] == "done"
    if way != "run moved alone":  # its path from the run no longer leads there
        assert os.path.samefile(finished_lib.config(folder).pretrained, source)
    other = shutil.copytree(source, tmp_path / "other")
    with pytest.raises(ValueError, match="pretrained: "):
        trainer.train(
            tiny_config(rectifier="prelu", pretrained=str(other), **TUNED),
            folder,
            parallel=one_device(),
        )


def test_a_bucket_is_no_folder_of_a_run(tmp_path):
    for folder in ("gs://bucket/run", "s3://bucket"):
        with pytest.raises(ValueError, match=r"expected a folder of an ordinary .*clusters.md"):
            trainer.train(CONFIG, type(tmp_path)(folder), parallel=one_device())
    with pytest.raises(ValueError, match="config.pretrained is gs://x"):
        trainer.train(tiny_config(pretrained="gs://x/run"), tmp_path / "run", parallel=one_device())


def test_a_diverged_run_gets_its_files_back(tmp_path):
    config = tiny_config(learning_rate=1e36, num_steps=1, log_every=1, eval_every=1)
    status = trainer.train(config, tmp_path, parallel=one_device())
    assert status["status"] == "diverged"
    before = (tmp_path / "metrics.jsonl").read_bytes()
    for name in ("status.json", "metrics.jsonl"):
        damage(tmp_path / name, "cut")
        assert trainer.train(config, tmp_path, parallel=one_device()) == status
        assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert Checkpoints(tmp_path / "checkpoints").steps() == []
