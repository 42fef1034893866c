"""Which expert-parallel rank holds which expert."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


def expert_ranks(num_experts: int, expert_parallel_size: int, expert_map: str) -> IntArray:
    """Rank of each expert [num_experts]: `linear` gives neighbours to one rank, `round_robin` deals them out.

    Source: vLLM's `expert_placement_strategy`.
    """
    experts = np.arange(num_experts)
    if expert_map == "round_robin":
        return experts % expert_parallel_size
    return experts // (num_experts // expert_parallel_size)


def sum_by_rank(values: NDArray[np.float64], ranks: IntArray, num_ranks: int) -> NDArray[np.float64]:
    """Sum per-expert values [..., experts] over the experts of each rank -> [..., num_ranks]."""
    order = np.argsort(ranks, kind="stable")
    per_rank = values.shape[-1] // num_ranks
    return values[..., order].reshape(*values.shape[:-1], num_ranks, per_rank).sum(axis=-1)
