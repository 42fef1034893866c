"""Percentiles of request and token times."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and percentiles of a quantity, in the unit of its name."""

    mean: float
    p50: float
    p90: float
    p99: float

    def as_dict(self) -> dict[str, float]:
        """Plain data for JSON."""
        return asdict(self)


def spread(values: FloatArray) -> Spread | None:
    """Mean and percentiles (linear interpolation, as numpy and vLLM's client); None without values."""
    if not len(values):
        return None
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    return Spread(float(values.mean()), float(p50), float(p90), float(p99))


def weighted_spread(values: FloatArray, weights: FloatArray) -> Spread | None:
    """As `spread` for values that occur `weights` times each (lower value at a boundary, no interpolation)."""
    total = weights.sum() if len(weights) else 0.0
    if total <= 0:
        return None
    order = np.argsort(values, kind="stable")
    ordered, cumulative = values[order], np.cumsum(weights[order])
    at = np.searchsorted(cumulative, np.array([0.5, 0.9, 0.99]) * total)
    p50, p90, p99 = ordered[np.minimum(at, len(ordered) - 1)]
    return Spread(float((values * weights).sum() / total), float(p50), float(p90), float(p99))
