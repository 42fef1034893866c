"""Units as the tools write them (they change from row to row), turned into SI.

Nsight Compute's prefixes are decimal (32,768 bytes of shared memory stand as 32.77 Kbyte/block). A unit that is not
a time, bytes, a rate or a frequency is kept as it is.
"""

from __future__ import annotations

import re

_PREFIXES = {"": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_LONG = {f"{prefix}{word}": f"{prefix}s" for prefix in ("n", "u", "m", "") for word in ("second", "sec")}
_TIME = re.compile(r"^(?P<prefix>[num]?)s$")
_BYTES = re.compile(r"^(?P<prefix>[KMGTPkmgtp]?)(?:byte|bytes|B)$")
_HERTZ = re.compile(r"^(?P<prefix>[KMGTkmgt]?)hz$", re.IGNORECASE)


def to_si(value: float, unit: str) -> tuple[float, str]:
    """The value in SI and the SI unit.

    >>> to_si(8.4, "Mbyte")
    (8400000.0, 'byte')
    >>> to_si(2.5, "Gbyte/second")
    (2500000000.0, 'byte/s')
    """
    above, slash, below = unit.strip().partition("/")
    scale, top = _simple(above)
    if not slash:
        return value * scale, top
    divisor, bottom = _simple(below)
    return value * scale / divisor, f"{top}/{bottom}"


def time_scale(unit: str) -> float | None:
    """Seconds in one `unit` ("ns", "usecond", ...), or None when it is no time."""
    scale, plain = _simple(unit)
    return scale if plain == "s" else None


def _simple(unit: str) -> tuple[float, str]:
    word = _LONG.get(unit.lower(), unit)
    if found := _TIME.match(word):
        return _PREFIXES[found["prefix"]], "s"
    if found := _BYTES.match(word):
        return _PREFIXES[found["prefix"].upper()], "byte"
    if found := _HERTZ.match(word):
        return _PREFIXES[found["prefix"].upper()], "Hz"
    return 1.0, word
