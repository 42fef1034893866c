"""CSV files of `nsys stats`: cuda_gpu_trace (single executions) and the *_sum reports (sums by name).

Times carry their unit in the header, "Duration (ns)", which --timeunit changes; so do bytes, "Bytes (MB)".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from calibration.profilers.building import RawKernel, make_kernels, sum_up
from calibration.profilers.tables import Profile, Size, Total
from calibration.profilers.units import time_scale
from calibration.sources import LIMITS, Cells, Limits, read_table
from moesim.errors import InputError

_HEADED = re.compile(r"^(?P<name>.+) \((?P<unit>[^)]+)\)$")
_NO_COUNTERS = "counters: nsys stats reports hold none"
_NO_STEPS = "steps: nsys stats reports hold no ranges beside the kernels"


def accepts(columns: frozenset[str]) -> bool:
    """Whether these lower-case columns are those of a report that this module reads."""
    names = {name.partition(" (")[0] for name in columns}
    trace = {"start", "duration", "name"} <= names and bool({"strm", "device"} & names)
    counted = {"instances", "num calls"} & names or {"count", "operation"} <= names
    return trace or ("total time" in names and bool(counted))


def read(path: Path, limits: Limits = LIMITS, begin: str = "") -> Profile:
    """A trace or a summary report. Raises InputError."""
    rows = read_table(path, limits, begin)
    first = next(rows, None)
    if first is None:
        return Profile(path=str(path), tool="nsys stats (CSV)", absent=("kernels, counters: the report has no rows",))
    named = {_plain(name): name for name in first.cells}
    if "start" in named:
        return _read_trace(path, _chain(first, rows), named)
    return _read_sums(path, _chain(first, rows), named)


def _read_trace(path: Path, rows: Iterator[Cells], named: dict[str, str]) -> Profile:
    start, duration, label = (_column(named, word, path) for word in ("start", "duration", "name"))
    to_ns = {column: _seconds(column, path) * 1e9 for column in (start, duration)}
    raws: list[RawKernel] = []
    copies: list[tuple[str, float]] = []
    for row in rows:
        begin, length = row.number(start) * to_ns[start], row.number(duration) * to_ns[duration]
        if length < 0:
            raise InputError(f"{row.place}: {duration} is {row.text(duration)!r}, must not be negative")
        grid, block = _size(row, "Grd"), _size(row, "Blk")
        if grid is None or block is None:
            copies.append((row.text(label), length * 1e-9))
        else:
            raws.append(_kernel(row, named, begin, begin + length, grid, block))
    return Profile(
        path=str(path),
        tool="nsys stats cuda_gpu_trace (CSV)",
        kernels=make_kernels(raws),
        totals=sum_up("copy", copies),
        absent=(_NO_COUNTERS, _NO_STEPS) if raws else ("kernels: the trace holds copies only", _NO_COUNTERS, _NO_STEPS),
    )


def _kernel(row: Cells, named: dict[str, str], start: float, end: float, grid: Size, block: Size) -> RawKernel:
    device = row.text(named["device"]) if "device" in named else ""
    found = re.search(r"\((\d+)\)$", device)
    return RawKernel(
        name=row.text(_column(named, "name", row.path)),
        device=f"GPU {found[1]}" if found else device or "unnamed",
        start_ns=start,
        end_ns=end,
        stream=row.text(named["strm"]) if "strm" in named else None,
        grid=grid,
        block=block,
        correlation=row.optional(named["corrid"]) if "corrid" in named else None,
    )


def _size(row: Cells, prefix: str) -> Size | None:
    sizes = [row.optional(f"{prefix}{axis}") for axis in "XYZ"]
    x, y, z = sizes
    return None if x is None or y is None or z is None else (x, y, z)


def _read_sums(path: Path, rows: Iterator[Cells], named: dict[str, str]) -> Profile:
    time = _column(named, "total time", path)
    scale = _seconds(time, path)
    counted = next((named[word] for word in ("instances", "num calls") if word in named), named.get("count"))
    if counted is None:
        raise InputError(f"{path}: has neither a column Instances nor Count")
    name = named.get("name") or named.get("operation")
    if name is None:
        raise InputError(f"{path}: has neither a column Name nor Operation")
    what = "call" if "num calls" in named else "copy" if "operation" in named else "kernel"
    totals = [_total(row, what, row.text(name), row.integer(counted), row.number(time) * scale) for row in rows]
    return Profile(
        path=str(path),
        tool="nsys stats summary (CSV)",
        totals=tuple(totals),
        absent=("kernels: a summary holds sums, no single executions", _NO_COUNTERS, _NO_STEPS),
    )


def _total(row: Cells, what: str, name: str, count: int, time_s: float) -> Total:
    if count < 0 or time_s < 0:
        raise InputError(f"{row.place}: {count} times {time_s} s must not be negative")
    return Total(what=what, name=name, count=count, total_s=time_s)


def _column(named: dict[str, str], word: str, path: Path) -> str:
    if word not in named:
        raise InputError(f"{path}: has no column {word}")
    return named[word]


def _seconds(column: str, path: Path) -> float:
    found = _HEADED.match(column)
    scale = time_scale(found["unit"]) if found else None
    if scale is None:
        raise InputError(f"{path}: column {column!r} does not say its unit of time, as in 'Duration (ns)'")
    return scale


def _plain(column: str) -> str:
    found = _HEADED.match(column)
    return (found["name"] if found else column).lower()


def _chain(first: Cells, rest: Iterator[Cells]) -> Iterator[Cells]:
    yield first
    yield from rest
