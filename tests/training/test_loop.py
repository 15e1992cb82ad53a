import json

import jax
import numpy as np
import pytest

from prelu_jax import arch
from prelu_jax.training import loop
from prelu_jax.training.checkpoint import Checkpoints
from prelu_jax.training.parallel import Parallel
from tests.training.conftest import TINY, make_state, tiny_config

pytestmark = pytest.mark.usefixtures("tiny_arch")

one = Parallel(jax.local_devices()[:1])


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run that nothing disturbed; others are compared with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(arch.REGISTRY, "tiny", TINY)  # `tiny_arch` lasts for one test
        folder = tmp_path_factory.mktemp("run")
        loop.train(tiny_config(rectifier="prelu"), folder, parallel=one)
        return folder


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


@pytest.mark.parametrize("stop", [2, 6, 8, 10, 12])
def test_an_interrupted_run_continues_to_the_same_bytes(stop, finished, tmp_path):
    class InterruptionError(Exception):
        pass

    def interrupt(step, error):
        if step == stop:
            raise InterruptionError

    config = tiny_config(rectifier="prelu")
    with pytest.raises(InterruptionError):
        loop.train(config, tmp_path, interrupt, one)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "train_lo')  # a line that a crash cut short
    seen = []
    loop.train(config, tmp_path, lambda step, error: seen.append(step), one)
    assert seen == list(range(stop // 4 * 4 + 2, 13, 2))
    for name in ("metrics.jsonl", "status.json", "init_report.json"):
        assert (tmp_path / name).read_text() == (finished / name).read_text(), name


def test_the_rate_drops_on_a_plateau_across_an_interruption_too(tmp_path):
    # At such a rate nothing is learned: every evaluation after the first is a plateau of one.
    config = tiny_config(learning_rate=1e-8, min_learning_rate=1e-12, plateau_patience=1)

    def interrupt(step, error):
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train(config, tmp_path, interrupt, one)
    loop.train(config, tmp_path, parallel=one)
    rates = [r["learning_rate"] for r in records(tmp_path) if "learning_rate" in r]
    assert rates == pytest.approx([1e-8, 1e-9, 1e-10, 1e-11])


def test_a_finished_run_is_not_trained_again(finished):
    def fail(step, error):
        raise AssertionError(step)

    status = loop.train(tiny_config(rectifier="prelu"), finished, fail, one)
    assert status == json.loads((finished / "status.json").read_text())


def test_a_folder_of_another_configuration_is_refused_with_the_fields_that_differ(finished):
    before = (finished / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"learning_rate: 0.01 there, 0.5 asked; seed: 0.*3 asked"):
        loop.train(tiny_config(rectifier="prelu", learning_rate=0.5, seed=3), finished)
    assert (finished / "config.json").read_bytes() == before


def test_a_run_that_diverges_says_where_and_keeps_the_last_good_checkpoint(tmp_path):
    # Six steps in, the rate is multiplied with a factor that no network survives.
    config = tiny_config(checkpoint_every=2, eval_every=6, learning_rate=0.01)
    parallel = Bomb(jax.local_devices()[:1], at=6)
    status = loop.train(config, tmp_path, parallel=parallel)
    assert status == {"status": "diverged", "step": 7, "last_good_checkpoint": 6}
    assert loop.train(config, tmp_path, parallel=one) == status  # a result, not to be repeated
    kept = Checkpoints(tmp_path / "checkpoints").restore(make_state("relu"))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept.params))
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text


class Bomb(Parallel):
    """Images that are not a number from a step on."""

    def __init__(self, devices, at):
        super().__init__(devices)
        self.at = at

    def train_step(self, state, batch):
        if int(state.step) >= self.at:
            broken = state.pixels._replace(scale=state.pixels.scale * np.float32(np.nan))
            state = self.replicate(state.replace(pixels=broken))
        return super().train_step(state, batch)


def test_a_state_whose_test_loss_is_not_finite_is_not_saved(tmp_path):
    # One step at this rate leaves finite parameters with which nothing finite can be computed.
    config = tiny_config(learning_rate=1e36, num_steps=1, log_every=1, eval_every=1)
    status = loop.train(config, tmp_path, parallel=one)
    assert status == {"status": "diverged", "step": 1, "last_good_checkpoint": None}


def test_what_cannot_be_is_refused_before_the_folder_is_made(tmp_path):
    four = Parallel(jax.local_devices()[:4])
    for fields, message in (
        ({"batch_size": 18}, "multiple of the 4 devices"),
        ({"dataset": "digit"}, "Did you mean 'digits'"),
        ({"initializer": "he_norm"}, "Did you mean 'he_normal'"),
        ({"arch": "tinny"}, "Did you mean 'tiny'"),
        ({"test_split": "tets"}, "Did you mean 'test'"),
        ({"eval_every": 3}, "config.eval_every is 3, expected a multiple of 2"),
        ({"learning_rate": 0.0}, "config.learning_rate is 0.0, expected above 0"),
        ({"min_side": 16}, "config.min_side is 16, expected at least the 32 pixels"),
    ):
        with pytest.raises(ValueError, match=message):
            loop.train(tiny_config(**fields), tmp_path / "run", parallel=four)
    assert not (tmp_path / "run").exists()


def test_four_devices_log_the_curve_of_one(finished, tmp_path):
    four = Parallel(jax.local_devices()[:4])
    loop.train(tiny_config(rectifier="prelu"), tmp_path, parallel=four)
    for a, b in zip(records(finished), records(tmp_path), strict=True):
        for name in ("train_loss", "test_loss"):
            if name in a:
                np.testing.assert_allclose(a[name], b[name], rtol=1e-5)
