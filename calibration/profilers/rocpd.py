"""rocpd SQLite databases (rocprofv3's default output), read from their tables.

The schema's own views compute the same joins; they are not used, since a view in a file from outside can compute
anything. Tables carry a suffix by which several recordings lie in one file (`rocpd_tables.sql`, schema version 3).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from calibration.profilers.building import (
    CounterTable,
    RawKernel,
    blocks_of,
    check_span,
    make_kernels,
    origin_ns,
    place_by_launch,
    sum_up,
)
from calibration.profilers.database import Database, open_database, optional_whole, whole
from calibration.profilers.steps import StepFinder, choose_steps, looks_like_step, make_step
from calibration.profilers.tables import Device, Profile, Step
from calibration.sources import LIMITS, Limits, check_number
from moesim.errors import InputError

_DISPATCH = "rocpd_kernel_dispatch"
_SIZES = [f"{size}_size_{axis}" for size in ("workgroup", "grid") for axis in "xyz"]
_COLUMNS = ["kernel_id", "agent_id", "dispatch_id", "start", "end", "stream_id", *_SIZES, "event_id"]


class _AgentDetails(msgspec.Struct):
    cu_count: int | None = None
    simd_per_cu: int | None = None
    max_waves_per_simd: int | None = None
    num_xcc: int | None = None


def accepts(database: Database) -> bool:
    """Whether the file is a rocpd database."""
    return any(name.startswith("rocpd_") for name in database.tables)


def read(path: Path, limits: Limits = LIMITS) -> Profile:
    """All recordings of a database in one profile. Raises InputError."""
    with open_database(path, limits) as database:
        return read_database(database)


def read_database(database: Database) -> Profile:
    """As `read`, from an open file."""
    suffixes = [name.removeprefix(_DISPATCH) for name in database.tables if name.startswith(_DISPATCH)]
    if not suffixes:
        raise InputError(f"{database.path}: has no table {_DISPATCH}*, so it is no whole rocpd database")
    recordings = [
        _Recording(database, suffix, f"recording {suffix} " if len(suffixes) > 1 else "") for suffix in suffixes
    ]
    raws = [raw for recording in recordings for raw in recording.kernels]
    origin = origin_ns(raws)
    marks = [mark for recording in recordings for mark in recording.marks()]
    steps = choose_steps([_step(name, start, end, origin) for name, start, end in marks])
    finder = StepFinder(steps)
    launches = {key: start for recording in recordings for key, start in recording.launches().items()}
    placed = place_by_launch(raws, lambda raw: launches.get((raw.device, raw.correlation)), finder.at, origin)
    counters = CounterTable(database.path)
    for recording in recordings:
        recording.count(counters)
    made = counters.make()
    return Profile(
        path=str(database.path),
        tool="rocprofv3 (rocpd SQLite)",
        kernels=make_kernels(placed),
        counters=made,
        steps=tuple(steps),
        devices=tuple(device for recording in recordings for device in recording.devices()),
        totals=tuple(sum_up("call", ((name, (end - start) * 1e-9) for name, start, end in marks))),
        absent=tuple(_absent(database, bool(raws), bool(made), bool(steps))),
    )


def _absent(database: Database, kernels: bool, counters: bool, steps: bool) -> list[str]:
    lines: list[str] = []
    if not kernels:
        lines.append("kernels: no dispatch was recorded")
    if not counters:
        known = any(name.startswith("rocpd_pmc_event") for name in database.tables)
        lines.append("counters: " + ("none were collected" if known else "the file has no table rocpd_pmc_event"))
    if not steps:
        lines.append("steps: no marker range names an engine step")
    return lines


class _Recording:
    """The tables of one recording."""

    def __init__(self, database: Database, suffix: str, prefix: str) -> None:
        self._database = database
        self._suffix = suffix
        self._agents = {
            row[0]: (f"{prefix}Agent {row[1]}", *row[2:])
            for row in self._rows("info_agent", "id absolute_index type", "product_name name extdata")
        }
        self._symbols = {
            key: display or name
            for key, name, display in self._rows("info_kernel_symbol", "id kernel_name", "display_name")
        }
        self._correlations = dict(self._rows("event", "id correlation_id"))
        self._by_event: dict[int, RawKernel] = {}
        self.kernels = [self._kernel(row) for row in database.rows(_DISPATCH + suffix, _COLUMNS)]

    def _rows(self, table: str, columns: str, optional: str = "") -> list[tuple[Any, ...]]:
        return list(self._database.rows(f"rocpd_{table}{self._suffix}", columns.split(), optional.split()))

    def _kernel(self, row: tuple[Any, ...]) -> RawKernel:
        kernel, agent, *_, event = row
        place = f"{self._database.path}: table {_DISPATCH}{self._suffix}, dispatch {row[2]}"
        name, device = self._symbols.get(kernel), self._agents.get(agent)
        if name is None or device is None:
            raise InputError(f"{place}: names kernel {kernel} of agent {agent}, which the file does not describe")
        dispatch, start, end, stream, *sizes = (whole(cell, place) for cell in row[2:-1])
        start, end = check_span(start, end, place)
        block, items = (sizes[0], sizes[1], sizes[2]), (sizes[3], sizes[4], sizes[5])
        raw = RawKernel(
            name=str(name),
            device=device[0],
            start_ns=start,
            end_ns=end,
            stream=str(stream),
            grid=blocks_of(items, block, place),
            block=block,
            correlation=optional_whole(self._correlations.get(event), place),
            dispatch=dispatch,
        )
        self._by_event[event] = raw
        return raw

    def count(self, counters: CounterTable) -> None:
        """Add the counter readings of kernels."""
        if not self._database.has(f"rocpd_pmc_event{self._suffix}"):
            return
        names = {key: (str(name), str(unit or "")) for key, name, unit in self._rows("info_pmc", "id name", "units")}
        for event, pmc, value in self._database.rows(f"rocpd_pmc_event{self._suffix}", ("event_id", "pmc_id", "value")):
            raw, named = self._by_event.get(event), names.get(pmc)
            if raw is None:
                continue
            if named is None or not isinstance(value, int | float):
                raise InputError(
                    f"{self._database.path}: a counter reading of dispatch {raw.dispatch} has no name or no value"
                )
            counters.add(
                raw, named[0], check_number(float(value), f"{self._database.path}: {named[0]}"), event, named[1]
            )

    def marks(self) -> list[tuple[str, int, int]]:
        """(name, start, end) of all ranges: markers and API calls."""
        return [(name, start, end) for name, start, end, _ in self._regions()]

    def launches(self) -> dict[tuple[str, int | None], int]:
        """Start of the API call that launched a kernel, by device and correlation."""
        starts = {correlation: start for name, start, _, correlation in self._regions() if not looks_like_step(name)}
        return {
            (raw.device, raw.correlation): starts[raw.correlation]
            for raw in self.kernels
            if raw.correlation is not None and raw.correlation in starts
        }

    def _regions(self) -> list[tuple[str, int, int, int | None]]:
        table = f"rocpd_region{self._suffix}"
        if not self._database.has(table, "name_id", "start", "end", "event_id"):
            return []
        strings = dict(self._rows("string", "id string"))
        place = f"{self._database.path}: table {table}"
        found: list[tuple[str, int, int, int | None]] = []
        for name, start, end, event in self._database.rows(table, ("name_id", "start", "end", "event_id")):
            first, last = check_span(whole(start, place), whole(end, place), place)
            correlation = optional_whole(self._correlations.get(event), place)
            found.append((str(strings.get(name, "")), int(first), int(last), correlation))
        return found

    def devices(self) -> list[Device]:
        """The GPUs, with what their JSON details say."""
        return [
            _describe(name, str(product or short or ""), details)
            for name, kind, product, short, details in self._agents.values()
            if kind == "GPU"
        ]


def _describe(device: str, name: str, details: Any) -> Device:
    try:
        known = msgspec.json.decode(str(details or "{}"), type=_AgentDetails)
    except (msgspec.MsgspecError, RecursionError):
        known = _AgentDetails()
    slots = known.simd_per_cu * known.max_waves_per_simd if known.simd_per_cu and known.max_waves_per_simd else None
    return Device(
        device=device, name=name, vendor="AMD", compute_units=known.cu_count, waves_per_unit=slots, dies=known.num_xcc
    )


def _step(name: str, start: int, end: int, origin: float) -> Step:
    return make_step(name, (start - origin) * 1e-9, (end - start) * 1e-9, on_device=False)
