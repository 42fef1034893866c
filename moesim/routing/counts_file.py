"""Recorded expert counts as the routing of a scenario."""

from __future__ import annotations

from pathlib import Path

from moesim.routing.profile_files import read_profile
from moesim.routing.raw_files import SUFFIXES
from moesim.specs.routing import Routing, parse_routing


def find_routing(text: str) -> Routing:
    """The routing that `text` names: a word of `parse_routing`, or a file of recorded routing.

    Raises:
        InputError: unknown word, strength out of range, or a file that cannot be used.
    """
    if Path(text).suffix in SUFFIXES or Path(text).is_file():
        return read_counts(Path(text))
    return parse_routing(text)


def read_counts(path: Path) -> Routing:
    """Tokens per expert of a file that `read_profile` knows, summed over time, as a popularity per layer.

    Raises:
        InputError: naming the file, place and value.
    """
    rows = tuple(tuple(float(value) for value in row) for row in read_profile(path).totals)
    return Routing(kind="counts", counts=rows, source=str(path))
