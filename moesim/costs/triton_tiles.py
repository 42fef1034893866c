"""Tiles of vLLM's Triton experts, where the library ships a table for a shape."""

from __future__ import annotations

from functools import cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from moesim.specs.loading import config_root, load

FloatArray = NDArray[np.float64]


class TileTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Blocks of `rows` rows for steps of about `tokens` tokens (the library takes the nearest entry)."""

    tokens: tuple[int, ...]
    rows: tuple[int, ...]

    def rows_at(self, tokens: FloatArray) -> FloatArray:
        """Rows of a block for steps of `tokens` tokens."""
        return np.array(self.rows, dtype=float)[self._nearest(tokens)]

    def _nearest(self, tokens: FloatArray) -> NDArray[np.int64]:
        """Halfway between two entries the smaller one is taken, as Python's `min` does."""
        known = np.array(self.tokens, dtype=float)
        return np.searchsorted((known[1:] + known[:-1]) / 2, np.asarray(tokens, dtype=float), side="left")


class _Shipped(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    source: str
    shapes: dict[str, dict[str, TileTable]]


@cache
def _shipped() -> _Shipped:
    return load(config_root() / "kernels" / "vllm_moe_tiles.yaml", _Shipped)


def shipped_tiles(accelerator: str, experts: int, width: int) -> TileTable | None:
    """What vLLM ships for `experts` experts of `width` on a rank of `accelerator`; None where it has only its rule."""
    return _shipped().shapes.get(accelerator, {}).get(f"{experts}x{width}")
