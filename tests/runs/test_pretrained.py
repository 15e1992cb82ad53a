import functools
import json
import re

import jax
import numpy as np
import pytest

from prelu_jax import arch
from prelu_jax.data import sources
from prelu_jax.runs import trainer
from prelu_jax.runs.checkpoint import Checkpoints
from prelu_jax.training import optimizer
from tests.training.conftest import TINY, assert_trees_equal, interrupt_at, one_device, tiny_config

pytestmark = pytest.mark.usefixtures("tiny_arch")

SHORT = {"num_steps": 4, "log_every": 2, "eval_every": 4, "checkpoint_every": 2}


def end(folder):
    """Return the arrays of the last checkpoint."""
    checkpoints = Checkpoints(folder / "checkpoints")
    arrays = checkpoints.arrays()
    checkpoints.close()
    return arrays


def report(folder):
    rows = json.loads((folder / "init_report.json").read_text())
    return {row["parameter"]: row for row in rows}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The folder of a finished run on classes 0 to 4."""
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(arch.REGISTRY, "tiny", TINY)
        trainer.train(tiny_config(classes="0-4", **SHORT), folder, parallel=one_device())
    return folder


def tuned(first, **fields):
    few = {"classes": "5-7", "examples_per_class": 10}
    source = {"pretrained": str(first), "reinit": "fc"}
    return tiny_config(**{**SHORT, **few, **source, **fields})


PARTLY_FROZEN = {"frozen": "conv2|bias", "weight_decay": 0.1, "pca_color_std": 0.1}
# At such a rate parameters other than zero do not change in float32.
STILL = {"learning_rate": 1e-30, "min_learning_rate": 1e-30}


@pytest.fixture(scope="module")
def partly_frozen(first, tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("partly_frozen")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(arch.REGISTRY, "tiny", TINY)
        trainer.train(tuned(first, **PARTLY_FROZEN), folder, parallel=one_device())
    return folder


def test_what_is_frozen_stays_bit_for_bit_while_the_rest_moves(first, partly_frozen):
    before, after = end(first)["params"], end(partly_frozen)["params"]
    np.testing.assert_array_equal(after["conv2"]["kernel"], before["conv2"]["kernel"])
    np.testing.assert_array_equal(after["conv1"]["bias"], before["conv1"]["bias"])
    assert (after["conv1"]["kernel"] != before["conv1"]["kernel"]).all()
    assert not after["fc1"]["bias"].any()  # a fresh bias: zero, and frozen
    rows = report(partly_frozen)
    assert {p for p, row in rows.items() if row["frozen"]} == {
        *("conv1/bias", "conv2/bias", "conv2/kernel", "fc1/bias", "fc2/bias")
    }
    assert {p for p, row in rows.items() if row["decays"]} == {
        *("conv1/kernel", "fc1/kernel", "fc2/kernel")
    }
    velocity = jax.tree.leaves(end(partly_frozen)["velocity"])
    assert sorted(v.shape for v in velocity) == sorted(
        after[layer]["kernel"].shape for layer in ("conv1", "fc1", "fc2")
    )


def test_parameters_and_mean_image_are_taken_over_but_for_the_fresh(first, tmp_path):
    trainer.train(tuned(first, **STILL), tmp_path / "tuned", parallel=one_device())
    trainer.train(
        tiny_config(classes="5-7", **SHORT, **STILL), tmp_path / "drawn", parallel=one_device()
    )
    source, new, drawn = (end(f) for f in (first, tmp_path / "tuned", tmp_path / "drawn"))
    is_close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-25)
    for layer in ("conv1", "conv2"):
        assert_trees_equal(new["params"][layer], source["params"][layer])
    for layer in ("fc1", "fc2"):
        jax.tree.map(is_close, new["params"][layer], drawn["params"][layer])
    assert (new["params"]["fc1"]["kernel"] != source["params"]["fc1"]["kernel"]).all()
    assert new["params"]["fc2"]["kernel"].shape == (16, 3)
    assert_trees_equal(new["pixels"], source["pixels"])
    assert (drawn["pixels"]["mean"] != source["pixels"]["mean"]).any()
    evaluated = json.loads((tmp_path / "tuned/metrics.jsonl").read_text().splitlines()[-1])
    of_test = np.isin(sources.load("digits", "test").labels, [5, 6, 7]).sum()
    assert evaluated["test_examples"] == of_test < 297
    assert evaluated["epoch"] == 4 * 16 / 30  # ten examples of three classes
    rows = report(tmp_path / "tuned")
    assert {p for p, row in rows.items() if row["pretrained"]} == {
        *("conv1/bias", "conv1/kernel", "conv2/bias", "conv2/kernel")
    }


def test_a_run_that_was_interrupted_ends_with_the_same_bytes(first, partly_frozen, tmp_path):
    config = tuned(first, **PARTLY_FROZEN)

    with pytest.raises(KeyboardInterrupt):
        trainer.train(config, tmp_path, interrupt_at(2), one_device())
    seen = []
    trainer.train(config, tmp_path, lambda step, error: seen.append(step), one_device())
    assert seen == [4]
    for name in ("metrics.jsonl", "init_report.json", "status.json"):
        assert (tmp_path / name).read_bytes() == (partly_frozen / name).read_bytes(), name
    assert_trees_equal(end(tmp_path), end(partly_frozen))


def test_a_finished_run_needs_its_source_no_more(first, tmp_path):
    source = tmp_path / "source"
    source.symlink_to(first)
    config = tuned(source, **STILL)
    status = trainer.train(config, tmp_path / "run", parallel=one_device())
    source.unlink()
    assert trainer.train(config, tmp_path / "run", parallel=one_device()) == status


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reinit": "fc1"}, "fc2/bias: (5,) there, (3,) asked; fc2/kernel: (16, 5) there"),
        ({"rectifier": "prelu"}, "conv1_prelu/negative_slope: nothing there, (4,) asked"),
        ({"reinit": "fc9"}, "config.reinit is 'fc9', expected to match a parameter's path: co"),
        ({"frozen": "cnov"}, "config.frozen is 'cnov', expected to match"),
        ({"frozen": "."}, "config.frozen is '.': that leaves nothing to train"),
        ({"frozen": "("}, "config.frozen is (, expected a regular expression"),
        ({"pretrained": ""}, "config.reinit is fc, expected to be empty without config.pretrained"),
        ({"pretrained": "nowhere"}, "expected the folder of a finished run, found none"),
        ({"pixel_rms": 2.0}, "with pixel_rms 1.0; expected 32 pixels and pixel"),
        ({"classes": "8-11"}, "Classes '8-11', at '8-11': expected labels from 0 to 9"),
        ({"examples_per_class": 200}, "Class 5 (5) has 158 examples, expected 200"),
        ({"examples_per_class": -1}, "config.examples_per_class is -1, expected at least 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_folder_is_made(fields, message, first, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        trainer.train(tuned(first, **fields), tmp_path / "run", parallel=one_device())
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_not_finished_is_no_source(tmp_path):
    (tmp_path / "status.json").write_text('{"status": "diverged", "step": 3}')
    with pytest.raises(ValueError, match="a finished run, found one that is 'diverged'"):
        trainer.train(tuned(tmp_path), tmp_path / "run", parallel=one_device())


def test_a_path_matches_where_the_regex_is_found_and_never_an_empty_one():
    params = {"conv1": {"kernel": 0, "bias": 0}, "fc1": {"kernel": 0}}
    assert optimizer.matching(params, "conv.*kernel|fc") == {
        "conv1": {"kernel": True, "bias": False},
        "fc1": {"kernel": True},
    }
    assert not any(jax.tree.leaves(optimizer.matching(params, "")))


def test_a_recipe_without_frozen_parameters_keeps_the_shape_of_its_state():
    params = {"conv1": {"kernel": np.ones(3, np.float32)}}
    plain, frozen = (optimizer.sgd(0.01, frozen=f).descent.init(params) for f in ("", "fc"))
    assert len(plain) == 4  # decay, rate, velocity, sign, as in checkpoints written before
    assert jax.tree.structure(plain) != jax.tree.structure(frozen)
