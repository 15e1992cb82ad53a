import pytest

from prelu_jax import names


def test_a_valid_name_passes_and_a_misspelt_one_is_told_the_nearest():
    names.check("fruit", "apple", ["apple", "pear"])
    with pytest.raises(
        ValueError, match="Unknown fruit 'appel'. Did you mean 'apple'.*apple, pear"
    ):
        names.check("fruit", "appel", ["apple", "pear"])


def test_what_is_far_from_every_name_is_told_none_of_them():
    with pytest.raises(ValueError, match="^Unknown arch 'resnet50'. Valid: vgg_19, small_14.$"):
        names.check("arch", "resnet50", ["vgg_19", "small_14"])
