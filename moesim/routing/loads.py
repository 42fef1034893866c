"""Expert loads of a step: a bank of exactly drawn tokens, read in windows of any length.

Sampling routing anew in each simulated step would cost more than the rest of the simulation. A bank holds,
for a number of layers, tokens drawn once by the exact sampler as cumulative counts; the load of `T` tokens is
the difference of two rows, so it keeps the exact joint distribution (distinct experts of a token, negative
correlation between experts) at the price of a subtraction.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from moesim.routing.popularity import popularity
from moesim.routing.sampling import sample_tokens
from moesim.specs.model import MixtureOfExperts
from moesim.specs.routing import Routing

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
_BANK_TOKENS = 16_384
_MAX_LAYERS = 16


@dataclass(frozen=True, slots=True)
class LoadBank:
    """Cumulative token counts `cumulative` [layers, tokens + 1, experts] of exactly drawn tokens."""

    cumulative: NDArray[np.int32]
    top_k: int

    @property
    def num_experts(self) -> int:
        """Experts of a layer."""
        return self.cumulative.shape[2]

    @property
    def inclusion(self) -> FloatArray:
        """Probability that a token includes each expert [layers, experts], estimated from the bank."""
        return self.cumulative[:, -1, :] / (self.cumulative.shape[1] - 1)


@lru_cache(maxsize=64)
def make_bank(moe: MixtureOfExperts, routing: Routing, num_layers: int, seed: int) -> LoadBank:
    """Draw the bank of a model's MoE layers; layers beyond 16 share the draws of the first 16 (cyclically).

    Identically distributed layers (uniform and falling routing) share one long draw.
    """
    rng = np.random.default_rng([seed, 0x10AD])
    profiles = popularity(routing, moe, num_layers, rng)
    if routing.kind in ("uniform", "falling"):
        profiles = profiles[:1]
    profiles = profiles[:_MAX_LAYERS]
    tokens = _BANK_TOKENS // len(profiles)
    cumulative = np.zeros((len(profiles), tokens + 1, moe.num_experts), dtype=np.int32)
    for layer, profile in enumerate(profiles):
        chosen = sample_tokens(profile, moe, tokens, rng)
        one_hot = np.zeros((tokens, moe.num_experts), dtype=np.int32)
        np.put_along_axis(one_hot, chosen, 1, axis=1)
        np.cumsum(one_hot, axis=0, out=cumulative[layer, 1:])
    return LoadBank(cumulative=cumulative, top_k=moe.top_k)


def draw_loads(bank: LoadBank, num_tokens: IntArray, draws: int, rng: np.random.Generator) -> FloatArray:
    """Tokens per expert for steps of `num_tokens` tokens.

    Each draw takes a window of the bank at a random place, layers in turn. Steps longer than the bank scale
    the bank's own deviation from the mean by the square root of the length, as independent tokens do.

    Args:
        num_tokens: step sizes [steps].
        draws: independent layer draws for each step size.

    Returns:
        Tokens per expert [steps, draws, experts]; rows sum to num_tokens * top_k.
    """
    layers, rows, _ = bank.cumulative.shape
    length = rows - 1
    layer = np.arange(draws) % layers
    take = np.minimum(num_tokens, length)
    start = (rng.random((len(num_tokens), draws)) * (length - take + 1)[:, None]).astype(np.int64)
    upper = bank.cumulative[layer[None, :], start + take[:, None]]
    counts = (upper - bank.cumulative[layer[None, :], start]).astype(float)
    long = num_tokens > length
    if long.any():
        mean = bank.inclusion[layer]
        ratio = (num_tokens[long] / length)[:, None, None]
        deviation = counts[long] - mean * length
        counts[long] = np.maximum(mean * length * ratio + deviation * np.sqrt(ratio), 0.0)
    return counts


def expected_distinct(inclusion: FloatArray, num_tokens: FloatArray) -> FloatArray:
    """Expected number of distinct experts that `num_tokens` independent tokens touch (exact closed form).

    Args:
        inclusion: probability that a token includes each expert [experts].
        num_tokens: [steps].

    Returns:
        [steps].
    """
    return (1.0 - (1.0 - inclusion[None, :]) ** num_tokens[:, None]).sum(axis=1)
