"""Nsight Compute's CSV output: the details page (a row a metric, each with its own unit) and the raw page.

`ncu --csv` writes rows of ID, Kernel Name, Block Size, Grid Size, Device, Section Name, Metric Name, Metric Unit,
Metric Value; `ncu --csv --page raw` writes a row a kernel, with the units in the row below the header. What the
program and the tool print stands before the header. Values may have thousands separators.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from calibration.profilers.building import RawKernel, make_kernels
from calibration.profilers.tables import Counter, Profile, Size
from calibration.profilers.units import to_si
from calibration.sources import LIMITS, Cells, Limits, parse_number, read_table
from moesim.errors import InputError

_TIMES = ("Duration", "gpu__time_duration.sum")
_NO_STEPS = "steps: Nsight Compute replays single kernels"
_SIZE = re.compile(r"^\(?\s*(\d+)\s*[,x]\s*(\d+)\s*[,x]\s*(\d+)\s*\)?$")
_NOT_NUMBERS = frozenset({"", "n/a", "nan", "no", "yes", "true", "false"})


def accepts(columns: frozenset[str]) -> bool:
    """Whether these lower-case columns are those of the details or the raw page."""
    named = {"id", "kernel name"} <= columns
    return named and ("metric name" in columns or any("__" in name for name in columns))


def read(path: Path, limits: Limits = LIMITS, begin: str = "") -> Profile:
    """Kernels (one an ID) and counters in SI units. Raises InputError."""
    rows = read_table(path, limits, begin)
    first = next(rows, None)
    if first is None:
        return Profile(path=str(path), tool="Nsight Compute (CSV)", absent=("kernels, counters: the file has no rows",))
    if "Metric Name" in first.cells:
        kernels, counters = _read_details(first, rows)
    else:
        kernels, counters = _read_raw(first, rows)
    return Profile(
        path=str(path),
        tool="Nsight Compute (CSV)",
        kernels=make_kernels(list(kernels.values())),
        counters=tuple(counters),
        absent=(_NO_STEPS,) if counters else ("counters: no metric has a number", _NO_STEPS),
        remarks=("kernels were run one by one at fixed clocks: they have durations, no start times",),
    )


def _read_details(first: Cells, rest: Iterator[Cells]) -> tuple[dict[int, RawKernel], list[Counter]]:
    kernels: dict[int, RawKernel] = {}
    counters: list[Counter] = []
    for row in _chain(first, rest):
        kernel = kernels.setdefault(row.integer("ID"), _kernel(row))
        name, text = row.text("Metric Name"), row.text("Metric Value")
        if not name or not _is_number(text):
            continue
        value = parse_number(text, f"{row.place}: {name}")
        _add(kernels, counters, kernel, name, to_si(value, row.text("Metric Unit")), row)
    return kernels, counters


def _read_raw(first: Cells, rest: Iterator[Cells]) -> tuple[dict[int, RawKernel], list[Counter]]:
    if first.text("ID"):
        raise InputError(f"{first.place}: the raw page has its units in the row below the header, this row has an ID")
    units = {name: first.text(name) for name in first.cells if "__" in name}
    kernels: dict[int, RawKernel] = {}
    counters: list[Counter] = []
    for row in rest:
        kernel = kernels.setdefault(row.integer("ID"), _kernel(row))
        for name, unit in units.items():
            if _is_number(row.text(name)):
                _add(kernels, counters, kernel, name, to_si(row.number(name), unit), row)
    return kernels, counters


def _add(
    kernels: dict[int, RawKernel],
    counters: list[Counter],
    kernel: RawKernel,
    name: str,
    measured: tuple[float, str],
    row: Cells,
) -> None:
    value, unit = measured
    if name in _TIMES:
        if unit != "s" or value < 0:
            raise InputError(f"{row.place}: {name} is {value} {unit!r}, must be a time of 0 or more")
        number = kernel.dispatch or 0
        kernels[number] = kernels[number]._replace(end_ns=value * 1e9)
    label = f"{name} ({unit})" if name == "Memory Throughput" else name
    counters.append(
        Counter(
            kernel=kernel.name,
            device=kernel.device,
            dispatch=kernel.dispatch,
            counter=label,
            value=value,
            unit=unit,
        )
    )


def _kernel(row: Cells) -> RawKernel:
    """A kernel without a start; `end_ns` holds its duration once the row with it is read."""
    return RawKernel(
        name=row.text("Kernel Name"),
        device=f"GPU {row.text('Device') or '0'}",
        stream=row.text("Stream") or None,
        grid=_size(row, "Grid Size"),
        block=_size(row, "Block Size"),
        dispatch=row.integer("ID"),
    )


def _size(row: Cells, column: str) -> Size | None:
    text = row.text(column)
    if not text:
        return None
    found = _SIZE.match(text)
    if found is None:
        raise InputError(f"{row.place}: {column} is {text[:40]!r}, must be like '(32, 1, 1)'")
    return (int(found[1]), int(found[2]), int(found[3]))


def _is_number(text: str) -> bool:
    """Words (names of the launch, "n/a") are no counters; broken numbers are, so that they are refused."""
    return text.lower() not in _NOT_NUMBERS and (text[0].isdigit() or text[0] in "+-.")


def _chain(first: Cells, rest: Iterator[Cells]) -> Iterator[Cells]:
    yield first
    yield from rest
