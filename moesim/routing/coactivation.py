"""Which experts serve the same token, and which expert follows which from layer to layer."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.routing.profile import RoutingProfile

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def coactivation(profile: RoutingProfile) -> FloatArray | None:
    """Tokens that chose both experts [layers, experts, experts] (diagonal: tokens of the expert); None without choices."""
    if profile.choices is None:
        return None
    tokens, layers, _ = profile.choices.shape
    pairs = np.zeros((layers, profile.num_experts, profile.num_experts))
    for layer in range(layers):
        chosen = np.zeros((tokens, profile.num_experts), dtype=np.float32)
        np.put_along_axis(chosen, profile.choices[:, layer], 1.0, axis=1)
        pairs[layer] = chosen.T @ chosen
    return pairs


def layer_affinity(profile: RoutingProfile) -> FloatArray | None:
    """Excess of the most likely next expert over chance [layers - 1]; None without choices or with one layer.

    For each layer: mean over tokens and experts of P(next layer's expert | this layer's expert) at its largest,
    less the largest popularity in the next layer. 0 when layers choose independently.
    """
    if profile.choices is None or profile.num_layers < 2:
        return None
    tokens, layers, top_k = profile.choices.shape
    excess = np.zeros(layers - 1)
    hot = np.zeros((layers, tokens, profile.num_experts), dtype=np.float32)
    for layer in range(layers):
        np.put_along_axis(hot[layer], profile.choices[:, layer], 1.0, axis=1)
    for layer in range(layers - 1):
        follow = hot[layer].T @ hot[layer + 1]
        uses = hot[layer].sum(axis=0)
        seen = uses > 0
        likely = (follow[seen] / uses[seen, None]).max(axis=1)
        excess[layer] = float((likely * uses[seen]).sum() / uses.sum()) - float(hot[layer + 1].mean(axis=0).max())
    return excess


def top_pairs(pairs: FloatArray, tokens: int, count: int) -> list[dict[str, Any]]:
    """The `count` pairs of experts of a layer that meet most beyond chance, with tokens and lift.

    `pairs` [experts, experts]; lift: meetings over what independent choices with the same popularity would give.
    """
    experts = len(pairs)
    uses = np.diag(pairs)
    expected = np.outer(uses, uses) / max(tokens, 1)
    first, second = np.triu_indices(experts, k=1)
    excess = pairs[first, second] - expected[first, second]
    best = np.argsort(-excess)[:count]
    return [
        {
            "experts": [int(first[item]), int(second[item])],
            "tokens": float(pairs[first[item], second[item]]),
            "lift": float(pairs[first[item], second[item]] / max(expected[first[item], second[item]], 1e-9)),
        }
        for item in best
        if excess[item] > 0
    ]
