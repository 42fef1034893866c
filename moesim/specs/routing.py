"""How tokens are spread over experts, as a user states it (`uniform`, `zipf:1.2`, a file of counts)."""

from __future__ import annotations

from typing import Literal

import msgspec

from moesim.errors import InputError, nearest

Kind = Literal["uniform", "zipf", "falling", "power_law", "eighty_twenty", "dirichlet", "identical", "counts"]
_DEFAULTS: dict[str, float] = {
    "uniform": 0.0,
    "zipf": 1.0,
    "falling": 1.0,
    "power_law": 1.2,
    "eighty_twenty": 0.8,
    "dirichlet": 0.3,
    "identical": 0.0,
}
_MEANING = {
    "zipf": "exponent, 0 to 4",
    "falling": "exponent, 0 to 4",
    "power_law": "exponent, 0.1 to 4",
    "eighty_twenty": "share of tokens that go to the first fifth of the experts, 0.2 to 0.99",
    "dirichlet": "concentration, 0.01 to 1000",
}
_RANGES = {
    "zipf": (0.0, 4.0),
    "falling": (0.0, 4.0),
    "power_law": (0.1, 4.0),
    "eighty_twenty": (0.2, 0.99),
    "dirichlet": (0.01, 1000.0),
}


class Routing(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Expert popularity.

    `falling`: Zipf in the order of the experts' numbers, in every layer alike, so that ranks which hold neighbouring
    experts are as unevenly loaded as they can be; the other skewed kinds have another order in every layer.
    `strength` is the Zipf exponent, the exponent of the power law that loads are drawn from, the share of traffic of
    the hot fifth, or the Dirichlet concentration.
    `identical`: every token chooses the same experts (a batch of copies of one prompt). `counts`
    [layers][experts]: recorded tokens per expert. `drift_steps`: engine steps in which popularity turns into another
    draw of the same skew, and then back (0: it stays).
    """

    kind: Kind = "uniform"
    strength: float = 0.0
    counts: tuple[tuple[float, ...], ...] = ()
    source: str = "distribution"
    drift_steps: int = 0


UNIFORM = Routing()


def parse_routing(text: str) -> Routing:
    """Read `uniform`, `zipf[:exponent]`, `falling[:exponent]`, `power_law[:exponent]`, `eighty_twenty[:share]`,
    `dirichlet[:concentration]` or `identical`.

    Raises:
        InputError: unknown word or strength out of range.
    """
    word, _, number = text.partition(":")
    if word in _DEFAULTS:
        return Routing(kind=word, strength=_strength(word, number))  # pyright: ignore[reportArgumentType]
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
