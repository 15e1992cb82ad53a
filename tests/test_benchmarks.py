"""The benchmarks run; what they find is for quiet machines and is not asserted here."""

import pytest

from benchmarks import run, signal_probe, timing
from benchmarks.timing import Ratio
from prelu_jax.arch import REGISTRY
from tests.training.conftest import TINY


def test_the_cost_of_a_measurement_is_compared(monkeypatch):
    monkeypatch.setitem(REGISTRY, "tiny", TINY)
    ratios = signal_probe.run(nets=("tiny",), batch_size=8, repeats=2)
    assert [ratio.what.partition(":")[0] for ratio in ratios] == ["time", "memory", "time"]
    assert all(ratio.value > 0 for ratio in ratios)


def test_the_exit_status_says_whether_a_ratio_is_over_its_limit(monkeypatch, capsys):
    for value, status in ((1.9, 0), (2.1, 1)):
        fake = {"fake": lambda value=value: [Ratio("a / b", "here", value, 2.0)]}
        monkeypatch.setattr(run, "BENCHMARKS", fake)
        assert run.main([]) == status
    assert "OVER   2.100  (at most 2)  a / b  [here]" in capsys.readouterr().out
    with pytest.raises(ValueError, match="Unknown benchmark 'face'. Did you mean 'fake'"):
        run.main(["face"])


def test_programs_take_turns():
    calls = []
    taken = timing.seconds({name: lambda n=name: calls.append(n) for name in "ab"}, repeats=2)
    assert calls == list("ababab")
    assert set(taken) == {"a", "b"}
