"""Tests of the arithmetic of benchmarks.scaling and of the programs that check it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from benchmarks import input_scaling, loopback, scaling, scaling_tables
from benchmarks.scaling import BATCH, H100, LOADS, MACHINES, TPU_V4, Level
from prelu_jax import arch, models
from tests.training.conftest import TINY

MODEL_A = LOADS[0]
PLANS = [{"shared_over": s, "overlap": o} for s in (0, 1, 2) for o in (False, True)]


@pytest.mark.parametrize(
    "net", [arch.MODEL_A, arch.MODEL_B, arch.MODEL_C, arch.SMALL_14, TINY], ids=lambda n: n.name
)
def test_the_bytes_are_those_of_the_models_parameters(net):
    model = models.build(net, 1000, "prelu")
    images = jnp.zeros((1, net.image_size, net.image_size, 3))
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    sizes = {False: 0, True: 0}
    for layer, leaves in params.items():
        sizes[layer.startswith("fc")] += sum(leaf.size for leaf in jax.tree.leaves(leaves))
    load = scaling.load(net)
    assert (load.conv, load.fc) == (sizes[False], sizes[True])


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.name)
@pytest.mark.parametrize("how", PLANS, ids=str)
def test_one_device_is_as_fast_as_itself(machine, how):
    for load in LOADS:
        assert scaling.efficiency(load, machine, 1, BATCH, **how) == pytest.approx(1)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.name)
@pytest.mark.parametrize("how", PLANS, ids=str)
def test_with_infinite_bandwidth_nothing_is_lost(machine, how):
    def ideal(devices):
        return tuple(Level(level.size, math.inf, 0.0) for level in machine.levels(devices))

    fast = dataclasses.replace(machine, levels=ideal, memory_bandwidth=math.inf)
    for devices, images in ((8, BATCH), (1024, BATCH), (128, 1)):
        assert scaling.efficiency(MODEL_A, fast, devices, images, **how) == pytest.approx(1)


def test_levels_hold_all_devices():
    for machine in MACHINES:
        for devices in (2**i for i in range(11)):
            levels = machine.levels(devices)
            assert math.prod(level.size for level in levels) == devices
    assert [level.size for level in TPU_V4.levels(32)] == [2, 4, 4]
    link = TPU_V4.levels(64)[0].bandwidth
    assert TPU_V4.levels(32)[0].bandwidth == link / 2  # an axis of two is not a closed ring
    assert 3 * link == pytest.approx(1.1e15 / 4096)


def test_a_ring_sends_every_byte_twice_but_for_its_own():
    for n in (2, 8):
        level = Level(n, 1e9, 1e-3)
        expected = 2 * (n - 1) / n * 7e6 / 1e9 + 2 * (n - 1) * 1e-3
        assert scaling.all_reduce_seconds(7e6, [level]) == pytest.approx(expected)
    # Two levels: seven eighths within a node, then one eighth among nodes.
    levels = [Level(8, 4e9, 0.0), Level(4, 1e9, 0.0)]
    expected = 2 * (7 / 8 / 4e9 + 3 / 4 / 8 / 1e9)
    assert scaling.all_reduce_seconds(1.0, levels) == pytest.approx(expected)
    # The axes of a torus together act as one ring with the sum of their bandwidths.
    expected = 2 * 31 / 32 / 5e9
    assert scaling.all_reduce_seconds(1.0, levels, torus=True) == pytest.approx(expected)


def test_sharing_moves_fewer_bytes_while_the_group_has_fewer_images_than_it_pays_for():
    def sent(images, devices):  # bytes, as the bandwidth is a byte per second
        level = Level(devices, 1.0, 0.0)
        exchange = 2 * scaling.gather_seconds(images * MODEL_A.exchanged_bytes, [level])
        return exchange, scaling.all_reduce_seconds(4 * MODEL_A.fc, [level])

    exchange, reduce = sent(BATCH, 8)
    assert exchange < 0.2 * reduce
    for devices in (8, 32, 1024):
        most = MODEL_A.most_images() / devices
        exchange, reduce = sent(most, devices)
        assert exchange == pytest.approx(reduce)
        exchange, reduce = sent(2 * most, devices)
        assert exchange > reduce


def test_overlap_costs_nothing_until_the_backward_pass_ends():
    alone = scaling.step_seconds(MODEL_A, H100, 1, BATCH)
    hidden = scaling.step_seconds(MODEL_A, H100, 8, BATCH, overlap=True)
    assert hidden == pytest.approx(alone)
    few = scaling.step_seconds(MODEL_A, H100, 8, 1, overlap=True)
    backward = 2 / 3 * scaling.compute_seconds(MODEL_A, H100, 1)
    after = scaling.step_seconds(MODEL_A, H100, 8, 1)
    assert after - few == pytest.approx(backward)
    assert scaling.step_seconds(MODEL_A, H100, 8, 1, gradient_bytes=2) < after


def test_a_shared_layer_is_updated_in_parts():
    free = dataclasses.replace(H100, levels=lambda n: (Level(n, math.inf, 0.0),))
    whole, parts = (scaling.step_seconds(MODEL_A, free, 8, BATCH, shared_over=n) for n in (0, 1))
    # Three arrays are read (parameter, gradient, velocity) and two written, four bytes per value.
    assert whole - parts == pytest.approx(7 / 8 * MODEL_A.fc * 20 / 3.35e12)


def test_the_best_group_is_the_fastest():
    for machine in MACHINES:
        chosen, size = scaling.best_group(MODEL_A, machine, 256, BATCH, overlap=False)
        of_all = [
            scaling.step_seconds(MODEL_A, machine, 256, BATCH, shared_over=n) for n in (1, 2, 3)
        ]
        of_chosen = scaling.step_seconds(MODEL_A, machine, 256, BATCH, shared_over=chosen)
        assert of_chosen == min(of_all)
        assert size == math.prod(level.size for level in machine.levels(256)[:chosen])


def test_a_fit_finds_the_latency_and_the_bandwidth():
    level = Level(2, 2e9, 3e-4)
    trees = [(1, 1e6), (16, 1e6), (1, 64e6)]
    seconds = {tree: loopback.predicted(level, 2, *tree, cores=2)[0] for tree in trees}
    result = loopback.fit(seconds)
    assert result.latency == pytest.approx(3e-4)
    assert result.bandwidth == pytest.approx(2e9)
    ring, shared = loopback.predicted(level, 4, 16, 1e6, cores=2)
    assert ring == pytest.approx(16 * 6 * 3e-4 + 1.5 * 1e6 / 2e9)
    assert shared == 2 * ring


@pytest.mark.slow
def test_processes_measure_sums_and_steps():
    trees = ((1, 1), (3, 1))
    result = loopback.measure(2, trees, repeats=2, net="small_14_reduced", batch=4)
    names = [*(loopback.name_of(*tree) for tree in trees), loopback.WITHOUT, loopback.WITH]
    assert all(len(result[name]) == 2 and min(result[name]) > 0 for name in names)
    params = scaling.load(arch.SMALL_14_REDUCED, num_classes=10).parameters
    assert result["bytes summed"] == [4 * params]


def test_the_tables_compare_the_model_with_measurements(monkeypatch, capsys):
    def measured(n, trees, repeats, net, batch):
        level = Level(2, 1e9, 1e-4)
        sums = {
            loopback.name_of(*tree): [loopback.predicted(level, n, tree[0], tree[1] * 1e6, 2)[0]]
            for tree in trees
        }
        steps = {loopback.WITHOUT: [0.1], loopback.WITH: [0.1 + 0.01 * (n > 1)]}
        return {**sums, **steps, "bytes summed": [9.8e6]}

    monkeypatch.setattr(loopback, "measure", measured)
    monkeypatch.setattr(loopback.os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    ratios = scaling_tables.run().ratios
    # In this fake, four processes are as fast as with a core each: twice as fast as on two cores.
    assert [ratio.value for ratio in ratios] == pytest.approx([0.5, 1.0])
    note = capsys.readouterr().out
    assert "0.10 ms a hop and array, 1.00 GB/s" in note
    assert "| model_a | 178.0 | 100 | 612 | 712 | 86 | 356 | 166 | 7,383 |" in note
    for line in note.split("Efficiency:")[1].split("Measured")[0].splitlines()[4:]:
        assert line.count("|") in (0, 11)


def test_the_figure_is_drawn(tmp_path):
    scaling_tables.figure(tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_pipeline_is_compared_with_a_devices_need(capsys):
    pytest.importorskip("tensorflow_datasets")
    ratios = input_scaling.run(images=8, batches=1, repeats=1, ways=((1, 1), (2, 1))).ratios
    assert [ratio.where for ratio in ratios] == ["2 × 1"]
    assert ratios[0].value > 0
    note = capsys.readouterr().out
    assert "| 8 H100 in a host | 32,896 |" in note
    assert "| 2 × 1 |" in note
