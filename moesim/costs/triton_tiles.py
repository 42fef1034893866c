"""Tiles of vLLM's Triton experts, where the library ships a table for a shape."""

from __future__ import annotations

from functools import cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from moesim.specs.loading import config_root, load

FloatArray = NDArray[np.float64]


class TileTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Blocks for steps of about `tokens` tokens: their rows and columns, and how many row blocks go together."""

    tokens: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    groups: tuple[int, ...]

    def at(self, tokens: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Rows, columns and groups for steps of `tokens` tokens: the nearest entry's, the smaller one's halfway."""
        known = np.array(self.tokens, dtype=float)
        nearest = np.searchsorted((known[1:] + known[:-1]) / 2, np.asarray(tokens, dtype=float), side="left")
        rows, columns, groups = (
            np.array(each, dtype=float)[nearest] for each in (self.rows, self.columns, self.groups)
        )
        return rows, columns, groups


class _Shipped(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    source: str
    shapes: dict[str, dict[str, TileTable]]


@cache
def _shipped() -> _Shipped:
    return load(config_root() / "kernels" / "vllm_moe_tiles.yaml", _Shipped)


def shipped_tiles(accelerator: str, experts: int, width: int) -> TileTable | None:
    """What vLLM ships for `experts` experts of `width` on a rank of `accelerator`; None where it has only its rule."""
    return _shipped().shapes.get(accelerator, {}).get(f"{experts}x{width}")
