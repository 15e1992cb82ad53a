import json
import signal

import jax
import numpy as np
import pytest

from prelu_jax.runs import processes, trainer
from prelu_jax.training.parallel import Parallel
from tests.experiments.conftest import Forked
from tests.runs import worker
from tests.runs.test_trainer import records
from tests.training.conftest import interrupt_at, one_device, tiny_config
from tests.waiting import PATIENCE, free_address

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("tiny_arch")]


def start(count, scenario, devices=1, **arguments):
    address = free_address()
    arguments = json.dumps(arguments, default=str)
    numbers = [(str(count), str(index), str(devices)) for index in range(count)]
    return [
        Forked("tests.runs.worker", address, *of_one, scenario, arguments, NPROC="8")
        for of_one in numbers
    ]


def run(count, scenario, devices=1, **arguments):
    """Return the JSON line that each process prints."""
    started = start(count, scenario, devices, **arguments)
    ended = [process.communicate(timeout=PATIENCE) for process in started]
    assert [process.returncode for process in started] == [0] * count, ended
    return [json.loads(out.splitlines()[-1]) for out, _ in ended]


def assert_same_curve(folder, other):
    for a, b in zip(records(folder), records(other), strict=True):
        for (key, value), (name, expected) in zip(a.items(), b.items(), strict=True):
            assert key == name
            flat = value.values() if isinstance(value, dict) else [value]
            flat_expected = expected.values() if isinstance(expected, dict) else [expected]
            np.testing.assert_allclose(list(flat), list(flat_expected), rtol=1e-4, atol=1e-7)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of an uninterrupted run in one process, on two devices."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(worker.arch.REGISTRY, "tiny", worker.TINY)
        config = tiny_config(rectifier="prelu")
        trainer.train(config, folder, parallel=Parallel(jax.local_devices()[:2]))
    return folder


def test_several_processes_train_what_one_does(alone, tmp_path):
    """Each with two devices; the next test has other numbers of processes with one device."""
    statuses = run(2, "train", devices=2, folder=tmp_path)
    assert [status["status"] for status in statuses] == ["done"] * 2
    assert_same_curve(tmp_path, alone)
    assert len({status["test_error"] for status in statuses}) == 1
    kept = {int(step.name) for step in (tmp_path / "checkpoints").iterdir()}
    assert {8, 12} <= kept <= {4, 8, 12}  # the newest two and the best


def test_the_first_process_alone_gives_records_to_its_loggers(tmp_path):
    first, second = run(2, "logged", folder=tmp_path)
    assert first == {"written": len(records(tmp_path)), "closed": 1}
    assert second == {"written": 0, "closed": 1}


def test_a_run_goes_on_with_other_numbers_of_processes(alone, tmp_path):
    often = {"checkpoint_every": 2}
    config = tiny_config(rectifier="prelu", **often)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(config, tmp_path, interrupt_at(4), one_device())
    assert run(2, "train", folder=tmp_path, stop=6, **often) == [None, None]
    assert run(4, "train", folder=tmp_path, stop=10, **often) == [None] * 4
    rest = []
    assert trainer.train(config, tmp_path, lambda step, error: rest.append(step), one_device())
    assert rest == [12]
    assert_same_curve(tmp_path, alone)


def test_a_signal_to_one_process_stops_all_at_one_step_and_nothing_is_lost(tmp_path):
    often = {"num_steps": 300, "log_every": 20, "eval_every": 100, "checkpoint_every": 100}
    run(2, "train", folder=tmp_path / "whole", rectifier="relu", **often)
    first, second = run(2, "preempted", folder=tmp_path / "stopped", at=40, **often)
    assert first == second
    assert first.startswith("at step ")
    run(2, "preempted", folder=tmp_path / "stopped", **often)
    whole = (tmp_path / "whole/metrics.jsonl").read_bytes()
    assert (tmp_path / "stopped/metrics.jsonl").read_bytes() == whole


def test_replicas_are_the_same_to_the_bit_after_200_steps_unless_the_mean_is_forgotten():
    assert run(2, "replicas", steps=200) == [1, 1]
    assert run(2, "without_mean", steps=2) == [2, 2]


def test_processes_with_other_configurations_are_told_apart_by_name(tmp_path):
    first, second = run(2, "differing", folder=tmp_path / "run")
    assert first == second
    assert "learning_rate is 0.01 in process 0, 1.01 in process 1" in first
    assert "seed is 0 in process 0, 1 in process 1" in first
    assert not (tmp_path / "run").exists()


def test_what_the_first_process_finds_wrong_all_are_told(tmp_path):
    first, second = run(2, "unreadable", folder=tmp_path)
    assert first == second
    assert "None of the checkpoints" in first


def test_the_loss_of_a_process_is_told_from_what_is_refused():
    started = start(2, "losing")
    (out, _), _ = (process.communicate(timeout=PATIENCE) for process in started)
    taken_for_that, error = json.loads(out.splitlines()[-1])
    assert taken_for_that, error
    assert not processes.is_of_lost_process(ValueError("UNKNOWN: but there is one process"))
    assert started[1].returncode == -signal.SIGKILL


def test_a_process_that_fails_takes_the_others_with_it(tmp_path):
    started = start(2, "failing", folder=tmp_path)
    ended = [process.communicate(timeout=PATIENCE) for process in started]
    assert started[1].returncode == 70
    assert started[0].returncode not in (0, 1)  # a launcher starts both again
    assert "as if a disk had failed" in ended[1][1]
