"""Recorded expert counts from CSV, JSON, NPY or NPZ files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.specs.routing import Routing

_MAX_BYTES = 200_000_000
_KEYS = ("logical_count", "counts", "expert_counts")


def read_counts(path: Path) -> Routing:
    """Read tokens per expert: one row per layer and one column per expert.

    CSV without header, JSON (a list of lists or an object with `logical_count`), NPY, or NPZ with an array of
    that name; leading axes before [layers, experts] (steps) are summed. Pickled arrays are refused.

    Raises:
        InputError: naming the file, place and value.
    """
    if not path.is_file():
        raise InputError(f"routing: file {path} does not exist")
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(f"routing: {path} has {path.stat().st_size} bytes; the limit is {_MAX_BYTES}")
    readers = {".csv": _read_csv, ".json": _read_json, ".npy": _read_numpy, ".npz": _read_numpy}
    if path.suffix not in readers:
        raise InputError(f"routing: {path} has suffix {path.suffix!r}; use one of {', '.join(readers)}")
    counts = readers[path.suffix](path)
    counts = _checked(counts, path)
    rows = tuple(tuple(float(value) for value in row) for row in counts)
    return Routing(kind="counts", counts=rows, source=str(path))


def _read_csv(path: Path) -> NDArray[np.float64]:
    rows: list[list[float]] = []
    with path.open(newline="", encoding="utf-8", errors="replace") as stream:
        for line, cells in enumerate(csv.reader(stream), start=1):
            if not cells:
                continue
            try:
                rows.append([float(cell) for cell in cells])
            except ValueError:
                bad = next(cell for cell in cells if not _is_number(cell))
                raise InputError(f"routing: {path} line {line}: {bad!r} is not a count") from None
            if len(rows[-1]) != len(rows[0]):
                raise InputError(
                    f"routing: {path} line {line}: {len(rows[-1])} columns, the first line has {len(rows[0])}"
                )
    return np.array(rows)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_json(path: Path) -> NDArray[np.float64]:
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(document, dict):
            document = next(document[key] for key in _KEYS if key in document)
        return np.array(document, dtype=float)
    except StopIteration:
        raise InputError(f"routing: {path} has none of the keys {', '.join(_KEYS)}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"routing: {path} is not a table of counts: {error}") from None


def _read_numpy(path: Path) -> NDArray[np.float64]:
    try:
        loaded: Any = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.ndarray):
            loaded = next(loaded[key] for key in (*_KEYS, *loaded.files) if key in loaded.files)
        return np.asarray(loaded, dtype=float)
    except (ValueError, OSError, StopIteration, EOFError) as error:
        raise InputError(f"routing: {path} is not a readable array (pickles are refused): {error}") from None


def _checked(counts: NDArray[np.float64], path: Path) -> NDArray[np.float64]:
    if counts.ndim == 1 and counts.size:
        counts = counts[None, :]
    if counts.ndim < 2 or not counts.size:
        raise InputError(f"routing: {path} holds no table of [layers][experts] counts (shape {counts.shape})")
    if counts.ndim > 2:
        counts = counts.sum(axis=tuple(range(counts.ndim - 2)))
    bad = np.argwhere(~np.isfinite(counts) | (counts < 0))
    if len(bad):
        layer, expert = bad[0]
        raise InputError(f"routing: {path} row {layer + 1} column {expert + 1}: {counts[layer, expert]} is no count")
    empty = np.flatnonzero(counts.sum(axis=1) <= 0)
    if len(empty):
        raise InputError(f"routing: {path} row {empty[0] + 1}: sums to zero tokens")
    return counts
