"""Plans that do not look at the load: neighbours together, or dealt out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.placement.packing import pack

IntArray = NDArray[np.int64]


def linear(num_experts: int, num_slots: int, num_ranks: int) -> IntArray:
    """Map [slots]: experts in order, then the first ones again as replicas, cut into equal ranks.

    Source: vLLM's initial physical-to-logical map (`expert_placement_strategy` linear). Where that would put an
    expert twice on one rank the replica goes to the nearest rank that lacks it.
    """
    experts = np.arange(num_slots) % num_experts
    return _nearest(experts, np.arange(num_slots) // (num_slots // num_ranks), num_ranks)


def round_robin(num_experts: int, num_slots: int, num_ranks: int) -> IntArray:
    """Map [slots]: expert e on rank e mod ranks; replicas of the first experts deal on from there.

    Source: vLLM's `expert_placement_strategy` round_robin; replicas that would meet their original move on.
    """
    experts = np.arange(num_slots) % num_experts
    return _nearest(experts, np.arange(num_slots) % num_ranks, num_ranks)


def _nearest(experts: IntArray, wanted: IntArray, num_ranks: int) -> IntArray:
    """Give each replica its wanted rank, or the next one with room that lacks the expert."""
    rank_slots = len(experts) // num_ranks
    held: list[list[int]] = [[] for _ in range(num_ranks)]
    for expert, first in zip(experts.tolist(), wanted.tolist(), strict=True):
        for step in range(num_ranks):
            rank = (first + step) % num_ranks
            if len(held[rank]) < rank_slots and expert not in held[rank]:
                held[rank].append(expert)
                break
        else:
            return pack(np.sort(experts).tolist(), [1.0] * len(experts), num_ranks, rank_slots)
    return np.array(held, dtype=np.int64).ravel()
