"""How the grouped products are cut into programs: the shapes to try, and those that the tuner found best."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Tile:
    """One program's share of a grouped product: rows, columns and depth of a step, warps, pipeline stages."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def fits(self, width: int, depth: int) -> bool:
        """Whether the tile divides matrices of `width` rows and `depth` columns."""
        return width % self.columns == 0 and depth % self.depth == 0


CANDIDATES = (
    Tile(32, 64, 128, 4, 3),
    Tile(16, 64, 128, 4, 3),
    Tile(16, 64, 256, 4, 3),
    Tile(16, 128, 128, 4, 3),
    Tile(32, 128, 64, 4, 4),
    Tile(32, 128, 128, 8, 3),
    Tile(64, 64, 64, 4, 4),
    Tile(64, 64, 128, 4, 3),
    Tile(64, 128, 64, 4, 3),
    Tile(64, 128, 128, 8, 2),
    Tile(128, 128, 64, 8, 3),
    Tile(16, 16, 16, 1, 1),
)
"""Tried by the tuner; the first that divides the matrices is the default, the last suits tiny models."""


@dataclass(frozen=True, slots=True)
class TilePair:
    """Tiles of an expert layer's two products."""

    gate_up: Tile
    down: Tile


class TileTable:
    """The tiles to use for a number of rows: those tuned for the nearest power of two, or the default if none are."""

    def __init__(self) -> None:
        self._tuned: dict[int, TilePair] = {}
        self._dense: dict[int, Tile | None] = {}

    def knows(self, rows: int) -> bool:
        """Whether tiles were tuned for about this many rows."""
        return next_power(rows) in self._tuned or next_power(rows) in self._dense

    def put(self, rows: int, tiles: TilePair) -> None:
        """Use `tiles` for experts with about this many rows from now on."""
        self._tuned[next_power(rows)] = tiles

    def put_dense(self, rows: int, tile: Tile | None) -> None:
        """Use `tile` for dense gated projections of about this many rows; None leaves them to the BLAS library."""
        self._dense[next_power(rows)] = tile

    def get_dense(self, rows: int) -> Tile | None:
        """The tile for a dense gated projection of `rows` rows, or None for the BLAS library."""
        return self._dense.get(next_power(rows))

    def get(self, rows: int, hidden: int, width: int) -> TilePair:
        """Tiles for `rows` (token, expert) pairs of experts of the given sizes."""
        if not self._tuned:
            return TilePair(candidates(width, hidden)[0], candidates(hidden, width)[0])
        wanted = next_power(rows)
        return self._tuned[min(self._tuned, key=lambda known: max(known / wanted, wanted / known))]

    def as_dict(self) -> dict[str, Any]:
        """The tuned tiles by row count, for the record."""
        experts = {str(rows): asdict(pair) for rows, pair in sorted(self._tuned.items())}
        dense = {str(rows): asdict(tile) if tile else "blas" for rows, tile in sorted(self._dense.items())}
        return {"experts": experts, "dense": dense}


def candidates(width: int, depth: int) -> list[Tile]:
    """The tiles that divide matrices [width, depth]."""
    fitting = [tile for tile in CANDIDATES if tile.fits(width, depth)]
    if not fitting:
        raise ValueError(f"no tile divides matrices of {width} x {depth}; use the torch kernels")
    return fitting


def next_power(number: int) -> int:
    """The smallest power of two that is no smaller."""
    return 1 << max(number - 1, 0).bit_length()
