"""Values that a configuration cannot have are refused by the field's name."""

import dataclasses
import importlib
import math

import pytest

from experiments import convergence_30, data_dependent, learning
from experiments.harness import configs
from prelu_jax.training import config as config_lib
from prelu_jax.training.config import TrainConfig
from prelu_jax.training.recipe import resolve

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
    resolve(configs.train_config(config, initializer="he_normal"))


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        (data_dependent.Config, {"ladder": (0.1, math.nan)}),
        (data_dependent.Config, {"equal": math.inf}),
        (data_dependent.Config, {"ladder_steps": 10**20}),
        (data_dependent.Config, {"archs": ()}),
        (learning.Config, {"scales": (32, -1)}),
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


EXPERIMENTS = (
    *("borders", "convergence_22", "convergence_30", "data_dependent", "depth", "ensemble"),
    *("large_models", "late_start", "learning", "rates", "rectifiers", "signal_profile"),
    *("takeoff", "transfer"),
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
