"""Looking a name up among the valid ones, with an error that helps."""

import difflib
from collections.abc import Iterable


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
    nearest = difflib.get_close_matches(str(given), choices, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"Unknown {kind} {given!r}.{hint} Valid: {', '.join(choices)}.")
