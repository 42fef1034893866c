"""Which experts serve the same token, and which expert follows which from layer to layer."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.routing.profile import RoutingProfile

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def coactivation(profile: RoutingProfile) -> FloatArray | None:
    """Tokens that chose both experts [layers, experts, experts], diagonal: tokens of the expert.

    None without recorded choices.
    """
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
    """How much likelier an expert's partner in the next layer is than by popularity [layers - 1].

    The partner of an expert is the one that exceeds its popularity most in the first half of the tokens; the second
    half measures P(partner | expert) - P(partner), averaged over choices, so that chance averages to zero. None
    without choices, with one layer or fewer than two tokens.
    """
    choices = profile.choices
    if choices is None or profile.num_layers < 2 or len(choices) < 2:
        return None
    half = len(choices) // 2
    excess = np.zeros(profile.num_layers - 1)
    for layer in range(profile.num_layers - 1):
        planned, measured = (
            _follow(choices[part, layer], choices[part, layer + 1], profile.num_experts)
            for part in (slice(0, half), slice(half, None))
        )
        partner = planned[0].argmax(axis=1)
        gain = measured[0][np.arange(profile.num_experts), partner]
        excess[layer] = float((gain * measured[1]).sum() / max(measured[1].sum(), 1))
    return excess


def _follow(first: IntArray, second: IntArray, experts: int) -> tuple[FloatArray, FloatArray]:
    """P(second | first) - P(second) [experts, experts] (0 where `first` is unseen), and uses of `first` [experts]."""
    hot = np.zeros((2, len(first), experts), dtype=np.float32)
    np.put_along_axis(hot[0], first, 1.0, axis=1)
    np.put_along_axis(hot[1], second, 1.0, axis=1)
    uses = hot[0].sum(axis=0)
    follow = (hot[0].T @ hot[1]) / np.maximum(uses, 1)[:, None] - hot[1].mean(axis=0)[None, :]
    return np.where(uses[:, None] > 0, follow, 0.0), uses


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
