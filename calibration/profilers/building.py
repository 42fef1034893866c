"""From a tool's timestamps to the tables: one origin for a file, seconds after it, repeated passes combined."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from calibration.profilers.tables import Counter, Kernel, Size, Total
from moesim.errors import InputError

MAX_COUNTERS = 10_000_000


class RawKernel(NamedTuple):
    """An execution with its timestamps as the tool wrote them, in nanoseconds of its own clock.

    Where only the duration is known, `start_ns` is None and `end_ns` the duration.
    """

    name: str
    device: str
    start_ns: float | None = None
    end_ns: float | None = None
    stream: str | None = None
    grid: Size | None = None
    block: Size | None = None
    correlation: int | None = None
    dispatch: int | None = None
    graph_node: int | None = None
    step: int | None = None


def check_span(start_ns: float, end_ns: float, place: str) -> tuple[float, float]:
    """The span itself. Raises InputError when it ends before it starts."""
    if end_ns < start_ns:
        raise InputError(f"{place}: ends at {end_ns} ns, before it starts at {start_ns} ns")
    return start_ns, end_ns


def origin_ns(raws: Iterable[RawKernel]) -> float:
    """Start of the first kernel; 0 when no kernel has a start."""
    return min((raw.start_ns for raw in raws if raw.start_ns is not None), default=0)


def make_kernels(raws: Sequence[RawKernel]) -> tuple[Kernel, ...]:
    """The kernel table in order of start; subtraction comes before the conversion, so that nanoseconds survive."""
    origin = origin_ns(raws)
    ordered = sorted(raws, key=lambda raw: (raw.start_ns is None, raw.start_ns or 0))
    return tuple(_make_kernel(raw, origin) for raw in ordered)


def _make_kernel(raw: RawKernel, origin: float) -> Kernel:
    return Kernel(
        name=raw.name,
        device=raw.device,
        start_s=(raw.start_ns - origin) * 1e-9 if raw.start_ns is not None else None,
        duration_s=(raw.end_ns - (raw.start_ns or 0)) * 1e-9 if raw.end_ns is not None else None,
        stream=raw.stream,
        grid=raw.grid,
        block=raw.block,
        correlation=raw.correlation,
        dispatch=raw.dispatch,
        graph_node=raw.graph_node,
        step=raw.step,
    )


def place_by_launch(
    raws: Iterable[RawKernel],
    launch_ns: Callable[[RawKernel], float | None],
    find_step: Callable[[float], int | None],
    origin: float,
) -> list[RawKernel]:
    """The kernels with the step in which the host launched them; `find_step` takes seconds after the origin."""
    placed: list[RawKernel] = []
    for raw in raws:
        launched = launch_ns(raw)
        placed.append(raw if launched is None else raw._replace(step=find_step((launched - origin) * 1e-9)))
    return placed


def blocks_of(items: Size, block: Size, place: str) -> Size:
    """AMD's tools count the grid in work-items: the workgroups that they make, part-filled ones included."""
    if min(*items, *block) < 1:
        raise InputError(f"{place}: grid {items} and workgroup {block} must be at least 1 in each direction")
    return (-(-items[0] // block[0]), -(-items[1] // block[1]), -(-items[2] // block[2]))


class CounterTable:
    """Collects the counter values of a file: instances of one pass are added up, repeated passes averaged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._passes: dict[tuple[str, str, int, str], dict[object, float]] = {}
        self._units: dict[tuple[str, str, int, str], str] = {}

    def add(self, kernel: RawKernel, counter: str, value: float, run: object, unit: str = "") -> None:
        """One reading over an execution; `run` tells the pass (its start time, for example)."""
        key = (kernel.device, kernel.name, kernel.dispatch or 0, counter)
        readings = self._passes.setdefault(key, {})
        readings[run] = readings.get(run, 0.0) + value
        self._units[key] = unit
        if len(self._units) > MAX_COUNTERS:
            raise InputError(f"{self._path}: holds more than {MAX_COUNTERS} counter values, the limit")

    def make(self) -> tuple[Counter, ...]:
        """The counter table, in order of first appearance."""
        return tuple(
            Counter(
                kernel=kernel,
                device=device,
                dispatch=dispatch,
                counter=counter,
                value=sum(readings.values()) / len(readings),
                unit=self._units[device, kernel, dispatch, counter],
            )
            for (device, kernel, dispatch, counter), readings in self._passes.items()
        )


def sum_up(what: str, entries: Iterable[tuple[str, float]]) -> tuple[Total, ...]:
    """(name, seconds) entries added up by name, the longest first."""
    counts: dict[str, int] = {}
    seconds: dict[str, float] = {}
    for name, duration_s in entries:
        counts[name] = counts.get(name, 0) + 1
        seconds[name] = seconds.get(name, 0.0) + duration_s
    made = [Total(what=what, name=name, count=counts[name], total_s=seconds[name]) for name in counts]
    return tuple(sorted(made, key=lambda total: -total.total_s))
