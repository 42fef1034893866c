"""From one map to the next: which replicas must move, from where, with as few bytes as possible."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.placement.replicas import presence

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Migration:
    """`physical` [layers, slots]: the new map, its ranks numbered and slots ordered to keep what is in place.

    `moves` [ranks, ranks]: replicas sent from row to column, summed over layers.
    """

    physical: IntArray
    moves: IntArray
    num_nodes: int

    @property
    def replicas_moved(self) -> int:
        """Replicas that a rank must receive."""
        return int(self.moves.sum())

    def traffic(self) -> tuple[IntArray, IntArray]:
        """Most replicas that each rank sends or receives [ranks]: inside its node, and between nodes."""
        nodes = np.arange(len(self.moves)) // (len(self.moves) // self.num_nodes)
        same = nodes[:, None] == nodes[None, :]
        inside, across = np.where(same, self.moves, 0), np.where(same, 0, self.moves)
        return np.maximum(inside.sum(axis=0), inside.sum(axis=1)), np.maximum(across.sum(axis=0), across.sum(axis=1))


def migrate(current: IntArray, planned: IntArray, num_experts: int, num_ranks: int, num_nodes: int) -> Migration:
    """Lay `planned` [layers, slots] over `current` [layers, slots] with the fewest replicas moved.

    Ranks of a plan are interchangeable within a node, and nodes among each other: in each layer a minimum-cost
    assignment (Hungarian) gives every planned rank to the current rank that already holds most of it. A replica
    that must move comes from the current holder in the same node, where there is one, that has sent least.
    """
    moves = np.zeros((num_ranks, num_ranks), dtype=np.int64)
    rows = [_align(old, new, num_experts, num_ranks, num_nodes) for old, new in zip(current, planned, strict=True)]
    for old, new in zip(current, rows, strict=True):
        moves += _moves(old, new, num_experts, num_ranks, num_nodes)
    return Migration(np.stack(rows), moves, num_nodes)


def _align(current: IntArray, planned: IntArray, num_experts: int, num_ranks: int, num_nodes: int) -> IntArray:
    from scipy.optimize import linear_sum_assignment

    here, there = presence(current, num_experts, num_ranks), presence(planned, num_experts, num_ranks)
    kept = here.astype(np.int64) @ there.T.astype(np.int64)
    width = num_ranks // num_nodes
    blocks = kept.reshape(num_nodes, width, num_nodes, width).transpose(0, 2, 1, 3)
    best = np.zeros((num_nodes, num_nodes))
    chosen: dict[tuple[int, int], IntArray] = {}
    for node in range(num_nodes):
        for other in range(num_nodes):
            rows, columns = linear_sum_assignment(blocks[node, other], maximize=True)
            best[node, other] = blocks[node, other][rows, columns].sum()
            chosen[node, other] = columns
    nodes, others = linear_sum_assignment(best, maximize=True)
    source = np.concatenate([other * width + chosen[node, other] for node, other in zip(nodes, others, strict=True)])
    laid = planned.reshape(num_ranks, -1)[source]
    return np.concatenate(
        [_keep_slots(old, new) for old, new in zip(current.reshape(num_ranks, -1), laid, strict=True)]
    )


def _keep_slots(old: IntArray, new: IntArray) -> IntArray:
    """The experts `new` of a rank, those already there in the slots that they have."""
    if len(old) != len(new):
        return new
    stay = np.isin(old, new)
    row = np.where(stay, old, -1)
    row[~stay] = new[~np.isin(new, old)]
    return row


def _moves(current: IntArray, planned: IntArray, num_experts: int, num_ranks: int, num_nodes: int) -> IntArray:
    here, there = presence(current, num_experts, num_ranks), presence(planned, num_experts, num_ranks)
    node = np.arange(num_ranks) // (num_ranks // num_nodes)
    moves = np.zeros((num_ranks, num_ranks), dtype=np.int64)
    sent = np.zeros(num_ranks, dtype=np.int64)
    for rank, expert in np.argwhere(there & ~here):
        holders = np.flatnonzero(here[:, expert])
        near = holders[node[holders] == node[rank]]
        choices = near if len(near) else holders
        source = int(choices[sent[choices].argmin()])
        moves[source, rank] += 1
        sent[source] += 1
    return moves
