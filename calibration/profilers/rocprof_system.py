"""rocprofiler-compute's sysinfo.csv (the GPU) and roofline.csv (rates measured by its microbenchmarks)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from calibration.profilers.tables import Counter, Device, Profile
from calibration.sources import LIMITS, Cells, Limits, read_table
from moesim.errors import InputError

_PER_SECOND = {"Bw": ("byte/s", 1e9), "Flops": ("flop/s", 1e9), "Ops": ("op/s", 1e9)}
"""Columns of roofline.csv end in one of these; values are in 10^9 a second."""


def accepts(columns: frozenset[str]) -> bool:
    """Whether these lower-case columns are those of sysinfo.csv or roofline.csv."""
    return {"gpu_arch", "cu_per_gpu"} <= columns or {"device", "hbmbw"} <= columns


def read(path: Path, limits: Limits = LIMITS) -> Profile:
    """The device, or the measured rates as counters. Raises InputError."""
    row = next(read_table(path, limits), None)
    if row is None:
        raise InputError(f"{path}: holds a header and no row")
    no_kernels = "kernels: the file describes a device"
    if "gpu_arch" in row.cells:
        tool, device = "rocprofiler-compute system information", _device(row, "GPU")
        return Profile(path=str(path), tool=tool, devices=(device,), absent=(no_kernels, "counters: see pmc_perf.csv"))
    counters = [counter for row in read_table(path, limits) for counter in _rates(row)]
    return Profile(path=str(path), tool="rocprofiler-compute roofline", counters=tuple(counters), absent=(no_kernels,))


def find_device(path: Path, names: Iterable[str]) -> tuple[Device, ...]:
    """The devices called `names`, described by the sysinfo.csv that lies beside a counter file, if one does."""
    prefix = path.name.partition("pmc_perf")[0].partition("timestamps")[0]
    beside = path.with_name(f"{prefix}sysinfo.csv")
    if path.name == beside.name or not prefix.endswith(("_", "")) or not beside.is_file():
        return ()
    row = next(read_table(beside), None)
    return tuple(_device(row, name) for name in sorted(names)) if row is not None and "gpu_arch" in row.cells else ()


def _device(row: Cells, device: str) -> Device:
    bandwidth = row.text("hbm_bw")
    return Device(
        device=device,
        name=row.text("gpu_model"),
        architecture=row.text("gpu_arch"),
        vendor="AMD",
        compute_units=row.optional("cu_per_gpu"),
        waves_per_unit=row.optional("max_waves_per_cu"),
        dies=row.optional("num_xcd"),
        memory_bytes_per_s=row.number("hbm_bw") * 1e9 if bandwidth else None,
    )


def _rates(row: Cells) -> list[Counter]:
    device = f"GPU {row.text('device')}"
    found: list[Counter] = []
    for name in row.cells:
        unit, scale = next((found for word, found in _PER_SECOND.items() if name.endswith(word)), ("", 0.0))
        if unit and row.text(name):
            value = row.number(name) * scale
            found.append(Counter(kernel="", device=device, dispatch=None, counter=name, value=value, unit=unit))
    return found
