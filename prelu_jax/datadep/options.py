"""Checks of the types of methods' options; their ranges the methods check."""

import numbers
from typing import Any

_WORDS = {bool: "True or False", numbers.Integral: "an integer", numbers.Real: "a number"}


def check_type(method: Any, option: str, expected: type) -> None:
    """Raises a TypeError that names the option, what it is and what is expected.

    Args:
        method: the method, with its options as attributes.
        option: the name of one.
        expected: `bool`, `numbers.Integral` or `numbers.Real`; a bool is none of the others.
    """
    value = getattr(method, option)
    if not isinstance(value, expected) or isinstance(value, bool) is not (expected is bool):
        raise TypeError(
            f"{type(method).__name__}: {option} is {value!r}, expected {_WORDS[expected]}. Options "
            f"are best given by name, {option}=..."
        )
