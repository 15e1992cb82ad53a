"""Look-up of names, with an error that lists the valid ones and suggests the nearest."""

import difflib
import itertools
import re
from collections.abc import Iterable

_SAME_NAME, _SAME_WORD = 0.9, 0.6  # lowest similarity, as computed by `difflib`


def check(kind: str, given: str, valid: Iterable[str]) -> None:
    """Raise a ValueError that lists the valid names and suggests a near one, unless given is valid.

    Args:
        kind: the kind of object that is named, e.g. 'initializer'.
        given: the name to check.
        valid: the valid names.
    """
    choices = list(valid)
    if given in choices:
        return
    nearest = _nearest(str(given), choices)
    hint = f" Did you mean {nearest!r}?" if nearest else ""
    raise ValueError(f"Unknown {kind} {given!r}.{hint} Valid: {', '.join(choices)}.")


def _nearest(given: str, choices: list[str]) -> str | None:
    """Return the name that ``given`` misspells or abbreviates; None if there is none.

    Names are compared word by word, so that 'kaiming_normal' does not count as a misspelt
    'xavier_normal', with which it shares most letters, nor 'normal' as a misspelt 'he_normal'.
    """
    words = _words(given)
    starts = [name for name in choices if words and _words(name)[: len(words)] == words]
    if len(starts) == 1:
        return starts[0]
    near = [name for name in choices if _is_near(words, _words(name))]
    return max(near, key=lambda name: _closeness(given.lower(), name.lower()), default=None)


def _closeness(a: str, b: str) -> tuple[float, int]:
    """Return the similarity and the length of the common start, which breaks ties."""
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
