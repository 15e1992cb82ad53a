import json
import re

import numpy as np
import pytest

from prelu_jax import arch, models
from prelu_jax.runs import finished, trainer
from tests.training.conftest import TINY, assert_trees_equal, one_device, tiny_config

pytestmark = pytest.mark.usefixtures("tiny_arch")

SHORT = {"num_steps": 2, "eval_every": 2, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(arch.REGISTRY, "tiny", TINY)
        trainer.train(tiny_config(**SHORT), folder, parallel=one_device())
    return folder


def test_a_finished_run_is_read_with_its_configuration_and_tests_alike(folder):
    run = finished.load(folder)
    assert run.config == tiny_config(**SHORT)
    net = finished.inference_state(run, models.build(TINY, 10, "relu"))
    images = np.zeros((2, 32, 32, 3), np.float32)
    scores = net.model.apply({"params": net.params}, images)
    assert_trees_equal(scores, models.build(TINY, 10, "relu").apply({"params": run.params}, images))
    assert run.pixels.mean.shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("rectifier", "classes", "message"),
    [
        ("relu", 7, "tiny with relu and 7 classes (fc2/bias: (10,) there, (7,) asked; fc2/kernel"),
        ("prelu", 10, "conv1_prelu/negative_slope: nothing there, (4,) asked"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_with_what_differs(
    folder, rectifier, classes, message
):
    with pytest.raises(ValueError, match=re.escape(message)):
        finished.inference_state(finished.load(folder), models.build(TINY, classes, rectifier))


def test_a_configuration_is_read_without_the_checkpoint(folder, monkeypatch):
    monkeypatch.delattr(finished, "Checkpoints")
    assert finished.config(folder) == tiny_config(**SHORT)


def test_parameters_that_the_network_lacks_are_named(folder):
    run = finished.load(folder)
    run = run._replace(params={**run.params, "extra": {"kernel": np.zeros(3, np.float32)}})
    with pytest.raises(ValueError, match=r"extra/kernel: \(3,\) there, nothing asked"):
        finished.inference_state(run, models.build(TINY, 10, "relu"))


def test_a_run_of_another_version_is_refused(folder, tmp_path):
    (tmp_path / "status.json").write_bytes((folder / "status.json").read_bytes())
    config = json.loads((folder / "config.json").read_text()) | {"plateau_factor": 0.1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"another version of prelu_jax: \['plateau_factor'\]"):
        finished.load(tmp_path)
