"""rocprofv3's CSV files, the same made by `rocpd convert`, and rocprofiler-compute's long and wide counter CSVs.

Columns: ROCm documentation, "Using rocprofv3" (ROCm 7), and the files of rocprofiler-compute. Names are matched
without regard to case, since the tools write Dispatch_Id and Dispatch_ID, Wave_Size and wave_size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from calibration.profilers.building import CounterTable, RawKernel, blocks_of, check_span, make_kernels, sum_up
from calibration.profilers.rocprof_system import find_device
from calibration.profilers.tables import Profile, Size, Total
from calibration.sources import LIMITS, Cells, Limits, read_table

_NO_COUNTERS = "counters: this file has no counter columns (rocprofv3 --pmc writes them to another file)"
_NO_STEPS = "steps: rocprofv3's CSV files hold no marker ranges beside the kernels"
_SERIALISED = "kernels were run one by one to read counters: gaps between them are the profiler's"
_ROUNDED = "timestamps in exponent form were rounded by a spreadsheet: no start or duration is read from them"
_DESCRIPTION = re.compile(
    r"^(dispatch_id|kernel_name|kernel_id|gpu_id|agent_id|queue_id|queue-id|queue-index|pid|tid|process_id|thread_id|guid"
    r"|grid_size|workgroup_size|lds_per_workgroup|scratch_per_workitem|arch_vgpr|accum_vgpr|sgpr|wave_size|sig|obj"
    r"|dispatchns|completens|start_timestamp|end_timestamp|correlation_id|xcc_index|node|index|lds_block_size"
    r"|scratch_size|vgpr_count|accum_vgpr_count|sgpr_count)(_\d+)?$"
)
"""Columns of a wide counter CSV that describe the dispatch (those of later passes carry a number)."""


_WORDS = frozenset(
    ["kind", "domain", "function", "direction", "operation", "name", "calls", "totaldurationns", "stream_id"]
    + ["counter_name", "counter_value"]
    + [f"{size}_{axis}" for size in ("grid_size", "workgroup_size") for axis in "xyz"]
)


def accepts(columns: frozenset[str]) -> bool:
    """Whether a table with these lower-case columns is one of rocprofv3's or rocprofiler-compute's."""
    timed = {"start_timestamp", "end_timestamp"} <= columns
    dispatch = "kernel_name" in columns and "dispatch_id" in columns
    call = timed and bool(columns & {"function", "direction", "operation"})
    return call or dispatch or (timed and "kernel_name" in columns) or "totaldurationns" in columns


def read(path: Path, limits: Limits = LIMITS) -> Profile:
    """Any CSV file that `accepts` takes. Raises InputError."""
    rows = (_folded(row) for row in read_table(path, limits))
    first = next(rows, None)
    if first is None:
        return Profile(
            path=str(path), tool="rocprofv3 CSV", absent=("kernels, counters: the file has a header and no rows",)
        )
    columns = first.cells
    every = _chain(first, rows)
    if "totaldurationns" in columns:
        return _read_stats(path, every)
    if "kernel_name" not in columns:
        return _read_calls(path, every)
    if "counter_name" in columns:
        return _read_long(path, every)
    if "grid_size_x" in columns:
        return _read_trace(path, every)
    return _read_wide(path, every)


def _folded(row: Cells) -> Cells:
    return Cells(row.path, row.line, {_fold(name): cell for name, cell in row.cells.items()})


@cache
def _fold(name: str) -> str:
    """Describing columns in lower case; counters keep their names."""
    lower = name.lower()
    return lower if lower in _WORDS or _DESCRIPTION.match(lower) else name


def _chain(first: Cells, rest: Iterator[Cells]) -> Iterator[Cells]:
    yield first
    yield from rest


def _read_trace(path: Path, rows: Iterator[Cells]) -> Profile:
    return Profile(
        path=str(path),
        tool="rocprofv3 kernel trace (CSV)",
        kernels=make_kernels([_traced_kernel(row) for row in rows]),
        absent=(_NO_COUNTERS, _NO_STEPS),
    )


def _traced_kernel(row: Cells) -> RawKernel:
    start, end = check_span(row.integer("start_timestamp"), row.integer("end_timestamp"), row.place)
    block = _size(row, "workgroup_size")
    return RawKernel(
        name=row.text("kernel_name"),
        device=_device(row),
        start_ns=start,
        end_ns=end,
        stream=row.text("stream_id") or row.text("queue_id") or None,
        grid=blocks_of(_size(row, "grid_size"), block, row.place),
        block=block,
        correlation=row.optional("correlation_id"),
        dispatch=row.optional("dispatch_id"),
    )


def _read_long(path: Path, rows: Iterator[Cells]) -> Profile:
    counters, kernels, remarks = CounterTable(path), dict[object, RawKernel](), dict[str, None]()
    for row in rows:
        kernel = _dispatched_kernel(row, remarks)
        run = (kernel.device, kernel.dispatch, kernel.start_ns)
        kernels.setdefault(run, kernel)
        value, name = row.number("counter_value"), row.text("counter_name")
        counters.add(kernel, name, value, run)
    return Profile(
        path=str(path),
        tool="rocprofv3 counter collection (long CSV)",
        kernels=make_kernels(list(kernels.values())),
        counters=counters.make(),
        devices=find_device(path, {kernel.device for kernel in kernels.values()}),
        absent=(_NO_STEPS,),
        remarks=(
            _SERIALISED,
            *remarks,
            *_passes(len(kernels), len({run[:2] for run in kernels if isinstance(run, tuple)})),
        ),
    )


def _passes(executions: int, dispatches: int) -> tuple[str, ...]:
    if executions == dispatches:
        return ()
    return (f"{executions} executions of {dispatches} dispatches: the program ran again for each group of counters",)


def _read_wide(path: Path, rows: Iterator[Cells]) -> Profile:
    counters, kernels, remarks = CounterTable(path), list[RawKernel](), dict[str, None]()
    for row in rows:
        kernel = _dispatched_kernel(row, remarks)
        kernels.append(kernel)
        for name in row.cells:
            if not _DESCRIPTION.match(name) and row.text(name):
                counters.add(kernel, name, row.number(name), 0)
    made = counters.make()
    return Profile(
        path=str(path),
        tool="rocprofiler-compute (wide CSV)",
        kernels=make_kernels(kernels),
        counters=made,
        devices=find_device(path, {kernel.device for kernel in kernels}),
        absent=(_NO_STEPS,) if made else (_NO_COUNTERS, _NO_STEPS),
        remarks=(_SERIALISED, *remarks) if made else tuple(remarks),
    )


def _dispatched_kernel(row: Cells, remarks: dict[str, None]) -> RawKernel:
    """A row of a counter CSV; flattened sizes become (n, 1, 1)."""
    start: float | None = None
    end: float | None = None
    stamps = row.text("start_timestamp"), row.text("end_timestamp")
    if any("e" in stamp.lower() for stamp in stamps):
        remarks[_ROUNDED] = None
    elif all(stamps):
        start, end = check_span(row.integer("start_timestamp"), row.integer("end_timestamp"), row.place)
    grid, block = row.optional("grid_size"), row.optional("workgroup_size")
    return RawKernel(
        name=row.text("kernel_name"),
        device=_device(row),
        start_ns=start,
        end_ns=end,
        stream=row.text("queue_id") or row.text("queue-id") or None,
        grid=blocks_of((grid, 1, 1), (block, 1, 1), row.place) if grid is not None and block is not None else None,
        block=(block, 1, 1) if block is not None else None,
        correlation=row.optional("correlation_id"),
        dispatch=row.integer("dispatch_id"),
    )


def _read_calls(path: Path, rows: Iterator[Cells]) -> Profile:
    entries: list[tuple[str, str, float]] = []
    for row in rows:
        start, end = check_span(row.integer("start_timestamp"), row.integer("end_timestamp"), row.place)
        what = row.text("domain") or row.text("kind") or "call"
        name = row.text("function") or row.text("direction") or row.text("operation")
        entries.append((what.lower().replace("_", " "), name, (end - start) * 1e-9))
    kinds = dict.fromkeys(what for what, _, _ in entries)
    grouped = {kind: [(name, time) for what, name, time in entries if what == kind] for kind in kinds}
    totals = [total for kind, entries_of_kind in grouped.items() for total in sum_up(kind, entries_of_kind)]
    return Profile(
        path=str(path),
        tool=f"rocprofv3 trace of {', '.join(kinds)} (CSV)",
        totals=tuple(totals),
        absent=("kernels: this file holds calls and copies, no kernels", _NO_COUNTERS),
    )


def _read_stats(path: Path, rows: Iterator[Cells]) -> Profile:
    """`*_stats.csv`: kernels, API calls or domains, told apart by the file's name only."""
    what = "kernel" if "kernel" in path.name.lower() else "call"
    totals = [_stat(what, row) for row in rows]
    return Profile(
        path=str(path),
        tool="rocprofv3 statistics (CSV)",
        totals=tuple(totals),
        absent=("kernels: statistics hold sums, no single executions", _NO_COUNTERS),
    )


def _stat(what: str, row: Cells) -> Total:
    time_s = row.number("totaldurationns") * 1e-9
    return Total(what=what, name=row.text("name"), count=row.integer("calls"), total_s=time_s)


def _device(row: Cells) -> str:
    agent, gpu = row.text("agent_id"), row.text("gpu_id")
    if agent:
        return f"Agent {agent}" if agent.isdecimal() else agent
    return f"GPU {gpu}" if gpu else "unnamed"


def _size(row: Cells, prefix: str) -> Size:
    return (row.integer(f"{prefix}_x"), row.integer(f"{prefix}_y"), row.integer(f"{prefix}_z"))
