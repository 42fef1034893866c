"""Affinity: experts that serve the same tokens share a rank, or at least a node, so that tokens travel less."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from moesim.placement.replicas import presence, rank_loads_of, replica_counts

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
_MOST_SWAPS = 2000
_NODE_WEIGHT = 4.0
"""Worth of sharing a node against sharing a rank as well: a network adapter is 5 to 18 times slower than the fabric
inside the node, but the copy inside the node remains (the copy between nodes is saved once)."""


def cluster_affine(
    loads: FloatArray,
    physical: IntArray,
    num_ranks: int,
    num_nodes: int,
    coactivation: FloatArray,
    slack: float,
    node_weight: float = _NODE_WEIGHT,
    ends_s: float = float("inf"),
) -> IntArray:
    """Swap replicas so that co-activated experts meet, while the fullest rank stays within `slack` of the start.

    Each swap is the one that gains most over all pairs of slots, until none gains. A token's copies are counted by
    pairs of its experts, which overstates what three experts on one rank save.

    Args:
        physical: [slots], the balanced plan to start from.
        coactivation: [experts, experts] tokens that chose both.
        node_weight: worth of a pair on one node when the cluster has several nodes (a pair on one rank: 1 more).
        ends_s: time on the clock (perf_counter) at which the search ends with what it has.
    """
    pairs = coactivation * (1 - np.eye(len(loads)))
    width = len(physical) // num_ranks
    rank_of = np.repeat(np.arange(num_ranks), width)
    node_of = np.arange(num_ranks) // (num_ranks // num_nodes)
    value = np.eye(num_ranks) + (node_weight if num_nodes > 1 else 0.0) * (node_of[:, None] == node_of[None, :])
    cap = float(rank_loads_of(loads, physical, num_ranks).max()) * (1 + slack)
    plan = physical.copy()
    for _ in range(_MOST_SWAPS):
        swap = _best_swap(loads, plan, rank_of, pairs, value, cap) if time.perf_counter() < ends_s else None
        if swap is None:
            break
        first, second = swap
        plan[first], plan[second] = plan[second], plan[first]
    return plan


def _best_swap(
    loads: FloatArray, plan: IntArray, rank_of: IntArray, pairs: FloatArray, value: FloatArray, cap: float
) -> tuple[int, int] | None:
    """The pair of slots whose exchange gains most within the cap; None when no exchange gains."""
    ranks = len(value)
    counts = replica_counts(plan, len(loads))
    share = loads / counts
    together = pairs[np.ix_(plan, plan)] / np.outer(counts[plan], counts[plan])
    here = together.reshape(len(plan), ranks, -1).sum(axis=2)
    worth = here @ value
    at = worth[:, rank_of]
    own = worth[np.arange(len(plan)), rank_of]
    values = value[np.ix_(rank_of, rank_of)]
    diagonal = np.diag(value)[rank_of]
    gain = at + at.T - own[:, None] - own[None, :]
    gain -= together * (diagonal[:, None] + diagonal[None, :] - 2 * values)
    carried = rank_loads_of(loads, plan, ranks)[rank_of]
    moved = share[plan][:, None] - share[plan][None, :]
    held = presence(plan, len(loads), ranks)[:, plan][rank_of]
    fits = (carried[:, None] - moved <= cap) & (carried[None, :] + moved <= cap)
    gain = np.where(fits & ~held & ~held.T, gain, -np.inf)
    best = int(gain.argmax())
    first, second = divmod(best, len(plan))
    if not gain[first, second] > 1e-9 * max(float(pairs.sum()), 1.0):
        return None
    return first, second
