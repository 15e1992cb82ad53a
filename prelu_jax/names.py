"""Looking a name up among the valid ones, with an error that helps."""

import difflib
import itertools
import re
from collections.abc import Iterable

_SAME_NAME, _SAME_WORD = 0.9, 0.6  # least similarity, as `difflib` has it


def check(kind: str, given: str, valid: Iterable[str]) -> None:
    """Raises a ValueError that names a valid name nearby, if one is, and lists all of them.

    Args:
        kind: what the name stands for, e.g. 'initializer'.
        given: the name to check.
        valid: the names that exist.
    """
    choices = list(valid)
    if given in choices:
        return
    nearest = _nearest(str(given), choices)
    hint = f" Did you mean {nearest!r}?" if nearest else ""
    raise ValueError(f"Unknown {kind} {given!r}.{hint} Valid: {', '.join(choices)}.")


def _nearest(given: str, choices: list[str]) -> str | None:
    """Return the name that ``given`` misspells or abbreviates; None if there is none.

    Names are compared word by word: 'kaiming_normal' is no misspelt 'xavier_normal', although most
    of its letters are the same, nor is 'normal' a misspelt 'he_normal'.
    """
    words = _words(given)
    starts = [name for name in choices if words and _words(name)[: len(words)] == words]
    if len(starts) == 1:
        return starts[0]
    near = [name for name in choices if _is_near(words, _words(name))]
    return max(near, key=lambda name: _closeness(given.lower(), name.lower()), default=None)


def _closeness(a: str, b: str) -> tuple[float, int]:
    """Return the similarity and the length of the common start, which decides between equals."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
    return _similarity(a, b), len(list(same))


def _is_near(words: list[str], others: list[str]) -> bool:
    if _similarity("".join(words), "".join(others)) >= _SAME_NAME:
        return True
    return len(words) == len(others) and all(map(_is_near_word, words, others))


def _is_near_word(word: str, other: str) -> bool:
    both_numbers = word.isdecimal() and other.isdecimal()
    return both_numbers or _similarity(word, other) >= _SAME_WORD


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W_]+", name.lower())


def _similarity(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()
