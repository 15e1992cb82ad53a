"""The benchmarks run; what they find is for quiet machines and is not asserted here."""

import functools
import importlib
import json
import sys
import types

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from benchmarks import calibration, run, signal_probe, timing
from benchmarks.timing import Ratio, Result, Row
from prelu_jax.arch import REGISTRY
from tests.training.conftest import TINY


def test_the_cost_of_a_measurement_is_compared(monkeypatch):
    monkeypatch.setitem(REGISTRY, "tiny", TINY)
    ratios = signal_probe.run(nets=("tiny",), batch_size=8, repeats=2).ratios
    assert [ratio.what.partition(":")[0] for ratio in ratios] == ["time", "memory", "time"]
    assert all(ratio.value > 0 for ratio in ratios)


def test_the_cost_of_a_calibration_is_compared(monkeypatch, capsys):
    monkeypatch.setitem(REGISTRY, "tiny", TINY)
    monkeypatch.setattr(calibration, "_installed", lambda *modules: False)
    precisions = []

    def spied(function, *args):
        precisions.append(jax.config.jax_default_matmul_precision)
        return function(*args)

    for name in ("_of_the_pass", "farthest"):  # what compiles and what measures
        spy = functools.partial(spied, getattr(calibration, name))
        monkeypatch.setattr(calibration, name, spy)
    ratios = calibration.run(net="tiny", batch_size=8, repeats=2).ratios
    assert precisions == ["highest"] * 2
    assert jax.config.jax_default_matmul_precision is None
    assert [ratio.what for ratio in ratios] == [
        "time: within_layer's pass / a forward pass",
        "time: lsuv's pass / a forward pass",
    ]
    assert all(ratio.value > 0 for ratio in ratios)
    assert float(capsys.readouterr().out.split("farthest std from 1: ")[1]) < 1e-5


def test_the_farthest_std_is_that_of_the_affine_layers():
    model = nn.Sequential([nn.Dense(1, use_bias=False), nn.relu, nn.Dense(1, use_bias=False)])
    x = jnp.array([[-1.0], [1.0]])  # stds: 1, then 3/2 of a half
    params = {
        "layers_0": {"kernel": jnp.ones((1, 1))},
        "layers_2": {"kernel": jnp.full((1, 1), 3.0)},
    }
    assert calibration.farthest(model, {"params": params}, x) == pytest.approx(0.5)


@pytest.mark.parametrize("others", [("torch", "lsuv"), ("anyinit",)])
def test_other_libraries_are_compared_where_they_are_installed(monkeypatch, capsys, others):
    for name in others:
        pytest.importorskip(name)
    monkeypatch.setitem(REGISTRY, "tiny", TINY)
    monkeypatch.setattr(calibration, "_installed", lambda *modules: modules == others)
    *_, ratio = calibration.run(net="tiny", batch_size=8, repeats=2).ratios
    assert ratio.what.startswith("time: calibrate / ")
    assert ratio.value > 0


def fake(monkeypatch, name, found):
    """A benchmark of the CPU."""
    monkeypatch.setitem(run.BENCHMARKS, name, ("cpu",))
    monkeypatch.setitem(sys.modules, f"benchmarks.{name}", types.SimpleNamespace(run=found))


def test_the_exit_status_says_whether_a_ratio_is_over_its_limit(monkeypatch, capsys):
    for value, status in ((1.9, 0), (2.1, 1), (float("nan"), 1)):
        ratio = Ratio("a / b", "here", value, 2.0)
        fake(monkeypatch, "fake", lambda ratio=ratio: Result([], [ratio]))
        assert run.main(["fake"]) == status
    assert "OVER   2.100  (at most 2)  a / b  [here]" in capsys.readouterr().out
    with pytest.raises(ValueError, match="Unknown benchmark 'face'. Did you mean 'fake'"):
        run.main(["face"])


def test_what_is_found_is_written_whatever_another_benchmark_does(monkeypatch, capsys, tmp_path):
    def breaks():
        raise RuntimeError("out of memory")

    row = Row("net", "ours", "ms", [1.0, 3.0, 2.0, 10.0, 4.0], {"images/s": 43.21})
    monkeypatch.setattr(run, "BENCHMARKS", {})
    fake(monkeypatch, "breaks", breaks)
    fake(monkeypatch, "works", lambda: Result([row], [Ratio("a / b", "net", 1.5, 2.0)], ["a note"]))
    assert run.main([f"--out={tmp_path / 'new'}"]) == 1
    said, error = capsys.readouterr()
    assert "out of memory" in error
    assert "| net | ours | 3 ms | 2 to 4 | 5 | 43.21 |" in said
    assert "a note" in said
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["works.json"]
    found = json.loads((tmp_path / "new/works.json").read_text())
    assert found["rows"][0]["values"] == [1.0, 3.0, 2.0, 10.0, 4.0]
    assert found["ratios"] == [{"what": "a / b", "where": "net", "value": 1.5, "limit": 2.0}]
    assert {"device", "cores", "python", "jax", "flax"} <= set(found["machine"])


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="--device is gpu, but JAX computes on cpu here"):
        run.main(["--device=gpu"])


def test_every_benchmark_is_a_module_with_a_run():
    for name in run.BENCHMARKS:
        assert callable(importlib.import_module(run.module(name)).run)


def test_programs_take_turns():
    calls = []
    taken = timing.seconds({name: lambda n=name: calls.append(n) for name in "ab"}, repeats=2)
    assert calls == list("ababab")
    assert set(taken) == {"a", "b"}
