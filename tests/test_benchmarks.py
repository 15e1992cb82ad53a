"""Tests that benchmarks run; their measurements need a quiet machine and are not asserted."""

import dataclasses
import datetime
import functools
import importlib
import importlib.util
import json
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from benchmarks import (
    calibration,
    growth,
    rectifiers,
    run,
    scanned,
    signal_probe,
    start_up,
    summary,
    timing,
    train_step,
)
from benchmarks.timing import Ratio, Result, Row
from benchmarks.training import Case
from prelu_jax.arch import (
    REGISTRY,
    SMALL_30_REDUCED,
    Arch,
    Conv,
    Logits,
    MaxPool,
    SpatialPyramid,
)
from tests.experiments.conftest import ROOT
from tests.training.conftest import TINY

# Two layers, and parameters so few that a step's memory is that of its images.
LEAST = Arch(
    "tiny",
    16,
    (
        Conv("conv", 4, 3, padding=(1, 1)),
        MaxPool("pool", 4),
        SpatialPyramid("spp", (1,)),
        Logits("scores", stddev=0.1),
    ),
)


def test_the_cost_of_a_measurement_is_compared(monkeypatch):
    monkeypatch.setitem(REGISTRY, "tiny", LEAST)
    ratios = signal_probe.run(nets=("tiny",), batch_size=8, repeats=2).ratios
    assert [ratio.what.partition(":")[0] for ratio in ratios] == ["time", "memory", "time"]
    assert all(ratio.value > 0 for ratio in ratios)


def test_the_cost_of_scanned_layers_and_its_growth_are_compared():
    result = scanned.run(depth=3, width=2, size=3, batch_size=4, depths=(2, 4))
    ratios, grown = result.ratios[:6], result.ratios[6:]
    kinds = ["time: planning / a second", "time: calibrating pass / forward pass"]
    assert [ratio.what for ratio in ratios[:4]] == 2 * kinds
    assert [ratio.what.partition(":")[0] for ratio in ratios[4:]] == ["compile", "compile"]
    assert all(ratio.value > 0 for ratio in ratios)
    programs = [f"tracing and lowering: {name}" for name in ("calibrating pass", "probe")]
    stages = ["planning, processor time", *programs]
    assert [ratio.what for ratio in grown] == 2 * [f"growth: exponent of {x}" for x in stages]
    assert [ratio.where for ratio in grown] == ["scanned"] * 3 + ["unrolled"] * 3
    assert np.isfinite([ratio.value for ratio in grown]).all()


OURS = ["within_layer's pass", "lsuv's pass", "calibrate", "calibrate, the first call"]


def test_the_cost_of_a_calibration_is_compared(monkeypatch):
    monkeypatch.setitem(REGISTRY, "tiny", LEAST)
    monkeypatch.setattr(calibration, "absent", lambda name, *modules: "all of it")
    precisions = []

    def spied(function, *args):
        precisions.append(jax.config.jax_default_matmul_precision)
        return function(*args)

    for name in ("_compiled_pass", "farthest"):  # replace compilation and measurement
        spy = functools.partial(spied, getattr(calibration, name))
        monkeypatch.setattr(calibration, name, spy)
    result = calibration.run("tiny", depths=(2, 3), batch_size=8, repeats=2)
    assert set(precisions) == {"highest"}
    assert jax.config.jax_default_matmul_precision is None
    assert [ratio.what for ratio in result.ratios] == [
        *[f"time: {name} / a forward pass" for name in OURS[:2]] * 2,
        *(f"exponent in depth: {name}" for name in OURS),
    ]
    assert [(row.where, row.what) for row in result.rows[:5]] == [
        ("2 layers", name) for name in ("forward pass", *OURS)
    ]
    assert result.rows[4].figures["farthest std from 1"] < 1e-5
    assert len(result.notes) == 2


def test_the_farthest_std_is_that_of_the_affine_layers():
    model = nn.Sequential([nn.Dense(1, use_bias=False), nn.relu, nn.Dense(1, use_bias=False)])
    x = jnp.array([[-1.0], [1.0]])  # stds: 1, then 3/2 of a half
    params = {
        "layers_0": {"kernel": jnp.ones((1, 1))},
        "layers_2": {"kernel": jnp.full((1, 1), 3.0)},
    }
    assert calibration.farthest(model, {"params": params}, x) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "modules"),
    [("lsuv (PyTorch)", ("torch", "lsuv")), ("AnyInit, empirical", ("anyinit",))],
)
def test_other_libraries_are_compared_where_they_are_installed(monkeypatch, name, modules):
    for module in modules:
        pytest.importorskip(module)
    monkeypatch.setitem(REGISTRY, "tiny", TINY)
    monkeypatch.setattr(calibration, "_RATIO_AT", 5)
    monkeypatch.setattr(calibration, "absent", lambda other, *_: "" if other == name else "it")
    result = calibration.run("tiny", depths=(4, 5), batch_size=8, repeats=1)
    (ratio,) = [ratio for ratio in result.ratios if ratio.what == f"time: calibrate / {name}"]
    assert ratio.where == "5 layers"
    assert ratio.value > 0
    rows = [row for row in result.rows if row.what == name]
    assert [row.where for row in rows] == ["4 layers", "5 layers"]
    assert all("farthest std from 1" in row.figures for row in rows)
    assert any(row.what == f"exponent of: {name}" for row in result.rows)


def test_a_network_of_another_depth_has_more_or_fewer_of_its_last_convolution():
    for depth in (8, 30, 45):
        net = growth.of_depth(SMALL_30_REDUCED, depth)
        assert sum(hasattr(layer, "features") for layer in net.layers) + 1 == depth
        assert len({layer.name for layer in net.layers}) == len(net.layers)
        assert net.layers[:7] == SMALL_30_REDUCED.layers[:7]
        assert net.layers[-4:] == SMALL_30_REDUCED.layers[-4:]
        even = [layer.padding for layer in net.layers[7:-4]]
        assert even == [(0, 1), (1, 0)] * (len(even) // 2) + [(0, 1)] * (len(even) % 2)
    assert growth.of_depth(SMALL_30_REDUCED, 30).layers == SMALL_30_REDUCED.layers


def test_an_exponent_is_the_slope_of_the_logs():
    sizes = np.array([8, 20, 45, 100])
    assert growth.exponent(sizes, 3 * sizes**1.7) == pytest.approx((1.7, 0))
    values = sizes**1.7 * [1.1, 0.9, 1.2, 1.0]
    slope, error = growth.exponent(sizes, values)
    (expected, _), covariance = np.polyfit(np.log(sizes), np.log(values), 1, cov=True)
    assert (slope, error) == pytest.approx((expected, np.sqrt(covariance[0, 0])))


def test_growth_is_measured_one_factor_at_a_time(monkeypatch):
    monkeypatch.setitem(REGISTRY, "tiny", LEAST)
    sizes = growth.Sizes("tiny", 4, "float32", (2, 3), (1, 2), (2, 4), (16, 32), ())
    result = growth.run(sizes, repeats=2)
    factors = ["depth", "width", "batch", "image side"]
    assert [ratio.where for ratio in result.ratios] == factors
    exponents = {row.where: row for row in result.rows if row.what == "exponent of: train step"}
    assert list(exponents) == factors
    predicted = {name: row.figures["of multiply-adds"] for name, row in exponents.items()}
    assert predicted["batch"] == pytest.approx(1)
    assert predicted["image side"] == pytest.approx(2, abs=0.1)  # except for layers after pools
    memories = {row.where: row.median for row in result.rows if row.unit == "MiB"}
    assert memories["batch 4"] > 1.2 * memories["batch 2"]
    assert memories["image side 32"] > 1.2 * memories["image side 16"]


def test_growth_with_devices_is_measured_on_all_of_them():
    case = growth.Case(LEAST, 2 * jax.device_count())
    seconds, of_each = growth.on_all_devices(case, repeats=2)
    assert len(seconds) == 2
    larger = dataclasses.replace(case, batch_size=2 * case.batch_size)
    assert growth.on_all_devices(larger, repeats=1)[1] > of_each


def test_a_start_is_measured_to_its_first_step():
    small = ("--config.arch=small_14_reduced", "--config.width=0.125", "--config.batch_size=16")
    result = start_up.run(imports=1, starts=1, flags=small)
    assert [len(row.values) for row in result.rows] == [1, 1, 1]
    assert all(row.median > 0 for row in result.rows)
    assert [ratio.limit for ratio in result.ratios] == [1, 1, 1 / 3]


def test_a_start_that_fails_reports_the_reason(tmp_path):
    with pytest.raises(RuntimeError, match="Unknown arch 'small_31'"):
        start_up._of_the_command(str(tmp_path), ["--config.arch=small_31"])


def test_a_first_step_needs_no_input_pipeline(tmp_path):
    code = (
        "import sys; from benchmarks import first_step; from prelu_jax.arch import Arch, Logits;"
        "first_step.main(Arch('tiny', 8, (Logits('scores', 0.1),)), 2); print(*sys.modules)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=start_up._environment(str(tmp_path)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert any((tmp_path / "prelu_jax/xla").iterdir())
    assert "jax" in output.stdout.split()
    assert not {"grain", "ml_collections", "tensorflow_datasets"}.intersection(
        output.stdout.split()
    )


def test_benchmarks_of_a_gpu_need_neither_readers_nor_flags():
    absent = ("grain", "cv2", "tensorflow_datasets", "ml_collections")
    modules = [run.module(name) for name, devices in run.BENCHMARKS.items() if "gpu" in devices]
    assert modules
    hidden = f"import sys; sys.modules |= dict.fromkeys({absent}); import {', '.join(modules)}"
    done = subprocess.run([sys.executable, "-c", hidden], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_rectifiers_are_compared_with_a_copy_and_with_a_step(monkeypatch):
    monkeypatch.setitem(REGISTRY, "tiny", LEAST)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = rectifiers.run({"small": (4, 4, 8)}, repeats=2, net="tiny", batch_size=4)
    programs = {row.what for row in result.rows if "float32" in row.where}
    assert {"copy", "channel-wise, backward", "flax.linen.PReLU, forward"} <= programs
    copy = next(row for row in result.rows if row.what == "copy")
    assert copy.figures["of a copy"] == 1
    moved = copy.median * copy.figures["GB/s"] * 1e6
    assert moved == pytest.approx(
        2 * 4 * 4 * 4 * 8 * 4
    )  # two arrays, images, sides, channels, bytes
    # In two types, both forms against a copy and the shared one against Flax; and a step.
    assert len(result.ratios) == 2 * 3 + 1
    assert all(ratio.value > 0 for ratio in result.ratios)
    listed = "not compared: PyTorch; torch not installed (pip install -e .[bench])"
    assert result.notes == [listed] * 2


def test_a_training_step_is_compared_with_pytorch(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setitem(REGISTRY, "tiny", TINY)
    for rectifier in ("relu", "prelu"):
        case = Case(TINY, 8, rectifier)
        result = train_step.measure([case], 2, "cpu")
        assert [row.what.split()[0] for row in result.rows] == ["prelu_jax", "torch", "torch"]
        (ratio,) = result.ratios
        assert ratio.value > 0
        assert "the fastest of PyTorch (torch eager" in ratio.what
    state = case.state()
    torch_net = importlib.import_module("benchmarks.torch_net")
    module = torch_net.build(TINY, state.params)
    train_step._check(module, case, state.params, case.batch())
    other = jax.tree.map(lambda x: x + 0.1, state.params)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        train_step._check(module, case, other, case.batch())


def test_a_measured_step_trains(monkeypatch):
    monkeypatch.setitem(REGISTRY, "tiny", LEAST)
    program = Case(LEAST, 8).program()
    losses = [float(program()) for _ in range(3)]
    assert len(set(losses)) == 3


def test_the_page_has_the_results_that_are_kept():
    page = summary.PAGE.read_text()
    assert page.split(summary.BEGIN)[1].split(summary.END)[0].strip() == summary.render().strip()


def test_missed_limits_and_missing_measurements_are_listed(tmp_path):
    folder = tmp_path / "cpu"
    folder.mkdir()
    ratios = [{"what": "a / b", "where": "net", "value": 3.0, "limit": 2.0}]
    actual = {"machine": {"device": "one", "jax": "1"}, "ratios": ratios, "notes": ["a note"]}
    (folder / "growth.json").write_text(json.dumps(actual))
    text = summary.render(tmp_path)
    assert "device one, jax 1." in text
    assert "| growth | a / b | net | 3 | 2 | missed |" in text
    assert "- growth: a note" in text
    assert "Not measured: train_step, rectifiers, growth, start_up." in text  # GPU
    assert "Not measured: signal_probe" in text


def fake(monkeypatch, name, actual):
    """Return a benchmark of the CPU."""
    monkeypatch.setitem(run.BENCHMARKS, name, ("cpu",))
    monkeypatch.setitem(sys.modules, f"benchmarks.{name}", types.SimpleNamespace(run=actual))


def record_of(folder, name, ratio):
    """Write the record of a benchmark on a CPU."""
    (folder / "cpu").mkdir(exist_ok=True)
    record = {"ratios": [dataclasses.asdict(ratio)]}
    (folder / f"cpu/{name}.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("before", "value", "spread", "status"),
    [
        (1.9, 1.9, 0.0, 0),
        (1.9, 2.1, 0.05, 1),
        (1.9, 2.1, 0.2, 0),  # within its spread
        (2.2, 2.3, 0.0, 0),  # missed before, too
        (None, 2.1, 0.0, 0),  # never measured
        (1.9, float("nan"), 0.0, 1),
    ],
)
def test_the_exit_status_is_1_if_a_goal_is_lost(
    before, value, spread, status, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    ratio = Ratio("a / b", "here", value, 2.0, spread)
    if before:
        record_of(tmp_path, "fake", dataclasses.replace(ratio, value=before, limit=5.0))
    fake(monkeypatch, "fake", lambda: Result([], [ratio]))
    assert run.main(["fake"]) == status
    out = capsys.readouterr().out
    assert ("missed" if not value <= 2 else "met") in out
    assert ("now missed by more than the spread: a / b [here]" in out) == (status == 1)


def test_the_spread_of_a_ratio_is_that_of_its_turns():
    ratio = Ratio.of("a / b", "here", [2.0, 4.0, 9.0], [1.0, 2.0, 3.0], 2.0)
    assert ratio == Ratio("a / b", "here", 2.0, 2.0, 0.25)  # turns of 2, 2 and 3
    assert f"{ratio}" == "met      2.000 ± 0.250  (at most 2)  a / b  [here]"


def test_what_cannot_be_written_or_is_unknown_is_named(monkeypatch, capsys, tmp_path):
    fake(monkeypatch, "fake", lambda: Result([], []))
    taken = tmp_path / "taken"
    taken.write_text("")
    with pytest.raises(ValueError, match="--out=.*taken cannot be created"):
        run.main(["fake", f"--out={taken}"])
    (tmp_path / "fake.json").mkdir()
    assert run.main(["fake", f"--out={tmp_path}"]) == 1
    assert "fake.json cannot be written" in capsys.readouterr().err
    with pytest.raises(ValueError, match="Unknown benchmark 'face'. Did you mean 'fake'"):
        run.main(["face"])


def test_results_are_written_even_if_another_benchmark_fails(monkeypatch, capsys, tmp_path):
    def breaks():
        raise RuntimeError("out of memory")

    row = Row("net", "ours", "ms", [1.0, 3.0, 2.0, 10.0, 4.0], {"images/s": 43.21})
    monkeypatch.setattr(run, "BENCHMARKS", {})
    fake(monkeypatch, "breaks", breaks)
    fake(monkeypatch, "works", lambda: Result([row], [Ratio("a / b", "net", 1.5, 2.0)], ["a note"]))
    assert run.main([f"--out={tmp_path / 'new'}"]) == 1
    output, error = capsys.readouterr()
    assert "out of memory" in error
    assert "| net | ours | 3 ms | 2 to 4 | 5 | 43.21 |" in output
    assert "a note" in output
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["works.json"]
    actual = json.loads((tmp_path / "new/works.json").read_text())
    assert actual["rows"][0]["values"] == [1.0, 3.0, 2.0, 10.0, 4.0]
    ratio = {"what": "a / b", "where": "net", "value": 1.5, "limit": 2.0, "spread": 0.0}
    assert actual["ratios"] == [ratio]
    assert {"device", "cores", "python", "jax", "flax"} <= set(actual["machine"])
    assert datetime.date.fromisoformat(actual["date"]) <= datetime.date.today()
    assert actual["load before"] >= 0


def test_a_benchmark_without_its_packages_names_the_extra(monkeypatch, capsys):
    monkeypatch.setattr(run, "BENCHMARKS", {})
    fake(monkeypatch, "compares", lambda: importlib.import_module("no_such_package"))
    assert run.main([]) == 1
    assert capsys.readouterr().err == (
        "error: benchmark 'compares' needs no_such_package, which is not installed: "
        "pip install 'prelu_jax[bench]'\n"
    )


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


def test_a_table_goes_between_the_markers_of_a_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{summary.BEGIN}\nold\n{summary.END}\nafter\n")
    summary.replace_between(summary.BEGIN, summary.END, "new", page)
    assert page.read_text() == f"before\n{summary.BEGIN}\n\nnew\n\n{summary.END}\nafter\n"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="once each"):
        summary.replace_between(summary.BEGIN, summary.END, "new", page)
