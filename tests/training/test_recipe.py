"""The lookup of a configuration's names, in one place."""

import ast
import dataclasses
from pathlib import Path

import pytest

import prelu_jax
from prelu_jax import datadep
from prelu_jax.training.recipe import network, resolve
from tests.training.conftest import tiny_config

pytestmark = pytest.mark.usefixtures("tiny_arch")

NAMES = {
    *("dataset", "data_dir", "train_split", "test_split", "classes", "arch", "padding"),
    *("rectifier", "initializer", "mode", "dtype", "drop_epochs"),
}


def test_a_recipe_holds_objects():
    config = tiny_config(datadep="pca,between_layer", classes="0-3", rectifier="prelu")
    recipe = resolve(config)
    assert recipe.net == network(config, 4)
    assert recipe.calibration == datadep.resolve("pca,between_layer")
    assert recipe.train.class_names == recipe.test.class_names == ("0", "1", "2", "3")
    assert recipe.steps_per_epoch == len(recipe.train) / 16
    assert (recipe.crop.size, recipe.crop.max_side, recipe.moments) == (32, 32, None)


def test_recipes_that_differ_in_the_seed_share_the_optimizer_and_the_net():
    """Otherwise every seed would compile its own step."""
    first, second = (resolve(tiny_config(seed=seed, drop_epochs="0.1,0.2")) for seed in (0, 1))
    assert first.optimizer is second.optimizer
    assert first.net == second.net
    assert first.optimizer.drop_steps == (9, 19)


def test_names_are_read_in_the_recipe_alone():
    """No other module of training or of runs reads a field that holds a name."""
    root = Path(prelu_jax.__file__).parent
    readers = {name: set() for name in NAMES}
    for file in (*(root / "training").glob("*.py"), *(root / "runs").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Attribute) and node.attr in NAMES):
                continue
            owner = node.value
            owner = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
            if owner in ("config", "_config", "c"):
                readers[node.attr].add(file.name)
    assert readers == {name: {"recipe.py"} for name in NAMES}


def test_the_names_are_fields():
    assert {field.name for field in dataclasses.fields(tiny_config())} >= NAMES
