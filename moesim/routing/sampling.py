"""Which experts a token chooses: exact draws of `top_k` distinct experts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.specs.model import MixtureOfExperts

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def sample_tokens(popularity: FloatArray, moe: MixtureOfExperts, num_tokens: int, rng: np.random.Generator) -> IntArray:
    """Draw the experts of `num_tokens` independent tokens in one layer.

    A token's router logits are taken as log-popularity plus Gumbel noise, so that choosing the `top_k`
    largest is exact sampling without replacement in proportion to popularity (Gumbel top-k). Group-limited
    models first keep the groups whose two best experts sum highest (DeepSeek-V3), then choose within them.
    Left out: correlation between neighbouring tokens of a text and between layers.

    Args:
        popularity: [num_experts], summing to 1.

    Returns:
        Expert ids [num_tokens, top_k], distinct in each row, in no order.
    """
    experts = len(popularity)
    with np.errstate(divide="ignore"):
        logits = np.log(popularity) + rng.gumbel(size=(num_tokens, experts))
    if moe.expert_groups > 1:
        logits = _mask_groups(logits, moe)
    if moe.top_k == experts:
        return np.broadcast_to(np.arange(experts), (num_tokens, experts)).copy()
    return np.argpartition(-logits, moe.top_k - 1, axis=1)[:, : moe.top_k].astype(np.int64)


def _mask_groups(logits: FloatArray, moe: MixtureOfExperts) -> FloatArray:
    tokens = len(logits)
    grouped = logits.reshape(tokens, moe.expert_groups, -1)
    width = grouped.shape[2]
    best_two = np.partition(grouped, width - 2, axis=2)[:, :, -2:]
    # Scores are compared as probabilities do: a group with one certain expert must not drown in a bad second.
    score = np.exp(best_two - logits.max(axis=1)[:, None, None]).sum(axis=2)
    kept = np.argpartition(-score, moe.expert_groups_kept - 1, axis=1)[:, : moe.expert_groups_kept]
    mask = np.full((tokens, moe.expert_groups), -np.inf)
    np.put_along_axis(mask, kept, 0.0, axis=1)
    return (grouped + mask[:, :, None]).reshape(tokens, -1)


def count_tokens(choices: IntArray, num_experts: int) -> IntArray:
    """Tokens that each expert receives. `choices` [tokens, top_k] -> [num_experts]."""
    return np.bincount(choices.ravel(), minlength=num_experts)
