"""One formula for single steps (plain floats, fast) and for many at once (arrays)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

Numeric = Any
"""A float, or an array of floats."""


Record = TypeVar("Record")


class Arithmetic(NamedTuple):
    """The operations that differ between floats and arrays."""

    least: Callable[[Numeric, Numeric], Numeric]
    most: Callable[[Numeric, Numeric], Numeric]
    ceil: Callable[[Numeric], Numeric]


FLOATS = Arithmetic(min, max, math.ceil)
ARRAYS = Arithmetic(np.minimum, np.maximum, np.ceil)


def in_floats(record: Record) -> Record:
    """A copy of a dataclass with every numpy scalar turned into a plain float."""
    if not is_dataclass(record):
        raise TypeError(f"{type(record).__name__} is no dataclass")
    return type(record)(*(float(getattr(record, item.name)) for item in fields(record)))
