"""Values that a configuration cannot have are refused by the field's name."""

import dataclasses
import importlib
import math
import re
from pathlib import Path

import pytest

from experiments import convergence_30, data_dependent, learning
from experiments.harness import configs
from prelu_jax.training import config as config_lib
from prelu_jax.training.config import TrainConfig
from prelu_jax.training.recipe import resolve
from tests.experiments.conftest import ROOT

BAD = {float: (math.nan, math.inf, -math.inf, -1.0, 1e39), int: (-1, 10**20, -(10**20))}
CASES = [
    (field.name, value)
    for field in dataclasses.fields(TrainConfig)
    for value in BAD.get(type(field.default), ())
]


@pytest.mark.parametrize(("field", "value"), CASES)
def test_no_number_is_negative_infinite_or_beyond_32_bits(field, value):
    with pytest.raises(ValueError, match=rf"config\.{field} is .*, expected "):
        resolve(TrainConfig(**{"arch": "small_14_reduced", field: value}))


def test_the_laptop_scale_can_be():
    config = convergence_30.EXPERIMENT.config()
    config_lib.check_values(config)
    config_lib.check_values(data_dependent.Config(ladder=(1,)))  # an int for a float
    resolve(configs.train_config(config, initializer="he_normal"))


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        (data_dependent.Config, {"ladder": (0.1, math.nan)}),
        (data_dependent.Config, {"equal": math.inf}),
        (data_dependent.Config, {"ladder_steps": 10**20}),
        (data_dependent.Config, {"archs": ()}),
        (learning.Config, {"scales": (32, -1)}),
        (learning.Config, {"scales": ("a",)}),
        (learning.Config, {"scales": (32.5,)}),
        (data_dependent.Config, {"archs": (3,)}),
        (data_dependent.Config, {"ladder": (0.1, "b")}),
    ],
)
def test_experiments_own_fields_too(config, fields):
    (name,) = fields
    with pytest.raises(ValueError, match=rf"config\.{name} is "):
        config_lib.check_values(config(**fields))


@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan, (0.1, 2.0)])
def test_errors_that_claims_compare_with_are_fractions(value):
    with pytest.raises(ValueError, match=r"config.learned is .*, expected fractions"):
        configs.check_fractions(learning.Config(learned=value), "learned")
    configs.check_fractions(learning.Config(learned=(0.0, 1.0)), "learned")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"classes": "0-2"}, "config.stalled is 0.8, expected a number from 0.533 to below 0.667"),
        ({"stalled": 0.5}, "config.stalled is 0.5, expected a number from 0.72 to below 0.9"),
        ({"stop_error": 0.95}, "config.stop_error is 0.95, expected a number from 0 to below 0.9"),
        ({"converged": 2.0}, "config.converged is 2.0, expected fractions"),
    ],
)
def test_limits_in_claims_fit_the_number_of_classes(fields, expected):
    config = convergence_30.EXPERIMENT.config("laptop", **fields)
    with pytest.raises(ValueError, match=re.escape(expected)):
        convergence_30.EXPERIMENT.plan(config, Path("w"), [0])


EXPERIMENTS = sorted(
    {file.stem for file in (ROOT / "experiments").glob("*.py")} - {"__init__", "report"}
)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_field_of_an_experiment_has_a_text_and_no_text_is_left_over(name):
    experiment = importlib.import_module(f"experiments.{name}").EXPERIMENT
    for config in experiment.scales.values():
        fields = [field.name for field in dataclasses.fields(config)]
        texts = config_lib.field_texts(type(config))
        assert sorted(texts) == sorted(fields)
        for text in texts.values():
            assert 10 < len(text) < 160
            assert text.endswith(".")


def test_a_class_says_more_of_a_field_than_its_base():
    class Base:
        """Base.

        Attributes:
            one: of the base: with a colon.
            two: of the base,
                in two lines.
        """

    class Derived(Base):
        """Derived.

        Attributes:
            one: of the class.
        """

    assert config_lib.field_texts(Derived) == {
        "one": "of the class.",
        "two": "of the base, in two lines.",
    }
    assert config_lib.field_texts(object) == {}
