"""Files of routing as named arrays: CSV, JSON, NPY, NPZ, Parquet, torch archives. What they mean is decided later."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.routing.torch_archive import read_torch_archive

Array = NDArray[Any]
MAX_BYTES = 500_000_000
COUNT_KEYS = ("logical_count", "counts", "expert_counts", "expert_load")
CHOICE_KEYS = ("routed_experts", "topk_ids", "topk_ids_of_layer", "choices")
SUFFIXES = (".csv", ".json", ".npy", ".npz", ".parquet", ".pt", ".pth", ".pkl", ".pickle")
_UNNAMED = ""


def read_raw(path: Path) -> dict[str, Array]:
    """Arrays of the file by name; the one array of a file without names is called ''.

    Raises:
        InputError: missing, too large, unknown suffix, pickled, or not readable; names the file and place.
    """
    if not path.is_file():
        raise InputError(f"routing: file {path} does not exist")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"routing: {path} has {path.stat().st_size} bytes; the limit is {MAX_BYTES}")
    if path.suffix in (".pkl", ".pickle"):
        raise InputError(f"routing: {path} is a pickle, which could run code when loaded; refused; save it as NPZ")
    readers: dict[str, Callable[[Path], dict[str, Array]]] = {
        ".csv": _read_csv,
        ".json": _read_json,
        ".npy": _read_numpy,
        ".npz": _read_numpy,
        ".parquet": _read_parquet,
        ".pt": _read_torch,
        ".pth": _read_torch,
    }
    if path.suffix not in readers:
        raise InputError(f"routing: {path} has suffix {path.suffix!r}; use one of {', '.join(readers)}")
    return readers[path.suffix](path)


def _read_csv(path: Path) -> dict[str, Array]:
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
    return {"counts": np.array(rows)}


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_json(path: Path) -> dict[str, Array]:
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"routing: {path} is not valid JSON: {error}") from None
    if isinstance(document, dict) and "records" in document:
        return {"counts": _llada_records(cast("dict[str, Any]", document), path)}
    named = cast("dict[str, Any]", document) if isinstance(document, dict) else {_UNNAMED: document}
    known = {name: named[name] for name in (*COUNT_KEYS, *CHOICE_KEYS, _UNNAMED) if name in named}
    if not known:
        raise InputError(f"routing: {path} has none of the keys {', '.join((*COUNT_KEYS, *CHOICE_KEYS))}")
    try:
        return {name: np.array(value, dtype=float) for name, value in known.items()}
    except (ValueError, TypeError) as error:
        raise InputError(f"routing: {path} is not a table of counts: {error}") from None


def _llada_records(document: dict[str, Any], path: Path) -> Array:
    """Counts [records, layers, experts] of the LLaDA engine's JSON (records without expert loads are left out)."""
    try:
        loads = [record["expert_loads"] for record in document["records"]]
        tables = [np.array(item["tokens"], dtype=float) for item in loads if item is not None]
        return np.stack(tables)
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"routing: {path} records hold no expert loads of one shape; run the LLaDA engine with its load counters on"
        ) from None


def _read_numpy(path: Path) -> dict[str, Array]:
    """One array, arrays by known name, or `numpy.savez(path, *arrays)` of the routed experts of each request."""
    try:
        loaded: Any = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {_UNNAMED: loaded}
        names = [str(name) for name in loaded.files]
        known = [name for name in names if name in (*COUNT_KEYS, *CHOICE_KEYS)]
        if not known and len(names) == 1:
            return {_UNNAMED: loaded[names[0]]}
        if not known and names and all(name.startswith("arr_") for name in names):
            return {CHOICE_KEYS[0]: np.concatenate([np.asarray(loaded[name]) for name in names])}
        arrays = {name: np.asarray(loaded[name]) for name in known}
    except (ValueError, OSError, EOFError, KeyError) as error:
        raise InputError(f"routing: {path} is not a readable array (pickles are refused): {error}") from None
    if not arrays:
        raise InputError(f"routing: {path} has none of the arrays {', '.join((*COUNT_KEYS, *CHOICE_KEYS))}")
    return arrays


def _read_torch(path: Path) -> dict[str, Array]:
    saved = read_torch_archive(path)
    if isinstance(saved, np.ndarray):
        return {_UNNAMED: saved}
    named = cast("dict[str, Any]", saved) if isinstance(saved, dict) else {}
    arrays = {name: named[name] for name in (*COUNT_KEYS, *CHOICE_KEYS) if isinstance(named.get(name), np.ndarray)}
    if not arrays:
        raise InputError(f"routing: {path} has none of the tensors {', '.join((*COUNT_KEYS, *CHOICE_KEYS))}")
    return arrays


def _read_parquet(path: Path) -> dict[str, Array]:
    """Long form (`layer`, `expert`, `tokens` or `count`, optional `step`) or one row a layer, one column an expert."""
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except Exception as error:
        raise InputError(f"routing: {path} is not readable Parquet: {error}") from None
    value = next((name for name in ("tokens", "count", "counts") if name in frame.columns), None)
    try:
        if value is None or not {"layer", "expert"} <= set(frame.columns):
            return {"counts": frame.to_numpy(dtype=float)}
        axes = [frame[name].to_numpy(dtype=np.int64) for name in ("step", "layer", "expert") if name in frame.columns]
        sizes = [int(axis.max()) + 1 for axis in axes]
        if min(int(axis.min()) for axis in axes) < 0 or np.prod(sizes) * 8 > MAX_BYTES:
            raise InputError(f"routing: {path} has step, layer or expert numbers out of range (sizes {sizes})")
        counts = np.zeros(sizes)
        np.add.at(counts, tuple(axes), frame[value].to_numpy(dtype=float))
    except (ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"routing: {path} holds values that are no counts: {error}") from None
    return {"counts": counts}
