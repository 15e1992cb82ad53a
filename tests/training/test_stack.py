"""Runs in a stack are what they are alone, to the rounding of float32."""

import dataclasses
import json
import shutil
from collections import Counter

import jax
import numpy as np
import pytest

from prelu_jax import arch
from prelu_jax.data import pipeline
from prelu_jax.training import loop, stack, step, steps
from prelu_jax.training.checkpoint import Checkpoints
from prelu_jax.training.parallel import Parallel
from prelu_jax.training.run_data import Reading, RunData
from tests.training.conftest import TINY, make_batch, make_state, tiny_config
from tests.training.test_loop import records

pytestmark = pytest.mark.usefixtures("tiny_arch")

one = Parallel(jax.local_devices()[:1])


def configs(folder, **fields):
    """Two seeds of two starts, one of them calibrated; flips, dropout, plateaus."""
    starts = {
        "he": {"initializer": "he_normal"},
        "other": {"initializer": "orthogonal", "datadep": "within_layer"},
    }
    of_all = {"rectifier": "prelu", "plateau_patience": 1, **fields}
    return {
        folder / name / f"seed_{seed}": tiny_config(seed=seed, **start, **of_all)
        for seed in (0, 7)
        for name, start in starts.items()
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of runs that were trained one after another."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(arch.REGISTRY, "tiny", TINY)  # `tiny_arch` lasts for one test
        for path, config in configs(folder).items():
            loop.train(config, path, parallel=one)
    return folder


def assert_same_runs(folder, alone, rtol=1e-4):
    """The same files and lines; of metrics, the same numbers to the tolerance."""
    paths = [path.relative_to(folder) for path in configs(folder)]
    for path in paths:
        ours, theirs = folder / path, alone / path
        names = {file.name for file in theirs.iterdir() if "events" not in file.name}
        assert {file.name for file in ours.iterdir() if "events" not in file.name} >= names
        for name in ("config.json", "init_report.json", "status.json"):
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), (path, name)
        for a, b in zip(records(ours), records(theirs), strict=True):
            assert list(a) == list(b)
            for name, value in a.items():
                expected = b[name]
                if isinstance(value, dict):
                    assert list(value) == list(expected)
                    value, expected = [*value.values()], [*expected.values()]
                np.testing.assert_allclose(value, expected, rtol=rtol, atol=1e-7, err_msg=name)
        states = [Checkpoints(of / "checkpoints").arrays() for of in (ours, theirs)]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *states)


def checkpoints(folder):
    return [path.name for path in (folder / "checkpoints").iterdir()]


@pytest.mark.parametrize("sums_runs", [False, True], ids=["as on a CPU", "as on a GPU"])
def test_a_step_of_a_stack_is_that_of_every_run(sums_runs, monkeypatch):
    """Each of its own seed, rate and batch; flips and dropout are those of it alone."""
    monkeypatch.setattr(step, "_sums_runs", lambda: sums_runs)
    seeds, reads = (0, 5, 9), (0, 1, 0)
    states = [make_state(seed=seed).replace(accumulate=2) for seed in seeds]
    for i, state in enumerate(states):
        plateau = state.plateau._replace(scale=state.plateau.scale / (i + 1))
        states[i] = state.replace(plateau=plateau)
    batches = [make_batch(seed=seed) for seed in (3, 4)]
    together = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
    two = Parallel(jax.local_devices()[:2])
    stacked, metrics = two.train_step(two.replicate(stack.together(states, reads)), together)
    alone = jax.jit(step.train_step)
    losses = set()
    for state, read, *ours in zip(
        states, reads, stack.apart(stacked), stack.split(metrics, 3), strict=True
    ):
        expected, losses = alone(state, batches[read]), {*losses, float(ours[1]["loss"])}
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            tuple(ours),
            jax.device_get(expected),
        )
    assert len(losses) == 3


def test_folders_of_a_stack_are_those_of_runs_alone(alone, tmp_path):
    told = []
    statuses = loop.train_together(
        configs(tmp_path), lambda step, error: told.append((step, error)), one
    )
    assert_same_runs(tmp_path, alone)
    assert list(statuses) == list(configs(tmp_path))
    assert {status["status"] for status in statuses.values()} == {"done"}
    assert [step for step, _ in told] == [2, 4, 6, 8, 10, 12]
    last = [status["test_error"] for status in statuses.values()]
    assert told[-1][1] == pytest.approx(np.mean(last))


def test_a_batch_is_read_once_for_runs_of_one_seed(tmp_path, monkeypatch):
    asked = Counter()

    def spied(name, function):
        def spy(self, *arguments):
            asked[name] += 1
            return function(self, *arguments)

        monkeypatch.setattr(RunData, name, spy)

    for name in ("train_batches", "eval_batches", "_measure"):
        spied(name, getattr(RunData, name))
    of_all = configs(tmp_path, num_steps=4)
    drawn = {path: config for path, config in of_all.items() if config.datadep == "none"}
    loop.train_together(drawn, parallel=one)
    assert asked == {"train_batches": 2, "eval_batches": 2, "_measure": 1}  # before and after


def test_runs_on_other_examples_measure_their_own(tmp_path):
    few = {"examples_per_class": 3, "batch_size": 4, "num_steps": 2}
    of_all = [tiny_config(seed=seed, **few) for seed in (0, 1)]
    first = RunData(of_all[0])
    other = first.with_seed(of_all[1])
    means = [np.asarray(data.pixel_statistics().mean) for data in (first, other)]
    assert abs(means[0] - means[1]).max() > 1
    np.testing.assert_array_equal(means[1], RunData(of_all[1]).pixel_statistics().mean)


def test_what_is_odd_is_told_to_the_runs_that_read_it(monkeypatch):
    """Test images to all, and those of a seed's batches to the runs of that seed."""
    data = RunData(tiny_config())
    other = data.with_seed(tiny_config(seed=1))
    monkeypatch.setattr(
        pipeline, "train_batches", lambda *arguments, **_: odd(arguments[6], str(arguments[3]))
    )
    monkeypatch.setattr(pipeline, "eval_batches", lambda *_, tally, **__: odd(tally, "test"))

    def odd(tally, key):
        tally.add({"left_out": [key]})
        yield {"image": np.zeros(1), "label": np.zeros(1)}

    reading = Reading([data, other, data])
    assert reading.reads == [0, 1, 0]
    assert next(reading.train_batches(0))["image"].shape == (2, 1)
    assert [of.tally.left_out for of in (data, other)] == [{"0"}, {"1"}]
    list(reading.eval_batches())
    assert [of.tally.left_out for of in (data, other)] == [{"0", "test"}, {"1", "test"}]


@pytest.mark.parametrize("stop", [3, 4, 11])
def test_a_stack_that_is_asked_to_stop_loses_no_step(stop, alone, tmp_path):
    answers = iter([False] * (stop - 1) + [True])
    with pytest.raises(steps.StoppedError, match=f"at step {stop}$"):
        loop.train_together(configs(tmp_path), parallel=one, stop=lambda: next(answers))
    for path in configs(tmp_path):
        assert max(map(int, checkpoints(path))) == stop
    asked = []
    loop.train_together(configs(tmp_path), parallel=one, stop=lambda: bool(asked.append(0)))
    assert len(asked) == 12 - stop - 1
    assert_same_runs(tmp_path, alone)


def test_a_stack_goes_on_from_wherever_its_runs_stand(alone, tmp_path, monkeypatch):
    """One is finished, one stands behind the others, which stay a stack."""

    def interrupt(step, error):
        if step == 10:
            raise KeyboardInterrupt

    paths = list(configs(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        loop.train_together(configs(tmp_path), interrupt, one)
    shutil.rmtree(paths[0])
    shutil.copytree(alone / paths[0].relative_to(tmp_path), paths[0])
    before = (paths[0] / "metrics.jsonl").read_bytes()
    shutil.rmtree(paths[1] / "checkpoints/8")
    stacked = []
    finish = steps.Steps.finish
    monkeypatch.setattr(
        steps.Steps,
        "finish",
        lambda self: (stacked.append((self.first, len(self.runs))), finish(self)),
    )
    loop.train_together(configs(tmp_path), parallel=one)
    assert stacked == [(4, 1), (8, 2)]
    assert_same_runs(tmp_path, alone)
    assert (paths[0] / "metrics.jsonl").read_bytes() == before


class Bomb(Parallel):
    """Images of one run of the stack are not a number in a step and from then on."""

    def __init__(self, devices, run, at):
        super().__init__(devices)
        self.run, self.at = run, at

    def train_step(self, state, batch):
        states = state.states
        if int(states.step[0]) >= self.at:
            scale = states.pixels.scale.at[self.run].set(np.nan)
            state = state.replace(states=states.replace(pixels=states.pixels._replace(scale=scale)))
        return super().train_step(self.replicate(state), batch)


@pytest.mark.parametrize(("at", "step"), [(6, 7), (11, 12)])
def test_a_run_that_diverges_ends_and_the_others_go_on(at, step, alone, tmp_path):
    lost = list(configs(tmp_path))[1]
    bomb = Bomb(jax.local_devices()[:1], 1, at)
    statuses = loop.train_together(configs(tmp_path), parallel=bomb)
    assert statuses[lost] == {
        "status": "diverged",
        "step": step,
        "last_good_checkpoint": (step - 1) // 4 * 4,
    }
    assert json.loads((lost / "status.json").read_text()) == statuses[lost]
    text = (lost / "metrics.jsonl").read_text()
    assert "NaN" not in text
    until = (step - 1) // 2 * 2
    whole = (alone / lost.relative_to(tmp_path) / "metrics.jsonl").read_text().splitlines()
    expected = [line for line in map(json.loads, whole) if line["step"] <= until]
    assert [line["step"] for line in records(lost)] == [line["step"] for line in expected]
    shutil.rmtree(lost)  # the others are as if it had not been there
    shutil.copytree(alone / lost.relative_to(tmp_path), lost)
    assert_same_runs(tmp_path, alone)


def test_a_stack_ends_with_its_last_run(tmp_path):
    """One step at this rate leaves finite parameters with which nothing finite can be computed."""
    of_all = configs(tmp_path, learning_rate=1e36, log_every=1, eval_every=1)
    statuses = loop.train_together(of_all, parallel=one)
    assert [(of["status"], of["step"]) for of in statuses.values()] == [("diverged", 1)] * 4
    assert loop.train_together(of_all, parallel=one) == statuses


def test_runs_of_a_stack_end_each_at_its_own_error(tmp_path):
    often = {"num_steps": 60, "learning_rate": 0.01, "log_every": 5, "eval_every": 5}
    of_all = configs(tmp_path, plateau_patience=99, checkpoint_every=10, stop_error=0.8, **often)
    statuses = loop.train_together(of_all, parallel=one)
    for path, status in statuses.items():
        *before, last = [record for record in records(path) if "test_error" in record]
        assert (last["step"], last["test_error"]) == (status["step"], status["test_error"])
        assert min(record["test_error"] for record in before) >= 0.8
        assert last["test_error"] < 0.8 or last["step"] == 60
    assert len({status["step"] for status in statuses.values()}) > 1


def test_only_runs_of_one_program_are_stacked(tmp_path):
    plain = tiny_config()
    for fields in ({"rectifier": "prelu"}, {"learning_rate": 0.5}, {"num_steps": 8}):
        with pytest.raises(ValueError, match="expected one configuration but for seed, init"):
            loop.train_together({tmp_path / "a": plain, tmp_path / "b": tiny_config(**fields)})
        assert not list(tmp_path.iterdir())
    for config in (tiny_config(signal_every=2), tiny_config(pretrained="a")):
        assert loop.program(config) is None
    other = dataclasses.replace(plain, seed=3, initializer="xavier_normal", mode="fan_in")
    assert loop.program(other) == loop.program(plain)
