"""Keys and values kept between denoising steps, and which positions each step recomputes.

Attention is bidirectional, so every position changes whenever any token does and a cache is an approximation:
`prefix` keeps the positions before the current block, `dual` those before and after it. Both recompute everything
at the start of a block, and every `refresh` steps if asked; refreshed at every step they equal no cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hw_validation.llada.settings import CacheKind, RunSettings


@dataclass(frozen=True, slots=True)
class Span:
    """Positions `first` to `stop` (exclusive) of every sequence: those that a forward recomputes."""

    first: int
    stop: int

    @property
    def length(self) -> int:
        """Recomputed positions of a sequence."""
        return self.stop - self.first


def plan_span(settings: RunSettings, block: int, step: int) -> Span:
    """The positions that step `step` (from 0) of block `block` recomputes."""
    start = settings.prompt_len + block * settings.block_len
    everything = Span(0, settings.total_len)
    refresh = settings.cache_refresh
    if settings.cache == "none" or step == 0 or (refresh and step % refresh == 0):
        return everything
    return Span(start, settings.total_len if settings.cache == "prefix" else start + settings.block_len)


def span_lengths(settings: RunSettings) -> set[int]:
    """Every number of positions that a forward of this run can have."""
    return {plan_span(settings, block, step).length for block in range(settings.num_blocks) for step in (0, 1)}


class KVCache:
    """Rotated keys and values of all positions: two tensors [layers, batch, positions, kv_heads, head_dim]."""

    def __init__(self, shape: tuple[int, int, int, int, int], device: torch.device, dtype: torch.dtype) -> None:
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)

    def update(self, layer: int, positions: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store `keys` and `values` [batch, span, kv_heads, head_dim] at `positions` [span]; return all positions."""
        self.keys[layer].index_copy_(1, positions, keys)
        self.values[layer].index_copy_(1, positions, values)
        return self.keys[layer], self.values[layer]


def needs_cache(kind: CacheKind) -> bool:
    """Whether this kind of run keeps keys and values."""
    return kind != "none"
