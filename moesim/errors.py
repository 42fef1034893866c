"""The one exception a user can cause, and how its message is worded."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input. The message is one line that names the place, the value and the nearest right answer."""


def nearest(word: str, choices: Iterable[str], count: int = 3) -> str:
    """Phrase naming the choices closest to `word`, or all of them when none is close.

    >>> nearest("mixtral-8x7", ["mixtral-8x7b", "dbrx"])
    "did you mean 'mixtral-8x7b'?"
    """
    known = sorted(set(choices))
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), list(by_lower), n=count, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(by_lower[name]) for name in close) + "?"
    return "known: " + ", ".join(known)
