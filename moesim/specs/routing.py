"""How tokens are spread over experts, as a user states it (`uniform`, `zipf:1.2`, a file of counts)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from moesim.errors import InputError, nearest

Kind = Literal["uniform", "zipf", "eighty_twenty", "dirichlet", "identical", "counts"]
_DEFAULTS: dict[str, float] = {"uniform": 0.0, "zipf": 1.0, "eighty_twenty": 0.8, "dirichlet": 0.3, "identical": 0.0}
_MEANING = {
    "zipf": "exponent, 0 to 4",
    "eighty_twenty": "share of tokens that go to the first fifth of the experts, 0.2 to 0.99",
    "dirichlet": "concentration, 0.01 to 1000",
}
_RANGES = {"zipf": (0.0, 4.0), "eighty_twenty": (0.2, 0.99), "dirichlet": (0.01, 1000.0)}


class Routing(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Expert popularity.

    `strength` is the Zipf exponent, the share of traffic of the hot fifth, or the Dirichlet concentration.
    `identical`: every token chooses the same experts (a batch of copies of one prompt). `counts`
    [layers][experts]: recorded tokens per expert.
    """

    kind: Kind = "uniform"
    strength: float = 0.0
    counts: tuple[tuple[float, ...], ...] = ()
    source: str = "distribution"


UNIFORM = Routing()


def parse_routing(text: str) -> Routing:
    """Read `uniform`, `zipf[:exponent]`, `eighty_twenty[:share]`, `dirichlet[:concentration]`, `identical`
    or a file of counts.

    Raises:
        InputError: unknown word, strength out of range, or a file that holds no counts.
    """
    word, _, number = text.partition(":")
    if word in _DEFAULTS:
        return Routing(kind=word, strength=_strength(word, number))  # pyright: ignore[reportArgumentType]
    if Path(text).suffix in {".csv", ".json", ".npz", ".npy"} or Path(text).exists():
        from moesim.specs.counts_file import read_counts

        return read_counts(Path(text))
    raise InputError(f"routing: unknown {text!r}; {nearest(word, _DEFAULTS)} (or a file of expert counts)")


def _strength(word: str, number: str) -> float:
    if not number:
        return _DEFAULTS[word]
    if word not in _RANGES:
        raise InputError(f"routing: {word!r} takes no number, got {number!r}")
    low, high = _RANGES[word]
    try:
        value = float(number)
    except ValueError:
        raise InputError(f"routing: {number!r} in '{word}:{number}' is not a number ({_MEANING[word]})") from None
    if not low <= value <= high:
        raise InputError(f"routing: {value} in '{word}:{number}' is out of range ({_MEANING[word]})")
    return value
