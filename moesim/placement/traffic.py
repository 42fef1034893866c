"""Rank-by-rank traffic: how many copies of tokens each rank sends to each other one, in one layer and direction.

Tokens live evenly on all ranks (data-parallel attention). A token goes once to each rank that holds one of its
chosen replicas; replicas of an expert take turns. Left out: engines that prefer a replica nearby.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.placement.replicas import replica_counts

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Traffic:
    """`matrix` [ranks, ranks] copies from row to column, for `tokens` tokens; the diagonal stays on its rank."""

    matrix: FloatArray
    tokens: float
    num_nodes: int

    @property
    def copies_per_token(self) -> float:
        """Copies that leave a token's own rank."""
        return float(self.matrix.sum() - np.trace(self.matrix)) / max(self.tokens, 1e-300)

    @property
    def node_copies_per_token(self) -> float:
        """Copies that leave a token's own node."""
        nodes = np.arange(len(self.matrix)) // (len(self.matrix) // self.num_nodes)
        return float(self.matrix[nodes[:, None] != nodes[None, :]].sum()) / max(self.tokens, 1e-300)

    @property
    def busiest_receiver_share(self) -> float:
        """Copies received by the busiest rank over the mean (1 when even), its own tokens left out."""
        received = self.matrix.sum(axis=0) - np.diag(self.matrix)
        return float(received.max() / received.mean()) if received.sum() > 0 else 1.0


def recorded_traffic(
    choices: IntArray, physical: IntArray, num_experts: int, num_ranks: int, num_nodes: int
) -> Traffic:
    """Traffic of recorded choices [tokens, top_k] under a map [slots]; token t lives on rank t mod ranks."""
    tokens = len(choices)
    counts = replica_counts(physical, num_experts)
    order = np.argsort(physical, kind="stable")
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    turn = np.arange(tokens)[:, None] // num_ranks % counts[choices]
    ranks = order[first[choices] + turn] // (len(physical) // num_ranks)
    reached = np.zeros((tokens, num_ranks))
    reached[np.arange(tokens)[:, None], ranks] = 1.0
    home = np.arange(tokens) % num_ranks
    matrix = np.zeros((num_ranks, num_ranks))
    np.add.at(matrix, home, reached)
    return Traffic(matrix, float(tokens), num_nodes)


def expected_traffic(
    loads: FloatArray, physical: IntArray, num_ranks: int, num_nodes: int, top_k: int | None
) -> Traffic:
    """Traffic expected from `loads` [experts] alone, a token's experts being independent (up to 5 % low for
    few experts a rank, since a token's choices are distinct).

    Args:
        top_k: experts of a token; None counts every choice as a copy of its own (an upper bound).
    """
    share = loads / replica_counts(physical, len(loads))
    tokens = float(loads.sum()) / (top_k or 1)
    inclusion = np.minimum(share[physical] / max(tokens, 1e-300), 1.0).reshape(num_ranks, -1)
    hit = inclusion.sum(axis=1) if top_k is None else 1.0 - np.prod(1.0 - inclusion, axis=1)
    return Traffic(np.tile(hit * tokens / num_ranks, (num_ranks, 1)), tokens, num_nodes)
