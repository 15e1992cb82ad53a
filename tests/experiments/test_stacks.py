"""`--stack_runs`: an experiment's runs as one program."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import common
from prelu_jax.training.config import TrainConfig
from tests.experiments.conftest import SHORT, run


def stacks(monkeypatch, configs, asked=True):
    """The folders of each stack."""
    monkeypatch.setattr(common, "_flag", {"stack_runs": asked}.get)
    named = {Path(name): config for name, config in configs.items()}
    return ["".join(map(str, of)) for of in common._stacks(named)]


def small(seed=0, **fields):
    return TrainConfig(arch="small_30_reduced", seed=seed, **fields)


def test_runs_that_differ_in_seed_and_start_are_a_stack(monkeypatch):
    other = {"initializer": "xavier_normal", "mode": "fan_avg"}
    configs = {
        "a": small(),
        "b": small(rectifier="prelu"),
        "c": small(1, **other),
        "d": small(pretrained="a"),
        "e": small(2, datadep="lsuv"),
        "f": small(3, rectifier="prelu"),
        "g": small(1, pretrained="a"),
        "h": small(4, signal_every=10),
    }
    assert stacks(monkeypatch, configs) == ["ace", "bf", "d", "g", "h"]


@pytest.mark.parametrize(
    ("fields", "sizes"),
    [
        ({}, [16, 4]),
        ({"batch_size": 64}, [20]),
        ({"batch_size": 4096}, [1] * 20),
        ({"arch": "small_30"}, [1] * 20),  # 224 pixels
    ],
)
def test_a_stack_has_a_size(fields, sizes, monkeypatch):
    configs = {chr(ord("a") + i): TrainConfig(**{**vars(small(i)), **fields}) for i in range(20)}
    assert [len(of) for of in stacks(monkeypatch, configs)] == sizes


@pytest.mark.parametrize(("asked", "expected"), [(None, ["a", "b"]), (True, ["ab"])])
def test_stacks_are_made_where_they_are_asked_for(asked, expected, monkeypatch):
    assert stacks(monkeypatch, {"a": small(), "b": small(1)}, asked) == expected


@pytest.mark.slow
def test_the_command_leaves_the_folders_of_separate_runs(tmp_path):
    for flag in ("stack_runs", "nostack_runs"):
        command = ("convergence_22", "--scale=laptop", *SHORT, f"--workdir={tmp_path / flag}")
        done = run(*command, f"--{flag}")
        assert "Claims:" in done.stdout, done.stderr
        assert ("and 1 more" in done.stderr) == (flag == "stack_runs")
    stacked, separate = (tmp_path / flag for flag in ("stack_runs", "nostack_runs"))
    assert files(stacked) == files(separate)
    for arm in ("he", "xavier"):
        ours, theirs = (
            [json.loads(line) for line in (of / arm / "seed_0/metrics.jsonl").open()]
            for of in (stacked, separate)
        )
        for a, b in zip(ours, theirs, strict=True):
            assert list(a) == list(b)
            for name in {"train_loss", "test_loss"} & {*a}:
                np.testing.assert_allclose(a[name], b[name], rtol=1e-4)


def files(folder):
    """The names of all but what Orbax and TensorBoard name anew each time."""
    paths = (path.relative_to(folder) for path in folder.rglob("*"))
    return {path for path in paths if "checkpoints" not in path.parts and "events" not in path.name}
