import functools
import inspect
import io
import json
import sys
import textwrap
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from prelu_jax.runs import loggers, trainer
from prelu_jax.runs.folder import RunFolder
from tests.runs.test_trainer import events, records
from tests.training.conftest import one_device, tiny_config

pytestmark = pytest.mark.usefixtures("tiny_arch")

CONFIG = tiny_config(signal_every=3)


class Memory:
    """A logger that keeps what it is given; ``at`` maps (step, metric) to an error to raise."""

    def __init__(self, at=()):
        self.written, self.closed, self.at = [], 0, dict(at)

    def write(self, step, metrics):
        for name in metrics:
            if error := self.at.get((step, name)):
                raise error
        self.written.append((step, dict(metrics)))

    def close(self):
        self.closed += 1

    def without_clock(self):
        """Everything but the speed of the machine."""
        return [
            (step, {name: value for name, value in metrics.items() if name != "steps_per_second"})
            for step, metrics in self.written
        ]


def flat(record):
    """A step and its metrics from a line of metrics.jsonl."""
    metrics = {}
    for name, value in record.items():
        values = value.items() if isinstance(value, dict) else [("", value)]
        metrics |= {f"{name}/{layer}".rstrip("/"): number for layer, number in values}
    return metrics.pop("step"), metrics


@pytest.fixture
def warnings(monkeypatch):
    """The warnings about loggers."""
    texts = []
    monkeypatch.setattr(
        loggers.logging, "warning", lambda text, *values: texts.append(text % values)
    )
    return texts


def test_a_logger_gets_every_record_with_its_step_and_is_closed(tmp_path):
    memory = Memory()
    trainer.train(CONFIG, tmp_path, parallel=one_device(), loggers=[memory])
    assert memory.without_clock() == [flat(record) for record in records(tmp_path)]
    assert {type(value) for _, metrics in memory.written for value in metrics.values()} <= {
        *(float, int)
    }
    assert sum("steps_per_second" in metrics for _, metrics in memory.written) == 6
    assert sum("signal_cosine/conv2" in metrics for _, metrics in memory.written) == 4
    assert memory.closed == 1
    again = Memory()  # the run is done
    trainer.train(CONFIG, tmp_path, parallel=one_device(), loggers=[again])
    assert (again.written, again.closed) == ([], 1)


@pytest.mark.parametrize(
    ("step", "metric"),
    [
        (2, "train_loss"),  # before the first checkpoint
        (6, "signal_cosine/conv1"),
        (8, "test_error"),  # after other records of its step
        (12, "train_loss"),
    ],
)
def test_a_resumed_run_repeats_no_record(step, metric, tmp_path):
    """The first process dies while it logs, after its last checkpoint."""
    memory = Memory()
    dying = Memory({(step, metric): KeyboardInterrupt})
    with pytest.raises(KeyboardInterrupt):
        trainer.train(CONFIG, tmp_path, parallel=one_device(), loggers=[memory, dying])
    assert (memory.closed, dying.closed) == (1, 1)
    trainer.train(CONFIG, tmp_path, parallel=one_device(), loggers=[memory])
    assert memory.without_clock() == [flat(record) for record in records(tmp_path)]


def test_a_logger_that_raises_is_a_warning_and_the_others_get_all(tmp_path, warnings):
    class Broken:
        def write(self, step, metrics):
            raise RuntimeError("no network")

        def close(self):
            raise ValueError("already closed")

    memory = Memory()
    status = trainer.train(CONFIG, tmp_path, parallel=one_device(), loggers=[Broken(), memory])
    assert status["status"] == "done"
    assert len(memory.written) == len(records(tmp_path)) == 14
    assert warnings == [
        "Broken has not taken the metrics of step 0 (RuntimeError: no network); training "
        "continues.",
        "Broken is not closed (ValueError: already closed).",
    ]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (None, "loggers is None"),
        (Memory(), "loggers is <.*Memory object"),
        ([None], r"loggers\[0\] is None"),
        ([Memory(), Memory], r"loggers\[1\] is <class '.*Memory'>"),
        ([SimpleNamespace(write=print)], r"loggers\[0\] is namespace\(write="),
        ([SimpleNamespace(write=None, close=print)], "is namespace"),
        ("wandb", r"loggers\[0\] is 'w'"),
        ([io.StringIO()], "StringIO"),  # its write takes one argument
    ],
)
def test_what_is_no_logger_is_refused_before_the_run(given, named, tmp_path):
    expected = rf"{named}.*expected .*objects? with write\(step, metrics\) and close\(\)\."
    with pytest.raises(TypeError, match=expected):
        trainer.train(CONFIG, tmp_path / "run", loggers=given)
    assert not (tmp_path / "run").exists()


def test_loggers_with_other_signatures_are_taken():
    class Static:
        write = staticmethod(lambda step, metrics, commit=True: None)
        close = staticmethod(lambda: None)

    given = [Memory(), Static, Static(), Mock(), SimpleNamespace(write=max, close=list)]
    assert loggers.check_loggers(iter(given)) == tuple(given)


def test_a_logger_that_changes_its_metrics_changes_no_others(tmp_path):
    class Consuming(Memory):
        def write(self, step, metrics):
            metrics.clear()

    memory = Memory()
    folder = RunFolder(tmp_path, loggers=[Consuming(), memory])
    folder.metrics.log({"step": 1, "train_loss": 2.0})
    assert memory.written == [(1, {"train_loss": 2.0})]


def test_ctrl_c_while_a_logger_is_closed_closes_the_others_and_releases_the_folder(tmp_path):
    class Slow(Memory):
        def close(self):
            raise KeyboardInterrupt

    memory = Memory()
    folder = RunFolder(tmp_path, loggers=[Slow(), memory])
    folder.claim(CONFIG)
    with pytest.raises(KeyboardInterrupt):
        folder.close()
    assert memory.closed == 1
    RunFolder(tmp_path).claim(CONFIG)


def test_an_error_without_a_text_is_a_warning(warnings):
    class MuteError(Exception):
        def __str__(self):
            raise RuntimeError

    loggers.Guarded(Memory({(1, "x"): MuteError()})).write(1, {"x": 1.0})
    assert "MuteError: <exception str() failed>" in warnings[0]


def test_the_first_of_several_errors_in_a_row_is_a_warning(warnings):
    failing = Memory({(step, "x"): OSError(f"error {step}") for step in (1, 2, 4)})
    guarded = loggers.Guarded(failing)
    for step in range(6):
        guarded.write(step, {"x": 1.0})
    assert [step for step, _ in failing.written] == [0, 3, 5]
    assert [text.partition("(")[2] for text in warnings] == [
        f"OSError: error {step}); training continues." for step in (1, 4)
    ]


def test_a_process_that_does_not_write_gives_nothing_to_its_loggers_and_closes_them(tmp_path):
    memory = Memory()
    folder = RunFolder(tmp_path, writes=False, loggers=[memory])
    folder.metrics.log({"step": 1, "train_loss": 2.0})
    folder.close()
    assert (memory.written, memory.closed) == ([], 1)


def test_a_run_that_is_refused_closes_nothing_and_one_that_fails_closes_its_loggers(tmp_path):
    memory = Memory()
    with pytest.raises(ValueError, match="config.learning_rate is 0.0"):
        trainer.train(
            tiny_config(learning_rate=0.0), tmp_path, parallel=one_device(), loggers=[memory]
        )
    assert memory.closed == 0
    RunFolder(tmp_path).claim(tiny_config(seed=1))
    with pytest.raises(ValueError, match="seed: 1 there, 0 asked"):
        trainer.train(CONFIG, tmp_path, parallel=one_device(), loggers=[memory])
    assert memory.closed == 1


def test_loggers_get_what_the_disk_refuses(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    memory = Memory()
    folder = RunFolder(tmp_path, loggers=[memory])
    folder.metrics.log({"step": 1, "train_loss": 2.0}, steps_per_second=3.0)
    assert memory.written == [(1, {"train_loss": 2.0, "steps_per_second": 3.0})]
    assert not list(events(tmp_path))  # each attempt would begin a file on the full disk


def test_tensorboard_begins_another_file_after_an_error(tmp_path, monkeypatch):
    """A line that is cut short ends a file for its readers."""
    files = []

    class Writer:
        def __init__(self, prefix):
            files.append([])

        def write_event(self, event):
            files[-1].append(event.step)

        def flush(self):
            if files[-1][-1] == 2:
                raise OSError("No space left on device")

    monkeypatch.setattr(loggers, "EventsWriter", Writer)
    guarded = loggers.Guarded(loggers.TensorBoard(tmp_path))
    for step in (1, 2, 3, 4):
        guarded.write(step, {"loss": 2.0})
    assert files == [[1, 1, 2], [3, 3, 4]]  # the first event of each is its begin


def test_the_example_for_weights_and_biases(tmp_path, monkeypatch):
    """It is executed from the docstring, with a module in place of wandb."""
    began, logged, finished = [], [], []

    def init(**options):
        began.append(options)
        return SimpleNamespace(
            log=lambda metrics, step: logged.append((step, metrics)),
            finish=lambda: finished.append(True),
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    _, *blocks = inspect.getdoc(loggers.Logger).split("::\n\n")
    code = [block.partition("\n\n")[0] for block in blocks]
    assert len(code[0].splitlines()) == 8
    train = functools.partial(trainer.train, parallel=one_device())
    names = {"trainer": SimpleNamespace(train=train), "config": CONFIG, "folder": tmp_path}
    for block in code:
        exec(textwrap.dedent(block), names)
    assert began == [{"project": "prelu", "id": "he_seed_0", "resume": "allow"}]
    assert [step for step, _ in logged] == [record["step"] for record in records(tmp_path)]
    assert logged[0][1].keys() >= {"test_error", "learning_rate"}
    assert finished == [True]
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "done"
