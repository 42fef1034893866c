"""Recorded request traces: CSV or JSON lines with arrival time and lengths."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moesim.errors import InputError, nearest
from moesim.specs.workload import Trace, TraceRequest

_MAX_BYTES = 500_000_000
_COLUMNS = {
    "arrival_s": ("arrival_s", "arrival_time", "arrived_at"),
    "input_tokens": ("input_tokens", "input_length", "num_prefill_tokens", "ContextTokens", "prompt_len"),
    "output_tokens": ("output_tokens", "output_length", "num_decode_tokens", "GeneratedTokens", "output_len"),
}


def read_trace(path: Path) -> Trace:
    """Read a trace: columns `arrival_s`, `input_tokens`, `output_tokens`, optional `prefix_id`, `prefix_tokens`.

    Also known: Mooncake JSON lines (`timestamp` in milliseconds, `input_length`, `output_length`), Vidur's
    CSV (`arrived_at`, `num_prefill_tokens`, `num_decode_tokens`).

    Raises:
        InputError: naming the file, line, column and value.
    """
    if not path.is_file():
        raise InputError(f"trace: file {path} does not exist")
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(f"trace: {path} has {path.stat().st_size} bytes; the limit is {_MAX_BYTES}")
    rows = _json_rows(path) if path.suffix in {".jsonl", ".json"} else _csv_rows(path)
    requests = tuple(_request(row, f"trace: {path} line {line}") for line, row in rows)
    if not requests:
        raise InputError(f"trace: {path} holds no requests")
    return Trace(requests=requests, source=str(path))


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(newline="", encoding="utf-8", errors="replace") as stream:
        try:
            yield from enumerate(csv.DictReader(stream), start=2)
        except csv.Error as error:
            raise InputError(f"trace: {path} is not valid CSV: {error}") from None


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8", errors="replace") as stream:
        for line, text in enumerate(stream, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except ValueError as error:
                raise InputError(f"trace: {path} line {line} is not a JSON object: {error}") from None
            if not isinstance(row, dict):
                raise InputError(f"trace: {path} line {line} is not a JSON object")
            yield line, row


def _request(row: dict[str, Any], where: str) -> TraceRequest:
    arrival = _number(row, "arrival_s", where) if "timestamp" not in row else _timestamp(row, where)
    values = {name: int(_number(row, name, where)) for name in ("input_tokens", "output_tokens")}
    for name, value in values.items():
        if value < 1:
            raise InputError(f"{where}: {name} is {value}, must be at least 1")
    prefix = {name: int(_parse(row[name], name, where)) for name in ("prefix_id", "prefix_tokens") if row.get(name)}
    return TraceRequest(arrival_s=arrival, **values, **prefix)


def _timestamp(row: dict[str, Any], where: str) -> float:
    return _parse(row["timestamp"], "timestamp", where) / 1e3


def _number(row: dict[str, Any], name: str, where: str) -> float:
    for column in _COLUMNS[name]:
        if row.get(column) not in (None, ""):
            return _parse(row[column], column, where)
    columns = [str(key) for key in row]
    raise InputError(f"{where}: no column {name!r}; {nearest(name, columns) if columns else 'the line is empty'}")


def _parse(value: Any, column: str, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{where}: {column} is {value!r}, must be a number") from None
    if not math.isfinite(number) or number < 0:
        raise InputError(f"{where}: {column} is {value}, must be a finite number of 0 or more")
    return number
