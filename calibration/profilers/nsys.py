"""Nsight Systems' SQLite export (`nsys export --type sqlite`; tables as in its documentation, schema 3.x)."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from calibration.profilers.building import RawKernel, check_span, make_kernels, origin_ns, place_by_launch, sum_up
from calibration.profilers.database import Database, open_database, optional_whole, whole
from calibration.profilers.hbm import SAMPLED
from calibration.profilers.steps import StepFinder, choose_steps, looks_like_step, make_step
from calibration.profilers.tables import Counter, Device, Profile, Step, Total
from calibration.sources import LIMITS, Limits
from moesim.errors import InputError

_KERNELS = "CUPTI_ACTIVITY_KIND_KERNEL"
_RUNTIME = "CUPTI_ACTIVITY_KIND_RUNTIME"
_COPIES = {"copy": "CUPTI_ACTIVITY_KIND_MEMCPY", "memory set": "CUPTI_ACTIVITY_KIND_MEMSET"}
_COPY_KINDS = {1: "host to device", 2: "device to host", 8: "device to device", 10: "peer to peer"}
"""ENUM_CUDA_MEMCPY_OPER of the export."""
_SIZES = ("gridX", "gridY", "gridZ", "blockX", "blockY", "blockZ")


def accepts(database: Database) -> bool:
    """Whether the file is an Nsight Systems export."""
    return "StringIds" in database.tables or any(name.startswith("CUPTI_ACTIVITY") for name in database.tables)


def read(path: Path, limits: Limits = LIMITS) -> Profile:
    """Kernels, GPU metrics, steps marked with NVTX and devices. Raises InputError."""
    with open_database(path, limits) as database:
        return read_database(database)


def read_database(database: Database) -> Profile:
    """As `read`, from an open file."""
    strings: dict[Any, str] = dict(database.rows("StringIds", ("id", "value")))
    raws = _read_kernels(database, strings)
    origin = origin_ns(raws)
    steps = choose_steps(_read_marks(database, strings, origin))
    launches = _launches(database) if steps else {}
    finder = StepFinder(steps)
    placed = place_by_launch(raws, lambda raw: launches.get(raw.correlation), finder.at, origin)
    devices = _read_devices(database)
    counters = _read_metrics(database)
    return Profile(
        path=str(database.path),
        tool=f"Nsight Systems (SQLite, schema {_schema(database)})",
        kernels=make_kernels(placed),
        counters=counters,
        steps=tuple(steps),
        devices=devices,
        totals=_read_copies(database),
        absent=tuple(_absent(database, bool(raws), bool(steps), bool(counters), bool(devices))),
    )


def _absent(database: Database, kernels: bool, steps: bool, counters: bool, devices: bool) -> list[str]:
    lines: list[str] = []
    if not kernels:
        lines.append(f"kernels: the file has no rows in a table {_KERNELS}")
    if not counters:
        lines.append("counters: the file has no table GPU_METRICS (nsys profile --gpu-metrics-devices=all records it)")
    if not steps:
        marks = database.count("NVTX_EVENTS")
        lines.append(f"steps: none of {marks} NVTX ranges names an engine step" if marks else "steps: no NVTX ranges")
    if not devices:
        lines.append("devices: the file has no table TARGET_INFO_GPU, so peak bandwidth is unknown")
    return lines


def _read_kernels(database: Database, strings: dict[Any, str]) -> list[RawKernel]:
    if _KERNELS not in database.tables:
        return []
    columns = ["start", "end", "deviceId", "streamId", "correlationId", "demangledName", *_SIZES]
    return [
        _make_kernel(row, strings, f"{database.path}: table {_KERNELS}, row {number}")
        for number, row in enumerate(database.rows(_KERNELS, columns, ("graphNodeId",)), start=1)
    ]


def _make_kernel(row: tuple[Any, ...], strings: dict[Any, str], place: str) -> RawKernel:
    *cells, node = row
    start, end, device, stream, correlation, name, *sizes = (whole(cell, place) for cell in cells)
    if name not in strings:
        raise InputError(f"{place}: its name has the number {name}, which StringIds does not hold")
    start, end = check_span(start, end, place)
    return RawKernel(
        name=str(strings[name]),
        device=f"GPU {device}",
        start_ns=start,
        end_ns=end,
        stream=str(stream),
        grid=(sizes[0], sizes[1], sizes[2]),
        block=(sizes[3], sizes[4], sizes[5]),
        correlation=correlation,
        graph_node=optional_whole(node, place),
    )


def _read_marks(database: Database, strings: dict[Any, str], origin: float) -> list[Step]:
    if not database.has("NVTX_EVENTS", "start", "end"):
        return []
    steps: list[Step] = []
    for start, end, text, text_id in database.rows("NVTX_EVENTS", ("start", "end"), ("text", "textId")):
        name = str(text if text is not None else strings.get(text_id, ""))
        if end is None or not looks_like_step(name):
            continue
        place = f"{database.path}: table NVTX_EVENTS, range {name}"
        first, last = check_span(whole(start, place), whole(end, place), place)
        steps.append(make_step(name, (first - origin) * 1e-9, (last - first) * 1e-9, on_device=False))
    return steps


def _launches(database: Database) -> dict[int | None, int]:
    """Start of the runtime call that launched each correlation."""
    if not database.has(_RUNTIME, "start", "correlationId"):
        return {}
    place = f"{database.path}: table {_RUNTIME}"
    rows = database.rows(_RUNTIME, ("start", "correlationId"))
    return {whole(correlation, place): whole(start, place) for start, correlation in rows}


def _read_copies(database: Database) -> tuple[Total, ...]:
    found: list[Total] = []
    for what, table in _COPIES.items():
        if database.has(table, "start", "end"):
            entries: list[tuple[str, float]] = []
            for start, end, kind in database.rows(table, ("start", "end"), ("copyKind",)):
                first, last = check_span(whole(start, table), whole(end, table), f"{database.path}: table {table}")
                name = _COPY_KINDS.get(kind, f"kind {kind}") if kind is not None else what
                entries.append((name, (last - first) * 1e-9))
            found.extend(sum_up(what, entries))
    return tuple(found)


def _read_devices(database: Database) -> tuple[Device, ...]:
    if not database.has("TARGET_INFO_GPU", "id"):
        return ()
    optional = ("name", "smCount", "maxWarpsPerSm", "totalMemory", "memoryBandwidth", "chipName")
    place = f"{database.path}: table TARGET_INFO_GPU"
    return tuple(
        Device(
            device=f"GPU {number}",
            name=str(name or ""),
            architecture=str(chip or ""),
            vendor="NVIDIA",
            compute_units=optional_whole(units, place),
            waves_per_unit=optional_whole(warps, place),
            memory_bytes=optional_whole(memory, place),
            memory_bytes_per_s=optional_whole(bandwidth, place),
        )
        for number, name, units, warps, memory, bandwidth, chip in database.rows("TARGET_INFO_GPU", ("id",), optional)
    )


def _read_metrics(database: Database) -> tuple[Counter, ...]:
    """Sampled GPU metrics as means over the recording; the low byte of typeId is the GPU's number."""
    if not database.has("GPU_METRICS", "timestamp", "typeId", "metricId", "value"):
        return ()
    names = {}
    if database.has("TARGET_INFO_GPU_METRICS", "typeId", "metricId", "metricName"):
        rows = database.rows("TARGET_INFO_GPU_METRICS", ("typeId", "metricId", "metricName"))
        names = {(kind, metric): str(name) for kind, metric, name in rows}
    sums: dict[tuple[Any, Any], list[float]] = defaultdict(lambda: [0.0, 0.0])
    times: dict[Any, list[int]] = {}
    place = f"{database.path}: table GPU_METRICS"
    for stamp, kind, metric, value in database.rows("GPU_METRICS", ("timestamp", "typeId", "metricId", "value")):
        entry = sums[kind, metric]
        entry[0] += whole(value, f"{place}, value")
        entry[1] += 1
        first, last = times.setdefault(kind, [whole(stamp, place), whole(stamp, place)])
        times[kind] = [min(first, stamp), max(last, stamp)]
    found: list[Counter] = []
    for (kind, metric), (total, count) in sums.items():
        name = names.get((kind, metric), f"metric {metric}")
        device = f"GPU {whole(kind, f'{place}, typeId') & 0xFF}"
        unit = "%" if name.endswith("%]") or "Throughput %" in name else ""
        found.append(Counter(kernel="", device=device, dispatch=None, counter=name, value=total / count, unit=unit))
    for kind, (first, last) in times.items():
        device = f"GPU {whole(kind, f'{place}, typeId') & 0xFF}"
        sampled = Counter(
            kernel="", device=device, dispatch=None, counter=SAMPLED, value=(last - first) * 1e-9, unit="s"
        )
        found.append(sampled)
    return tuple(found)


def _schema(database: Database) -> str:
    if not database.has("META_DATA_EXPORT", "name", "value"):
        return "unknown"
    return str(dict(database.rows("META_DATA_EXPORT", ("name", "value"))).get("EXPORT_SCHEMA_VERSION", "unknown"))
