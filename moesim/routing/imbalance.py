"""How uneven a load is: Gini, coefficient of variation, max over mean."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def gini(loads: FloatArray) -> FloatArray:
    """Gini coefficient along the last axis: 0 when all are equal, (n - 1) / n when one takes everything.

    `loads` [..., n] non-negative; a row that sums to zero counts as even.
    """
    ordered = np.sort(loads, axis=-1)
    size = loads.shape[-1]
    rank = np.arange(1, size + 1)
    total = ordered.sum(axis=-1)
    weighted = ((2 * rank - size - 1) * ordered).sum(axis=-1)
    return np.divide(weighted, size * total, out=np.zeros_like(total, dtype=float), where=total > 0)


def coefficient_of_variation(loads: FloatArray) -> FloatArray:
    """Standard deviation over mean along the last axis (0 for an empty row)."""
    mean = loads.mean(axis=-1)
    return np.divide(loads.std(axis=-1), mean, out=np.zeros_like(mean, dtype=float), where=mean > 0)


def max_over_mean(loads: FloatArray) -> FloatArray:
    """Largest load over the mean along the last axis (1 for an empty row)."""
    mean = loads.mean(axis=-1)
    return np.divide(loads.max(axis=-1), mean, out=np.ones_like(mean, dtype=float), where=mean > 0)
