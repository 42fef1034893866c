"""Expert popularity: the probability that one routed slot goes to each expert, per layer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.specs.model import MixtureOfExperts
from moesim.specs.routing import Routing

FloatArray = NDArray[np.float64]


def popularity(routing: Routing, moe: MixtureOfExperts, num_layers: int, rng: np.random.Generator) -> FloatArray:
    """Popularity of each expert in each layer, rows summing to 1.

    Args:
        routing: the distribution, or recorded counts (their layers are repeated cyclically to `num_layers`).
        moe: number of experts, and how many a token chooses.
        num_layers: MoE layers.
        rng: source of the hot experts' positions (a different order in every layer) and Dirichlet draws.

    Returns:
        Array [num_layers, num_experts].
    """
    num_experts = moe.num_experts
    if routing.kind in ("uniform", "falling"):
        return np.tile(_ranked_popularity(routing, num_experts), (num_layers, 1))
    if routing.kind == "counts":
        counts = np.asarray(routing.counts, dtype=float)
        rows = counts[np.arange(num_layers) % len(counts)]
        return rows / rows.sum(axis=1, keepdims=True)
    if routing.kind == "dirichlet":
        draws = rng.gamma(routing.strength, size=(num_layers, num_experts)) + 1e-12
        return draws / draws.sum(axis=1, keepdims=True)
    if routing.kind == "power_law":
        return _power_law(routing.strength, num_layers, num_experts, rng)
    if routing.kind == "identical":
        return np.stack([_identical(moe, rng) for _ in range(num_layers)])
    ranked = _ranked_popularity(routing, num_experts)
    return np.stack([rng.permutation(ranked) for _ in range(num_layers)])


def _power_law(alpha: float, num_layers: int, num_experts: int, rng: np.random.Generator) -> FloatArray:
    """Loads drawn independently from a density x^-alpha on [1, 0.8 x 1024], then normalised [layers, experts].

    The distribution of aiconfigurator's kernel benchmarks (`power_law_1.01`, `power_law_1.2`; there the upper end
    is 0.8 times the tokens of the step). Far more skewed than measured routing of natural text.
    """
    low, high = 1.0, 0.8 * 1024
    uniform = rng.random((num_layers, num_experts))
    if abs(alpha - 1.0) < 1e-9:
        draws = low * (high / low) ** uniform
    else:
        power = 1.0 - alpha
        draws = (low**power + uniform * (high**power - low**power)) ** (1.0 / power)
    return draws / draws.sum(axis=1, keepdims=True)


def _identical(moe: MixtureOfExperts, rng: np.random.Generator) -> FloatArray:
    """One choice of `top_k` experts that a token can make, inside the groups that it keeps [experts]."""
    members = np.arange(moe.num_experts).reshape(moe.expert_groups, -1)
    reachable = members[rng.permutation(moe.expert_groups)[: moe.expert_groups_kept]].ravel()
    row = np.zeros(moe.num_experts)
    row[rng.permutation(reachable)[: moe.top_k]] = 1.0 / moe.top_k
    return row


def _ranked_popularity(routing: Routing, num_experts: int) -> FloatArray:
    """Popularity from the hottest expert to the coldest."""
    if routing.kind in ("uniform", "zipf", "falling"):
        weights = 1.0 / np.arange(1, num_experts + 1) ** routing.strength
        return weights / weights.sum()
    hot = max(1, round(num_experts / 5))
    if hot == num_experts:
        return np.full(num_experts, 1.0 / num_experts)
    cold = num_experts - hot
    return np.concatenate([np.full(hot, routing.strength / hot), np.full(cold, (1 - routing.strength) / cold)])
