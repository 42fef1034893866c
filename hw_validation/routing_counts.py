"""Which experts a batch really touched, from the routed experts that an engine returns with each request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.routing.imbalance import gini, max_over_mean


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
    loads = counts.reshape(steps, layers, num_experts).astype(float)
    distinct = (loads > 0).sum(axis=2)
    maximum, ginis = max_over_mean(loads), gini(loads)
    rows = [
        (float(np.round(a, 3)), float(np.round(b, 3)), float(np.round(c, 4)))
        for a, b, c in zip(distinct.mean(axis=0), maximum.mean(axis=0), ginis.mean(axis=0), strict=True)
    ]
    total = loads.sum(axis=0)
    values: dict[str, float | None] = {
        "distinct_experts_mean": float(distinct.mean()),
        "routed_max_over_mean": float(maximum.mean()),
        "routed_gini": float(ginis.mean()),
        "routed_total_gini": float(gini(total).mean()),
        "routed_total_max_over_mean": float(max_over_mean(total).mean()),
        "routed_steps": float(steps),
    }
    return RoutingCounts(values, rows)
