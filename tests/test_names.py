import pytest

from prelu_jax import names


def test_a_valid_name_passes_and_the_error_about_a_misspelt_one_suggests_the_nearest():
    names.check("fruit", "apple", ["apple", "pear"])
    with pytest.raises(
        ValueError, match="Unknown fruit 'appel'. Did you mean 'apple'.*apple, pear"
    ):
        names.check("fruit", "appel", ["apple", "pear"])


def test_nothing_is_suggested_for_a_name_far_from_all():
    with pytest.raises(ValueError, match="^Unknown arch 'resnet50'. Valid: vgg_19, small_14.$"):
        names.check("arch", "resnet50", ["vgg_19", "small_14"])


RULES = ["he_normal", "he_uniform", "xavier_normal", "orthogonal", "delta_orthogonal", "fan_in"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("he_nromal", "he_normal"),
        ("he_norm", "he_normal"),
        ("HeNormal", "he_normal"),
        ("he-normal", "he_normal"),
        ("xavier_normal_", "xavier_normal"),
        ("orthonormal", "orthogonal"),
        ("delta", "delta_orthogonal"),
        ("fan-in", "fan_in"),
    ],
)
def test_a_misspelt_or_abbreviated_name_is_recognised(given, expected):
    with pytest.raises(ValueError, match=f"Did you mean '{expected}'"):
        names.check("rule", given, RULES)


def test_of_names_that_are_as_near_the_one_with_the_longer_common_start_is_meant():
    with pytest.raises(ValueError, match="Did you mean 'small_30'"):
        names.check("arch", "small_31", ["small_14", "small_30"])


@pytest.mark.parametrize(
    "given",
    [
        *("lecun_normal", "kaiming_normal", "truncated_normal", "random_normal", "he_truncated"),
        *("normal", "uniform", "lecun_orthogonal", "he", "fan_sum", "", "_", "variance_scaling"),
    ],
)
def test_a_name_that_shares_a_word_with_another_rule_is_not_taken_for_it(given):
    with pytest.raises(ValueError, match=f"^Unknown rule '{given}'. Valid: he_normal, he_uni"):
        names.check("rule", given, RULES)
