"""How uneven a load is: Gini, variation, max over mean, Jain, entropy, hot and cold experts, balancedness."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
HOT, COLD = 2.0, 0.2
"""An expert is hot above twice its layer's mean load, cold below a fifth of it."""


def gini(loads: FloatArray) -> FloatArray:
    """Gini coefficient along the last axis: 0 when all are equal, (n - 1) / n when one takes everything.

    `loads` [..., n] non-negative; a row that sums to zero counts as even.
    """
    ordered = np.sort(loads, axis=-1)
    size = loads.shape[-1]
    rank = np.arange(1, size + 1)
    total = ordered.sum(axis=-1)
    weighted = ((2 * rank - size - 1) * ordered).sum(axis=-1)
    return np.divide(np.maximum(weighted, 0), size * total, out=np.zeros_like(total, dtype=float), where=total > 0)


def coefficient_of_variation(loads: FloatArray) -> FloatArray:
    """Standard deviation over mean along the last axis (0 for an empty row)."""
    mean = loads.mean(axis=-1)
    return np.divide(loads.std(axis=-1), mean, out=np.zeros_like(mean, dtype=float), where=mean > 0)


def max_over_mean(loads: FloatArray) -> FloatArray:
    """Largest load over the mean along the last axis (1 for an empty row)."""
    mean = loads.mean(axis=-1)
    return np.divide(loads.max(axis=-1), mean, out=np.ones_like(mean, dtype=float), where=mean > 0)


def jain_index(loads: FloatArray) -> FloatArray:
    """Jain's fairness index along the last axis: 1 when even, 1 / n when one takes everything (1 for an empty row)."""
    square = loads.sum(axis=-1) ** 2
    even = loads.shape[-1] * (loads**2).sum(axis=-1)
    return np.divide(square, even, out=np.ones_like(square, dtype=float), where=even > 0)


def entropy_bits(loads: FloatArray) -> FloatArray:
    """Entropy of the shares along the last axis in bits: log2(n) when even, 0 when one takes everything."""
    total = loads.sum(axis=-1, keepdims=True)
    shares = np.divide(loads, total, out=np.zeros_like(loads, dtype=float), where=total > 0)
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    return -(shares * logs).sum(axis=-1)


def hot_experts(loads: FloatArray) -> list[int]:
    """Numbers of the experts with more than twice the mean load of their layer; `loads` [experts]."""
    return [int(expert) for expert in np.flatnonzero(loads > HOT * loads.mean())]


def cold_experts(loads: FloatArray) -> list[int]:
    """Numbers of the experts with less than a fifth of the mean load of their layer; `loads` [experts]."""
    return [int(expert) for expert in np.flatnonzero(loads < COLD * loads.mean())]


def balancedness_ratio_of_sums(rank_loads: FloatArray) -> float:
    """vLLM's balancedness: mean rank load summed over layers, over the fullest rank's load summed over layers.

    `rank_loads` [layers, ranks]. Busy layers count more. (Log lines before vLLM pull request 39178 averaged over
    the wrong axis.)
    """
    top = float(rank_loads.max(axis=-1).sum())
    return float(rank_loads.mean(axis=-1).sum()) / top if top > 0 else 1.0


def balancedness_mean_of_ratios(rank_loads: FloatArray) -> float:
    """SGLang's balancedness: mean over layers of mean rank load over the fullest rank's (its utilisation rate).

    `rank_loads` [layers, ranks]; layers without tokens are left out.
    """
    top = rank_loads.max(axis=-1)
    used = top > 0
    return float((rank_loads.mean(axis=-1)[used] / top[used]).mean()) if used.any() else 1.0
