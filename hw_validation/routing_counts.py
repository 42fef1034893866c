"""Which experts a batch really touched, from the routed experts that an engine returns with each request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class RoutingCounts(NamedTuple):
    """Means over steps and layers, and one row a layer: (distinct experts, most loaded over mean, Gini)."""

    values: dict[str, float | None]
    rows: list[tuple[float, float, float]]


def summarize_routing(routed: Sequence[NDArray[np.integer]], num_steps: int, num_experts: int) -> RoutingCounts:
    """Count how the last `num_steps` tokens of each request fell on the experts, step by step and layer by layer.

    Args:
        routed: one array [tokens, layers, top_k] a request; requests of one batch that ended together.
        num_steps: decode steps to count, from the end. Requests whose prompt was read a few steps later than the
            others' are counted as if they had kept pace: a token more or less changes none of these figures.
        num_experts: experts of a layer.
    """
    tail = np.stack([request[-num_steps:] for request in routed]).astype(np.int64)
    _, steps, layers, _ = tail.shape
    place = (np.arange(steps)[:, None] * layers + np.arange(layers))[None, :, :, None]
    counts = np.bincount((place * num_experts + tail).ravel(), minlength=steps * layers * num_experts)
    loads = counts.reshape(steps, layers, num_experts)
    distinct = (loads > 0).sum(axis=2)
    maximum = loads.max(axis=2) / loads.mean(axis=2)
    ginis = _gini(loads)
    rows = [
        (float(np.round(a, 3)), float(np.round(b, 3)), float(np.round(c, 4)))
        for a, b, c in zip(distinct.mean(axis=0), maximum.mean(axis=0), ginis.mean(axis=0), strict=True)
    ]
    total = loads.sum(axis=0)
    values: dict[str, float | None] = {
        "distinct_experts_mean": float(distinct.mean()),
        "routed_max_over_mean": float(maximum.mean()),
        "routed_gini": float(ginis.mean()),
        "routed_total_gini": float(_gini(total).mean()),
        "routed_total_max_over_mean": float((total.max(axis=1) / total.mean(axis=1)).mean()),
        "routed_steps": float(steps),
    }
    return RoutingCounts(values, rows)


def _gini(loads: NDArray[np.int64]) -> NDArray[np.float64]:
    """Gini index over the last axis."""
    ordered = np.sort(loads, axis=-1)
    count = ordered.shape[-1]
    rank = np.arange(1, count + 1)
    return 2 * (rank * ordered).sum(axis=-1) / (count * ordered.sum(axis=-1)) - (count + 1) / count
