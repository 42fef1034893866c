"""Profilers' files: which tool wrote a file is told from its content, and all become one kind of tables."""

from __future__ import annotations

from pathlib import Path

import msgspec

from calibration.profilers import (
    ncu,
    nsys,
    nsys_csv,
    rocpd,
    rocprof_csv,
    rocprof_json,
    rocprof_summary,
    rocprof_system,
    torch_trace,
)
from calibration.profilers.database import MAGIC as SQLITE
from calibration.profilers.database import open_database
from calibration.profilers.tables import Profile
from calibration.sources import LIMITS, Limits, read_columns, read_head, read_json
from moesim.errors import InputError

KNOWN = (
    "rocprofv3 (CSV, JSON, rocpd SQLite), rocprofiler-compute (CSV), Nsight Systems (SQLite, nsys stats CSV), "
    "Nsight Compute (CSV), torch.profiler (JSON)"
)

_HEADERS = ('"ID","Process ID"', "Start (", "Time (%)")
"""Beginnings of the tables that Nsight Compute and nsys stats write below other output."""


def read_profile(path: Path, limits: Limits = LIMITS) -> Profile:
    """A profiler's file, packed or not.

    Raises:
        InputError: unreadable, damaged, too large, or of no known tool.
    """
    head = read_head(path)
    if head.startswith(SQLITE):
        return _read_database(path, limits)
    text = head.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    if not text:
        raise InputError(f"{path}: is empty")
    if text[0] in "{[":
        return _read_json(path, limits)
    if text.startswith(rocprof_summary.MAGIC):
        return rocprof_summary.read(path, limits)
    return _read_csv(path, limits, text)


def _read_database(path: Path, limits: Limits) -> Profile:
    with open_database(path, limits) as database:
        if rocpd.accepts(database):
            return rocpd.read_database(database)
        if nsys.accepts(database):
            return nsys.read_database(database)
    raise InputError(f"{path}: is SQLite, but has the tables of neither rocpd nor Nsight Systems")


def _read_json(path: Path, limits: Limits) -> Profile:
    document = read_json(path, dict[str, msgspec.Raw], limits)
    if "traceEvents" in document:
        return torch_trace.read(path, limits)
    if "rocprofiler-sdk-tool" in document:
        return rocprof_json.read(path, limits)
    if any(key in document for key in ("output_throughput", "request_throughput", "avg_latency", "elapsed_time")):
        raise InputError(f"{path}: is a benchmark's result, no profile; moesim validate reads it")
    keys = ", ".join(list(document)[:5])
    raise InputError(f"{path}: is JSON of no known profiler (its keys: {keys[:120]}); known: {KNOWN}")


def _read_csv(path: Path, limits: Limits, text: str) -> Profile:
    begin = next((word for word in _HEADERS if text.startswith(word) or f"\n{word}" in text), "")
    columns = frozenset(name.lower() for name in read_columns(path, limits, begin))
    if ncu.accepts(columns):
        return ncu.read(path, limits, begin)
    if nsys_csv.accepts(columns):
        return nsys_csv.read(path, limits, begin)
    if rocprof_system.accepts(columns):
        return rocprof_system.read(path, limits)
    if rocprof_csv.accepts(columns):
        return rocprof_csv.read(path, limits)
    shown = ", ".join(sorted(columns)[:5])
    raise InputError(f"{path}: is a table of no known profiler (its columns: {shown[:120]}); known: {KNOWN}")
