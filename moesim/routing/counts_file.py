"""Recorded expert counts as the routing of a scenario."""

from __future__ import annotations

from pathlib import Path

import msgspec

from moesim.errors import InputError
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


def drifting(routing: Routing, drift_steps: int) -> Routing:
    """The routing with its popularity turning in `drift_steps` engine steps. Raises InputError when negative."""
    if drift_steps < 0:
        raise InputError(f"drift_steps: {drift_steps} is out of range, must be 0 or more")
    return msgspec.structs.replace(routing, drift_steps=drift_steps) if drift_steps else routing


def read_counts(path: Path) -> Routing:
    """Tokens per expert of a file that `read_profile` knows, summed over time, as a popularity per layer.

    Raises:
        InputError: naming the file, place and value.
    """
    rows = tuple(tuple(float(value) for value in row) for row in read_profile(path).totals)
    return Routing(kind="counts", counts=rows, source=str(path))
