import csv
import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prelu_jax as pj
from experiments import depth
from experiments.harness import depth_cells, depth_figures, plain_nets, record
from experiments.harness.depth_cells import (
    HE,
    ORTHOGONAL,
    PRELU,
    RELU,
    TAILORED,
    XAVIER,
    Cell,
    Runs,
)
from experiments.harness.plain_nets import Data, Examples, Outcome, PlainNet, Training
from tests.experiments.conftest import run

SMALL = dataclasses.replace(
    depth.Config(), side=4, width=6, num_steps=3, batch_size=8, calibration_examples=16
)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)

    def examples(n):
        images = rng.normal(size=(n, 4, 4, 3)).astype(np.float32)
        return Examples(images, np.arange(n, dtype=np.int32) % 10)

    return Data(examples(40), examples(10), examples(20))


def net_of(depth=5, slope=0.25, learned=True, kernel_size=0):
    rule = pj.initializers.he_normal(negative_slope=slope)
    return PlainNet(depth, 6, 10, slope, learned, kernel_size, rule)


def test_from_a_flag_to_a_picture(tmp_path):
    flags = (
        "--seeds=1",
        f"--workdir={tmp_path}",
        "--config.depths=14,15",
        "--config.num_steps=2",
        "--config.initializers='He','within + between'",
        "--config.rectifiers='tailored PReLU'",
    )
    done = run("depth", "--scale=laptop", *flags)
    assert done.returncode == 0, done.stderr  # no claim is about these nets
    for text in ("n = 1", "| within + between, tailored PReLU |", "Highest depth"):
        assert text in done.stdout
    for name in ("figure.png", "figure.pdf", "heat_map.png", "heat_map.pdf", "table.md"):
        assert (tmp_path / name).stat().st_size > 100
    assert record.read(tmp_path).name == "depth"
    rows = list(csv.DictReader((tmp_path / "depth.csv").open()))
    assert len(rows) == 2 * 2 * 3
    assert sum(int(row["chosen"]) for row in rows) == 4
    # The command that the table gives computes a cell alone, to the same numbers.
    one = (tmp_path / "table.md").read_text().rpartition("the command with `")[2].partition("`")[0]
    assert one == (
        "--config.depths=15 --config.initializers=\"('within + between',)\" "
        "--config.rectifiers=\"('tailored PReLU',)\""
    )
    alone = tmp_path / "alone"
    arguments = [part.replace('"', "") for part in one.split(" --")]
    arguments = [arguments[0], *(f"--{part}" for part in arguments[1:])]
    again = run("depth", *flags[:1], f"--workdir={alone}", "--config.num_steps=2", *arguments)
    assert again.returncode == 0, again.stderr
    file = "15_layers/within_between/tailored_prelu/runs.json"
    assert (alone / file).read_text() == (tmp_path / file).read_text()


def test_a_scanned_net_computes_what_its_layers_do_one_after_another(data):
    net, images = net_of(), jnp.asarray(data.test.images)
    params = jax.jit(net.init)(jax.random.key(0), images)["params"]
    x = images.reshape(len(images), -1)
    x = x @ params["first"]["kernel"] + params["first"]["bias"]
    for i in range(3):
        layer = jax.tree.map(lambda part, i=i: part[i], params["hidden"])
        x = pj.prelu(x, layer["rectifier"]["negative_slope"])
        x = x @ layer["layer"]["kernel"] + layer["layer"]["bias"]
    np.testing.assert_allclose(plain_nets.last_hidden(net, params, images), x, rtol=1e-5)
    x = pj.prelu(x, params["last_rectifier"]["negative_slope"])
    x = x @ params["scores"]["kernel"] + params["scores"]["bias"]
    np.testing.assert_allclose(net.apply({"params": params}, images), x, rtol=1e-5, atol=1e-6)
    kernels = params["hidden"]["layer"]["kernel"]
    assert not np.allclose(kernels[0], kernels[1])  # every step draws its own


@pytest.mark.parametrize("kernel_size", [0, 3])
def test_runs_side_by_side_are_those_that_train_alone(data, kernel_size):
    net, training = net_of(kernel_size=kernel_size), Training(3, 8, 0.9)
    init = jax.jit(net.init)
    drawn = [init(jax.random.key(i), data.test.images)["params"] for i in range(3)]
    keys, rates = jax.random.split(jax.random.key(9), 3), np.array([0.01, 0.02, 0.03])
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *drawn)
    together = plain_nets.train(net, training, stacked, rates, keys, data)
    assert together.test_error.shape == (3,)
    alone = plain_nets.train(
        net, training, jax.tree.map(lambda part: part[2:], stacked), rates[2:], keys[2:], data
    )
    for one, of_all in zip(alone, together, strict=True):
        np.testing.assert_allclose(one[0], of_all[2], rtol=1e-4)

    def loss(params, images, labels):
        logs = jax.nn.log_softmax(net.apply({"params": params}, images))
        return -jnp.mean(logs[jnp.arange(8), labels])

    gradient_of = jax.jit(jax.grad(loss))
    params, velocity = drawn[2], jax.tree.map(jnp.zeros_like, drawn[2])
    for step in range(3):
        chosen = jax.random.randint(jax.random.fold_in(keys[2], step), (8,), 0, 40)
        gradients = gradient_of(params, data.train.images[chosen], data.train.labels[chosen])
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, gradients)
        params = jax.tree.map(lambda p, v: p - 0.03 * v, params, velocity)
    after = plain_nets.mean_cosine(plain_nets.last_hidden(net, params, data.test.images))
    np.testing.assert_allclose(alone.cosine_after[0], after, rtol=1e-4)


def test_a_run_that_diverges_counts_as_a_whole_error(data):
    net = net_of()
    params = jax.jit(net.init)(jax.random.key(0), data.test.images)["params"]
    params = jax.tree.map(lambda part: part[None], params)
    key = jax.random.split(jax.random.key(0), 1)
    outcome = plain_nets.train(net, Training(20, 8, 0.9), params, np.array([1e9]), key, data)
    assert not outcome.finite[0]
    assert outcome.test_error[0] == outcome.validation_error[0] == 1


def test_the_mean_cosine_is_that_of_all_pairs():
    outputs = np.random.default_rng(0).normal(size=(5, 3, 2)) + 1
    flat = outputs.reshape(5, -1)
    pairs = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in itertools.combinations(flat, 2)
    ]
    for scale in (1, 1e-30, 1e30):
        measured = plain_nets.mean_cosine(jnp.asarray(scale * outputs, jnp.float32))
        np.testing.assert_allclose(measured, np.mean(pairs), rtol=1e-5)


def test_the_data_have_no_mean_and_unit_moment():
    data = plain_nets.load("digits", "test", "", 8, 250, 20)
    assert [len(part.labels) for part in data] == [1250, 250, 20]
    assert data.train.images.shape == (1250, 8, 8, 3)
    np.testing.assert_allclose(data.train.images.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(np.square(data.train.images).mean(), 1, rtol=1e-5)
    with pytest.raises(ValueError, match="held_out is 1500, expected fewer than the 1500"):
        plain_nets.load("digits", "test", "", 8, 1500, 20)


@pytest.mark.parametrize("rectifier", [RELU, TAILORED])
@pytest.mark.parametrize(("initializer", "kept"), [(XAVIER, 0.5), (HE, 1), (ORTHOGONAL, 1)])
def test_every_initialisation_has_the_rule_of_its_name(data, initializer, kept, rectifier):
    config = dataclasses.replace(SMALL, width=128)
    cell = Cell(14, initializer, rectifier)
    net = depth_cells.build(cell, config, 10)
    slope = pj.tailored_slope(13) if rectifier == TAILORED else 0.0
    assert net.slope == slope
    params = depth_cells.initial_params(net, cell, config, range(8), data)
    assert params["hidden"]["layer"]["kernel"].shape == (8, 12, 128, 128)
    second = np.square(params["hidden"]["layer"]["kernel"]).mean() * 128
    gain = 1 if initializer == XAVIER else 2 / (1 + slope**2)
    np.testing.assert_allclose(second, gain, rtol=0.01)


@pytest.mark.parametrize(("initializer", "mean"), [("LSUV", None), ("within + between", 0)])
def test_calibrated_nets_have_unit_outputs(data, initializer, mean):
    cell = Cell(14, initializer, PRELU)
    net = depth_cells.build(cell, SMALL, 10)
    params = depth_cells.initial_params(net, cell, SMALL, [0], data)
    batch = data.train.images[:16]
    outputs = plain_nets.last_hidden(net, jax.tree.map(lambda part: part[0], params), batch)
    if mean == 0:
        np.testing.assert_allclose(outputs.mean(axis=0), 0, atol=1e-4)
    else:
        np.testing.assert_allclose(outputs.std(), 1, rtol=1e-3)


def test_a_finished_cell_is_read_and_another_configuration_refused(tmp_path, data):
    cell = Cell(5, HE, PRELU)
    assert depth_cells.read(cell, SMALL, tmp_path, [0, 1]) is None
    runs = depth_cells.train(cell, SMALL, [0, 1], data)
    depth_cells.write(runs, cell, SMALL, tmp_path, [0, 1])
    again = depth_cells.read(cell, SMALL, tmp_path, [0, 1])
    for one, other in zip(runs.outcome, again.outcome, strict=True):
        np.testing.assert_allclose(one, other)
    other = dataclasses.replace(SMALL, width=7)
    with pytest.raises(ValueError, match="with width 6, and this command has 7.*--workdir"):
        depth_cells.read(cell, other, tmp_path, [0, 1])
    with pytest.raises(ValueError, match=r"with seeds \[0, 1\], and this command has \[0\]"):
        depth_cells.read(cell, SMALL, tmp_path, [0])
    file = cell.folder(tmp_path) / "runs.json"
    content = json.loads(file.read_text())
    content["outcome"]["finite"] = [[True]]
    words = json.loads(json.dumps(content))
    words["outcome"]["test_error"] = [["x"]]
    nothing = json.loads(json.dumps(content))
    nothing["outcome"]["test_error"] = [[None]]
    listed = {**content, "outcome": [1]}
    for damaged in ("{", '{"config": {}}', *map(json.dumps, (content, words, nothing, listed))):
        file.write_text(damaged)
        with pytest.raises(ValueError, match="runs.json.*Remove it"):
            depth_cells.read(cell, SMALL, tmp_path, [0, 1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"initializers": ("Hee",)}, "Unknown initialisation 'Hee'"),
        ({"rectifiers": ("GELU",)}, "Unknown rectifier 'GELU'"),
        ({"depths": (2,), "rectifiers": (RELU,)}, "depths holds 2, expected at least 3"),
        ({"depths": (5,)}, "depths holds 5, too few layers for a tailored rectifier"),
        ({"rates": (0.0,)}, "rates is .*expected rates above 0"),
        ({"rates": ("float('nan')",)}, "rates is .*expected values such as those"),
        ({"momentum": 1.0}, "momentum is 1.0, expected a number below 1"),
        ({"width": 0}, "width is 0, expected at least 1"),
        ({"trained": 1.5}, "trained is 1.5"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(tmp_path, fields, message):
    config = depth.EXPERIMENT.config("laptop", **fields)
    with pytest.raises(ValueError, match=message):
        depth.EXPERIMENT.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def runs_of(errors, validation=None):
    errors = np.atleast_2d(errors)
    validation = errors if validation is None else np.asarray(validation)
    zeros = np.zeros_like(errors)
    return Runs((0.1,) * len(errors), Outcome(zeros == 0, validation, errors, zeros, zeros))


def test_held_out_examples_choose_the_rate():
    runs = runs_of([[0.1, 0.2], [0.6, 0.3]], validation=[[0.5, 0.5], [0.9, 0.05]])
    assert runs.best == 1
    assert runs.errors == [0.6, 0.3]
    assert not runs.trains(0.5)
    assert runs.trains(0.61)


def test_a_run_that_diverged_is_a_cross_and_not_a_point(tmp_path):
    errors = {
        (depth_, HE, RELU): values
        for depth_, values in ((14, [0.1, 0.3]), (30, [0.2, np.nan]), (60, [np.nan, np.nan]))
    }
    figure = depth_figures.error_over_depth(errors, 0.5, "caption")
    (axes,) = figure.axes
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert [line.get_ydata() for line in crosses] == [[1.0], [1.0]]
    means = next(line for line in axes.lines if line.get_label() == RELU)
    np.testing.assert_allclose(means.get_ydata(), [0.2, 0.2, np.nan])
    assert "diverged" in figure.legends[0].get_texts()[-1].get_text()
    heat_map = depth_figures.heat_map(errors, "caption")
    assert [text.get_text() for text in heat_map.axes[0].texts] == ["20", "20×", "×"]
    few = {(14, HE, RELU): [0.1, 0.3]}
    assert len(depth_figures.error_over_depth(few, 0.5, "caption").legends[0].get_texts()) == 1


def test_the_claims():
    config = depth.Config()
    grid = {
        Cell(depth_, initializer, rectifier): runs_of([0.9, 0.8])
        for depth_ in config.depths
        for initializer in config.initializers
        for rectifier in config.rectifiers
    }
    outcomes = [claim.passed for claim in depth.judge(config, grid)]
    assert outcomes == [False, False, False, True, True]
    for depth_, initializer, rectifier in (
        *((d, HE, RELU) for d in (14, 30)),
        *((d, HE, TAILORED) for d in (14, 30, 60)),
        *((d, ORTHOGONAL, TAILORED) for d in (14, 30, 60, 100)),
        *((d, HE, PRELU) for d in (14, 30)),
    ):
        grid[Cell(depth_, initializer, rectifier)] = runs_of([0.2, 0.3])
    assert [claim.passed for claim in depth.judge(config, grid)] == [True] * 5
    assert depth.deepest(config, grid, ORTHOGONAL, TAILORED) == 100
    grid[Cell(100, HE, RELU)] = runs_of([0.2, 0.8])  # one seed is enough to refute
    grid[Cell(30, XAVIER, RELU)] = runs_of([0.2, 0.8])
    grid[Cell(60, ORTHOGONAL, RELU)] = runs_of([0.2, 0.3])
    assert [claim.passed for claim in depth.judge(config, grid)] == [
        *(False, True, False, False, False)
    ]
    few = {cell: runs for cell, runs in grid.items() if cell.depth == 14 and cell.initializer == HE}
    config = dataclasses.replace(config, depths=(14,), initializers=(HE,))
    assert [claim.statement.partition(" ")[0] for claim in depth.judge(config, few)] == [
        *("He:", "With")
    ]
