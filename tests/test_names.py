import pytest

from prelu_jax import names


def test_a_valid_name_passes_and_a_misspelt_one_is_told_the_nearest():
    names.check("fruit", "apple", ["apple", "pear"])
    with pytest.raises(
        ValueError, match="Unknown fruit 'appel'. Did you mean 'apple'.*apple, pear"
    ):
        names.check("fruit", "appel", ["apple", "pear"])
