"""Synthetic routing traces: skewed popularity with what real traces have beyond it.

Three effects, each with one number that can be set to zero: tokens of a sequence prefer the same experts
(`sequence_correlation`), an expert is followed by partner experts in the next layer (`layer_affinity`), and the hot
experts change over time (`drift_tokens`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.routing.popularity import popularity
from moesim.routing.profile import RoutingProfile, from_choices
from moesim.specs.model import MixtureOfExperts
from moesim.specs.routing import Routing

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
_CHUNK = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSettings:
    """What a synthetic trace is made of.

    `sequence_correlation`: standard deviation of a log-preference that the tokens of one sequence share for each
    expert (0: independent tokens; 1 is strong). `layer_affinity`: log-preference for the partners of the experts
    chosen in the layer before (0: none). `drift_tokens`: tokens after which popularity has turned into an
    independent one (0: it stays); in between the log-popularities mix in circle-wise fashion, which keeps the skew.
    """

    tokens: int
    sequence_tokens: int = 256
    sequence_correlation: float = 0.0
    layer_affinity: float = 0.0
    drift_tokens: int = 0


def synthetic_trace(
    routing: Routing, moe: MixtureOfExperts, num_layers: int, settings: TraceSettings, rng: np.random.Generator
) -> RoutingProfile:
    """Draw choices [tokens, layers, top_k] by Gumbel top-k on log-popularity plus the effects' log-preferences.

    Raises:
        InputError: a setting out of range.
    """
    check_settings(settings)
    start = _logits(routing, moe, num_layers, rng)
    turn = _logits(routing, moe, num_layers, rng)
    partners = np.stack([rng.permutation(moe.num_experts) for _ in range(num_layers)])
    choices = np.empty((settings.tokens, num_layers, moe.top_k), dtype=np.int64)
    sequences = -(-settings.tokens // settings.sequence_tokens)
    taste = rng.standard_normal((sequences, moe.num_experts)) * settings.sequence_correlation
    for first in range(0, settings.tokens, _CHUNK):
        token = np.arange(first, min(first + _CHUNK, settings.tokens))
        preference = taste[token // settings.sequence_tokens]
        before: IntArray | None = None
        for layer in range(num_layers):
            base = _drifted(start[layer], turn[layer], token, settings.drift_tokens) + np.roll(preference, layer * 7, 1)
            if before is not None and settings.layer_affinity:
                followed = partners[layer][before]
                bonus = np.zeros_like(base)
                np.put_along_axis(bonus, followed, settings.layer_affinity, axis=1)
                base = base + bonus
            noisy = base + rng.gumbel(size=base.shape)
            before = np.argpartition(-noisy, moe.top_k - 1, axis=1)[:, : moe.top_k]
            choices[token, layer] = before
    return from_choices(choices, moe.num_experts, f"synthetic {routing.kind}:{routing.strength:g}")


def check_settings(settings: TraceSettings) -> TraceSettings:
    """Refuse settings out of range; returns them unchanged."""
    for name, low, high in (
        ("tokens", 1, 10_000_000),
        ("sequence_tokens", 1, 10_000_000),
        ("sequence_correlation", 0, 10),
        ("layer_affinity", 0, 20),
        ("drift_tokens", 0, 10**12),
    ):
        value = getattr(settings, name)
        if not low <= value <= high:
            raise InputError(f"{name}: {value} is out of range, must be {low} to {high}")
    return settings


def _logits(routing: Routing, moe: MixtureOfExperts, num_layers: int, rng: np.random.Generator) -> FloatArray:
    """Log-popularity [layers, experts], impossible experts at -60."""
    return np.log(np.maximum(popularity(routing, moe, num_layers, rng), 1e-26))


def drifted_popularity(start: FloatArray, turn: FloatArray, share: float) -> FloatArray:
    """Popularity [..., experts] at `share` of the way (0 to 1) from one log-popularity to another of the same skew.

    The centred logs mix by cosine and sine of the angle, so that their variance, and with it the skew, is kept.
    """
    angle = share * np.pi / 2
    middle = start.mean(axis=-1, keepdims=True), turn.mean(axis=-1, keepdims=True)
    mixed = np.cos(angle) * (start - middle[0]) + np.sin(angle) * (turn - middle[1])
    weights = np.exp(mixed - mixed.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def _drifted(start: FloatArray, turn: FloatArray, token: IntArray, drift_tokens: int) -> FloatArray:
    """Log-popularity of each token [tokens, experts]; after a full turn it comes back the same way."""
    if not drift_tokens:
        return np.broadcast_to(start, (len(token), len(start)))
    share = np.abs((token / drift_tokens + 1) % 2 - 1)
    angle = (share * np.pi / 2)[:, None]
    return np.cos(angle) * (start - start.mean()) + np.sin(angle) * (turn - turn.mean())
