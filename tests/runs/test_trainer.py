import json
import logging
import os
import shutil
import threading

import jax
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from prelu_jax import arch, signal
from prelu_jax.data import augment
from prelu_jax.runs import recorder, trainer
from prelu_jax.runs.checkpoint import Checkpoints
from prelu_jax.runs.folder import RunFolder
from prelu_jax.training.batches import Batches
from prelu_jax.training.config import RENAMED
from prelu_jax.training.parallel import Parallel
from prelu_jax.training.recipe import resolve
from prelu_jax.training.state import stream
from tests.training.conftest import TINY, interrupt_at, make_state, one_device, tiny_config
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("tiny_arch")


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder):
    """Yield the events that TensorBoard reads."""
    for file in folder.glob("events.*"):
        data = file.read_bytes()
        while data:  # a TFRecord: its length in 8 bytes, 4 of a checksum, the event, 4 again
            end = 12 + int.from_bytes(data[:8], "little")
            yield event_pb2.Event.FromString(data[12:end])
            data = data[end + 4 :]


def undisturbed(folder, **fields):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(arch.REGISTRY, "tiny", TINY)  # `tiny_arch` lasts for one test
        trainer.train(tiny_config(rectifier="prelu", **fields), folder, parallel=one_device())
        return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run that nothing disturbed; others are compared with it."""
    return undisturbed(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The folder of the same run with its signal measured in every third step."""
    return undisturbed(tmp_path_factory.mktemp("run"), signal_every=3)


def test_a_run_is_a_folder_that_says_what_it_was_and_what_it_measured(finished):
    assert json.loads((finished / "config.json").read_text())["arch"] == "tiny"
    status = json.loads((finished / "status.json").read_text())
    assert (status["status"], status["step"]) == ("done", 12)
    assert list(finished.glob("events.*"))
    logged = [r for r in records(finished) if "train_loss" in r]
    evaluated = [r for r in records(finished) if "test_error" in r]
    assert [r["step"] for r in logged] == [2, 4, 6, 8, 10, 12]
    assert [r["step"] for r in evaluated] == [0, 4, 8, 12]
    assert {r["test_examples"] for r in evaluated} == {297}
    assert evaluated[1]["epoch"] == pytest.approx(4 * 16 / 1500)
    assert set(logged[0]["slope_mean"]) == {"conv1_prelu", "conv2_prelu", "fc1_prelu"}
    paths = set(logged[0]["grad_rms"])
    assert paths == set(logged[0]["param_rms"])
    report = json.loads((finished / "init_report.json").read_text())
    assert {row["parameter"] for row in report} == paths
    kernel = next(row for row in report if row["parameter"] == "conv2/kernel")
    assert kernel["rule"] == "normal, variance 1.88235 / fan_out"
    assert {row["parameter"] for row in report if row["decays"]} == {
        p for p in paths if p.endswith("kernel")
    }
    assert Checkpoints(finished / "checkpoints").steps() == [8, 12]


def test_tensorboard_gets_the_same(measured):
    scalars = {
        (event.step, value.tag): value.simple_value
        for event in events(measured)
        for value in event.summary.value
    }
    for record in records(measured):
        step = record.pop("step")
        for name, value in record.items():
            for layer, number in (value if isinstance(value, dict) else {"": value}).items():
                tag = f"{name}/{layer}" if layer else name
                assert scalars[step, tag] == np.float32(number), tag
    assert (2, "steps_per_second") in scalars


@pytest.mark.parametrize("stop", [2, 6, 8, 10, 12])
def test_an_interrupted_run_continues_to_the_same_bytes(stop, measured, tmp_path):
    class InterruptionError(Exception):
        pass

    def interrupt(step, error):
        if step == stop:
            raise InterruptionError

    config = tiny_config(rectifier="prelu", signal_every=3)
    with pytest.raises(InterruptionError):
        trainer.train(config, tmp_path, interrupt, one_device())
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "train_lo')  # a line that a crash cut short
    if stop == 12:  # as if stopped between the last checkpoint and its status
        (tmp_path / "status.json").unlink()
    seen = []
    trainer.train(config, tmp_path, lambda step, error: seen.append(step), one_device())
    assert seen == (list(range(stop // 4 * 4 + 2, 13, 2)) or [12])
    for name in ("metrics.jsonl", "status.json", "init_report.json"):
        assert (tmp_path / name).read_text() == (measured / name).read_text(), name


@pytest.mark.parametrize("stop", [3, 4, 7, 11])
def test_a_run_that_is_asked_to_stop_loses_no_step(stop, measured, tmp_path):
    config = tiny_config(rectifier="prelu", signal_every=3)
    answers = iter([False] * (stop - 1) + [True])
    with pytest.raises(recorder.StoppedError, match=f"at step {stop}$"):
        trainer.train(config, tmp_path, parallel=one_device(), stop=lambda: next(answers))
    assert max(map(int, os.listdir(tmp_path / "checkpoints"))) == stop
    asked = []
    trainer.train(config, tmp_path, parallel=one_device(), stop=lambda: bool(asked.append(0)))
    assert len(asked) == 12 - stop - 1  # not after the last, where the run is done anyway
    if stop == 11:  # the last checkpoint is damaged: back to where the run was stopped
        (tmp_path / "status.json").unlink()
        shutil.rmtree(tmp_path / "checkpoints/12")
        (tmp_path / "checkpoints/12").mkdir()
        trainer.train(config, tmp_path, parallel=one_device())
    for name in ("metrics.jsonl", "status.json", "init_report.json"):
        assert (tmp_path / name).read_text() == (measured / name).read_text(), name


def wait_for(path):
    wait_until(path.exists)


@pytest.mark.parametrize("until", [8, 12])
def test_a_disk_that_refuses_for_a_while_costs_nothing(until, measured, tmp_path, monkeypatch):
    """After step 6 nothing can be written, as on a full or read-only disk, and then again."""
    config = tiny_config(rectifier="prelu", signal_every=3)
    blocked, aside = ("metrics.jsonl", "checkpoints"), tmp_path / "aside"
    refused = []

    def heal():
        for name in blocked:
            shutil.rmtree(tmp_path / name, ignore_errors=True)
            (tmp_path / name).unlink(missing_ok=True)
            (aside / name).rename(tmp_path / name)

    def progress(step, error):
        if step == 6:
            wait_for(tmp_path / "checkpoints/4")
            aside.mkdir()
            for name in blocked:
                (tmp_path / name).rename(aside / name)
            (tmp_path / "metrics.jsonl").mkdir()
            (tmp_path / "checkpoints").write_text("no folder")
        if step == until != 12:
            heal()

    monkeypatch.setattr(recorder, "_pause", lambda seconds: heal())
    monkeypatch.setattr(
        recorder.logging, "warning", lambda text, *values: refused.append(text % values)
    )
    trainer.train(config, tmp_path, progress, one_device())
    logged = "\n".join(refused)
    assert "metrics from step 8 on are not yet written" in logged
    assert "Step 8 is not saved" in logged
    assert ("end of the run is saved again" in logged) == (until == 12)
    for name in ("metrics.jsonl", "status.json", "init_report.json"):
        assert (tmp_path / name).read_text() == (measured / name).read_text(), name
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == 12


def test_metrics_that_were_cut_short_or_removed_are_written_again(tmp_path):
    run, file = RunFolder(tmp_path), tmp_path / "metrics.jsonl"
    for step in range(1, 7):
        run.metrics.log({"step": step})
        if step == 2:
            file.write_text(file.read_text()[:-5])  # as a full disk does
        if step == 4:
            file.unlink()
    run.close()
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_run_whose_end_cannot_be_saved_says_so_and_is_not_done(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "_pause", lambda seconds: None)

    def progress(step, error):
        if step == 10:
            wait_for(tmp_path / "checkpoints/8")
            (tmp_path / "checkpoints").rename(tmp_path / "aside")
            (tmp_path / "checkpoints").write_text("no folder")

    with pytest.raises(OSError, match="step, 12, cannot be saved .* Make room there"):
        trainer.train(tiny_config(), tmp_path, progress, one_device())
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "running"


def test_a_run_of_a_newer_version_is_refused_by_name(tmp_path):
    RunFolder(tmp_path).claim(tiny_config())
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rotate": True}))
    with pytest.raises(ValueError, match="newer version of prelu_jax: rotate in its config"):
        trainer.train(tiny_config(), tmp_path, parallel=one_device())


def test_two_processes_cannot_train_one_run(tmp_path):
    config, holder = tiny_config(), RunFolder(tmp_path)
    holder.claim(config)
    with pytest.raises(ValueError, match=rf"is being trained by process {os.getpid()} on "):
        trainer.train(config, tmp_path, parallel=one_device())
    holder.close()
    RunFolder(tmp_path).claim(config)


def test_measuring_the_signal_leaves_the_run_as_it_is(finished, measured):
    lines = (measured / "metrics.jsonl").read_text().splitlines(keepends=True)
    others = [line for line in lines if "signal" not in line]
    assert len(lines) - len(others) == 4
    assert "".join(others) == (finished / "metrics.jsonl").read_text()


def test_the_signal_is_that_of_the_step_taken_and_the_state_before_it(measured, tmp_path):
    logged = {r["step"]: r for r in records(measured) if "signal_cosine" in r}
    assert list(logged) == [3, 6, 9, 12]
    shutil.copytree(measured / "checkpoints" / "8", tmp_path / "8")  # the state before step 9
    state = Checkpoints(tmp_path).restore(make_state("prelu"))
    batch = next(Batches(resolve(tiny_config())).train(8))
    images = augment.normalize(batch["image"], state.pixels)
    expected = signal.measure(
        state.model,
        {"params": state.params},
        augment.random_flip(stream(0, "flip", 8), images, 0),
        loss=lambda scores: -jax.nn.log_softmax(scores)[np.arange(16), batch["label"]].mean(),
        weight_decay=5e-4,
        rngs={"dropout": stream(0, "dropout", 8)},
        call_kwargs={"train": True},
    )
    assert {row.name for row in expected.layers} == {"conv1", "conv2", "fc1", "fc2"}
    for name, by_layer in logged[9].items():
        if name != "step":
            direct = {r.name: getattr(r, name.removeprefix("signal_")) for r in expected.layers}
            assert by_layer == pytest.approx(direct, rel=1e-5), name


def test_the_rate_drops_on_a_plateau_across_an_interruption_too(tmp_path):
    # At such a rate nothing is learned: every evaluation after the first is a plateau of one.
    config = tiny_config(learning_rate=1e-8, min_learning_rate=1e-12, plateau_patience=1)

    with pytest.raises(KeyboardInterrupt):
        trainer.train(config, tmp_path, interrupt_at(6), one_device())
    trainer.train(config, tmp_path, parallel=one_device())
    rates = [r["learning_rate"] for r in records(tmp_path) if "learning_rate" in r]
    assert rates == pytest.approx([1e-8, 1e-9, 1e-10, 1e-11])


def test_the_rate_drops_at_given_epochs(tmp_path):
    config = tiny_config(drop_epochs="0.05,0.1")  # 1,500 images in batches of 16: steps 5 and 9
    trainer.train(config, tmp_path, parallel=one_device())
    rates = [r["learning_rate"] for r in records(tmp_path) if "learning_rate" in r]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-4])


@pytest.mark.parametrize("epochs", ["0.001", "0.05,0.051"])
def test_rates_that_would_drop_at_once_are_refused(epochs, tmp_path):
    with pytest.raises(ValueError, match=rf"drop_epochs is {epochs}, after steps .* 93.75 in an"):
        trainer.train(tiny_config(drop_epochs=epochs), tmp_path, parallel=one_device())
    assert not (tmp_path / "config.json").exists()


def test_a_run_ends_at_the_first_test_error_below_stop_error(tmp_path):
    often = {"num_steps": 60, "learning_rate": 0.01, "log_every": 5, "eval_every": 5}
    config = tiny_config(checkpoint_every=10, stop_error=0.8, **often)
    whole = trainer.train(config, tmp_path / "whole", parallel=one_device())
    errors = {r["step"]: r["test_error"] for r in records(tmp_path / "whole") if "test_error" in r}
    *before, last = errors
    assert 0 < last < 60
    assert errors[last] < 0.8 <= min(errors[step] for step in before)
    assert (whole["status"], whole["step"], whole["test_error"]) == ("done", last, errors[last])
    assert trainer.train(config, tmp_path / "whole", parallel=one_device()) == whole
    # Killed after its last checkpoint, before its status: no further step is taken.
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    RunFolder(tmp_path / "killed").write_status("running", last - 5)
    assert trainer.train(config, tmp_path / "killed", parallel=one_device()) == whole
    assert records(tmp_path / "killed") == records(tmp_path / "whole")


def test_a_finished_run_is_not_trained_again(finished):
    def fail(step, error):
        raise AssertionError(step)

    status = trainer.train(tiny_config(rectifier="prelu"), finished, fail, one_device())
    assert status == json.loads((finished / "status.json").read_text())


def test_a_folder_of_another_configuration_is_refused_with_the_fields_that_differ(finished):
    before = (finished / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"learning_rate: 0.01 there, 0.5 asked; seed: 0.*3 asked"):
        trainer.train(tiny_config(rectifier="prelu", learning_rate=0.5, seed=3), finished)
    assert (finished / "config.json").read_bytes() == before


def test_a_folder_of_before_a_field_was_added_is_taken_as_having_its_default(tmp_path):
    run = RunFolder(tmp_path)
    run.claim(tiny_config())
    file = tmp_path / "config.json"
    older = json.loads(file.read_text())
    del older["width"]
    file.write_text(json.dumps(older))
    run.claim(tiny_config())
    with pytest.raises(ValueError, match="width: 1.0 there, 0.5 asked"):
        run.claim(tiny_config(width=0.5))


def test_a_folder_with_former_names_of_fields_is_the_same_run(tmp_path):
    run = RunFolder(tmp_path)
    run.claim(tiny_config(pca_color_std=0.1))
    file = tmp_path / "config.json"
    fields = json.loads(file.read_text())
    for old, new in RENAMED.items():
        fields[old] = fields.pop(new)
    file.write_text(json.dumps(fields))
    run.claim(tiny_config(pca_color_std=0.1))
    assert run.config() == tiny_config(pca_color_std=0.1)
    with pytest.raises(ValueError, match=r"pca_color_std: 0.1 there, 0.2 asked"):
        run.claim(tiny_config(pca_color_std=0.2))


def test_a_run_that_diverges_says_where_and_keeps_the_last_good_checkpoint(tmp_path, caplog):
    # Six steps in, the rate is multiplied with a factor that no network survives.
    config = tiny_config(checkpoint_every=2, eval_every=6, learning_rate=0.01)
    parallel = Bomb(jax.local_devices()[:1], at=6)
    with caplog.at_level(logging.WARNING):
        status = trainer.train(config, tmp_path, parallel=parallel)
    assert (
        "step 7 is not finite: the run has diverged. Try a lower config.learning_rate (now 0.01)"
        in " ".join(caplog.text.split())
    )
    assert status == {"status": "diverged", "step": 7, "last_good_checkpoint": 6}
    assert (
        trainer.train(config, tmp_path, parallel=one_device()) == status
    )  # a result, not to be repeated
    kept = Checkpoints(tmp_path / "checkpoints").restore(make_state("relu"))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept.params))
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text


class Bomb(Parallel):
    """Images that are not a number from a step on."""

    def __init__(self, devices, at):
        super().__init__(devices)
        step = self.train_step

        def train_step(state, batch):
            if int(state.step) >= at:
                broken = state.pixels._replace(scale=state.pixels.scale * np.float32(np.nan))
                state = self.replicate(state.replace(pixels=broken))
            return step(state, batch)

        self.train_step = train_step


def test_a_state_whose_test_loss_is_not_finite_is_not_saved(tmp_path):
    # One step at this rate leaves finite parameters with which nothing finite can be computed.
    config = tiny_config(learning_rate=1e36, num_steps=1, log_every=1, eval_every=1)
    status = trainer.train(config, tmp_path, parallel=one_device())
    assert status == {"status": "diverged", "step": 1, "last_good_checkpoint": None}


def test_what_cannot_be_is_refused_before_the_folder_is_made(tmp_path):
    four = Parallel(jax.local_devices()[:4])
    for fields, message in (
        ({"batch_size": 18}, "multiple of the 4 devices"),
        ({"dataset": "digit"}, "Did you mean 'digits'"),
        ({"initializer": "he_norm"}, "Did you mean 'he_normal'"),
        ({"arch": "tinny"}, "Did you mean 'tiny'"),
        ({"test_split": "tets"}, "Did you mean 'test'"),
        ({"eval_every": 3}, "config.eval_every is 3, expected a multiple of config.log_every, 2"),
        ({"learning_rate": 0.0}, "config.learning_rate is 0.0, expected above 0"),
        ({"min_side": 16}, "config.min_side is 16, expected at least the 32 pixels"),
        ({"accumulate": 0}, "config.accumulate is 0, expected at least 1"),
        ({"accumulate": 3}, r"multiple of the \d devices that share it, in 3 parts each"),
        ({"classes": "3"}, "digits with config.classes 3 has one class, 3: expected two or more"),
        ({"drop_epochs": "30,20"}, "config.drop_epochs is 30,20, expected rising numbers"),
        ({"drop_epochs": "30;60"}, "config.drop_epochs is 30;60, expected rising numbers"),
        ({"drop_epochs": "0,inf"}, "config.drop_epochs is 0,inf, expected rising numbers"),
        ({"on_bad_image": "skp"}, "Unknown on_bad_image 'skp'. Did you mean 'skip'"),
        ({"width": 0.0}, "config.width is 0.0, expected above 0"),
        ({"pca_color_std": -0.1}, "config.pca_color_std is -0.1, expected at least 0"),
        ({"signal_every": -1}, "config.signal_every is -1, expected at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer.train(tiny_config(**fields), tmp_path / "run", parallel=four)
    assert not (tmp_path / "run").exists()


def test_four_devices_log_what_one_does(measured, tmp_path):
    four = Parallel(jax.local_devices()[:4])
    trainer.train(tiny_config(rectifier="prelu", signal_every=3), tmp_path, parallel=four)
    for a, b in zip(records(measured), records(tmp_path), strict=True):
        for name in a:
            if name in ("train_loss", "test_loss"):
                np.testing.assert_allclose(a[name], b[name], rtol=1e-5)
            elif name.startswith("signal_"):
                assert b[name] == pytest.approx(a[name], rel=1e-3), name


def test_what_is_logged_waits_for_no_thread_that_an_interrupt_could_stop(tmp_path):
    run, before = RunFolder(tmp_path), {*threading.enumerate()}
    run.metrics.log({"step": 3, "train_loss": 2.0})
    assert {*threading.enumerate()} <= before
    version, begun, logged = events(tmp_path)  # though the run is not closed
    assert version.file_version == "brain.Event:2"
    assert (begun.step, begun.session_log.status) == (3, event_pb2.SessionLog.START)
    assert logged.step == 3
