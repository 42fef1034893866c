"""Chrome traces of torch.profiler (Kineto), on CUDA and ROCm, with the step annotations of vLLM and SGLang.

Times are microseconds. A kernel belongs to the step whose host annotation holds the call that launched it (they
share a correlation; every kernel of a replayed graph has that of the graph's launch), or whose device annotation
holds its start. Environment variables and other metadata in the trace are not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from calibration.profilers.building import RawKernel, check_span, make_kernels, origin_ns, place_by_launch, sum_up
from calibration.profilers.steps import StepFinder, choose_steps, looks_like_step, make_step
from calibration.profilers.tables import Counter, Device, Profile, Size, Step
from calibration.sources import LIMITS, Limits, parse_number, read_json
from moesim.errors import InputError

_COPIES = {"gpu_memcpy": "copy", "gpu_memset": "memory set"}
_LAUNCHES = frozenset({"cuda_runtime", "cuda_driver", "hip_runtime"})
_MARKS = frozenset({"user_annotation", "gpu_user_annotation"})
_OCCUPANCY = "est. achieved occupancy %"


class _Event(msgspec.Struct, gc=False):
    ph: str = ""
    cat: str = ""
    name: Any = ""
    ts: float | str | None = None
    dur: float | str | None = None
    pid: Any = None
    tid: Any = None
    args: Any = None


class _DeviceProperties(msgspec.Struct):
    id: int
    name: str = ""
    totalGlobalMem: int | None = None  # noqa: N815 (Kineto's names)
    computeMajor: int | None = None  # noqa: N815
    computeMinor: int | None = None  # noqa: N815
    warpSize: int | None = None  # noqa: N815
    maxThreadsPerMultiprocessor: int | None = None  # noqa: N815
    numSms: int | None = None  # noqa: N815


class _Trace(msgspec.Struct):
    traceEvents: list[_Event]  # noqa: N815
    deviceProperties: list[_DeviceProperties] = []  # noqa: N815


def read(path: Path, limits: Limits = LIMITS) -> Profile:
    """Kernels, steps, devices, copies; estimated occupancy as a counter where Kineto gives it. Raises InputError."""
    trace = read_json(path, _Trace, limits)
    events = [event for event in trace.traceEvents if event.ph == "X"]
    raws = [_kernel(event, index, path) for index, event in enumerate(events) if event.cat == "kernel"]
    origin = origin_ns(raws)
    steps = choose_steps([_step(event, origin, path) for event in events if _is_step(event)])
    placed = _place(raws, steps, events, origin, path)
    counters = _occupancy(events, raws, path)
    return Profile(
        path=str(path),
        tool="torch.profiler (Chrome trace)",
        kernels=make_kernels(placed),
        counters=tuple(counters),
        steps=tuple(steps),
        devices=tuple(_describe(item) for item in trace.deviceProperties),
        totals=tuple(total for cat, what in _COPIES.items() for total in sum_up(what, _copies(events, cat, path))),
        absent=tuple(_absent(bool(raws), bool(steps), bool(counters), bool(trace.deviceProperties))),
    )


def _absent(kernels: bool, steps: bool, counters: bool, devices: bool) -> list[str]:
    lines: list[str] = []
    if not kernels:
        lines.append("kernels: the trace has no events of category kernel (was the GPU activity recorded?)")
    if not counters:
        lines.append("counters: the trace holds no hardware counters")
    else:
        lines.append("counters: only Kineto's estimate of occupancy; no memory traffic")
    if not steps:
        lines.append("steps: no annotation names an engine step")
    if not devices:
        lines.append("devices: the trace does not describe them")
    return lines


def _kernel(event: _Event, index: int, path: Path) -> RawKernel:
    args = _args(event)
    start, end = _span(event, path)
    return RawKernel(
        name=str(event.name),
        device=f"GPU {args.get('device', event.pid)}",
        start_ns=start,
        end_ns=end,
        stream=str(args.get("stream", event.tid)),
        grid=_size(args.get("grid")),
        block=_size(args.get("block")),
        correlation=_whole(args.get("correlation")),
        dispatch=index,
        graph_node=_whole(args.get("graph node id")) or None,
    )


def _place(
    raws: Sequence[RawKernel], steps: Sequence[Step], events: Sequence[_Event], origin: float, path: Path
) -> list[RawKernel]:
    if not steps:
        return list(raws)
    finder = StepFinder(steps)
    if steps[0].on_device:
        return place_by_launch(raws, lambda raw: raw.start_ns, finder.at, origin)
    launches: dict[int | None, float] = {
        correlation: _span(event, path)[0]
        for event in events
        if event.cat in _LAUNCHES and (correlation := _whole(_args(event).get("correlation"))) is not None
    }
    return place_by_launch(raws, lambda raw: launches.get(raw.correlation), finder.at, origin)


def _occupancy(events: Sequence[_Event], raws: Sequence[RawKernel], path: Path) -> list[Counter]:
    found: list[Counter] = []
    for raw in raws:
        value = _args(events[raw.dispatch or 0]).get(_OCCUPANCY)
        if value:  # Kineto writes 0 for kernels whose launch it cannot estimate
            number = parse_number(str(value), f"{path}: {_OCCUPANCY} of {raw.name[:60]}")
            found.append(_estimate(raw.name, raw.device, raw.dispatch, number))
    return found


def _estimate(kernel: str, device: str, dispatch: int | None, percent: float) -> Counter:
    return Counter(kernel=kernel, device=device, dispatch=dispatch, counter=_OCCUPANCY, value=percent, unit="%")


def _copies(events: Sequence[_Event], category: str, path: Path) -> list[tuple[str, float]]:
    spans = [(str(event.name), _span(event, path)) for event in events if event.cat == category]
    return [(name, (end - start) * 1e-9) for name, (start, end) in spans]


def _is_step(event: _Event) -> bool:
    return event.cat in _MARKS and looks_like_step(str(event.name))


def _step(event: _Event, origin: float, path: Path) -> Step:
    start, end = _span(event, path)
    return make_step(str(event.name), (start - origin) * 1e-9, (end - start) * 1e-9, event.cat == "gpu_user_annotation")


def _span(event: _Event, path: Path) -> tuple[float, float]:
    """Start and end in nanoseconds, rounded to whole ones (Kineto writes three decimals of a microsecond)."""
    place = f"{path}: event {str(event.name)[:60]!r}"
    if event.ts is None or event.dur is None:
        raise InputError(f"{place}: has no ts or no dur")
    start = parse_number(str(event.ts), f"{place}: ts") * 1e3
    end = start + parse_number(str(event.dur), f"{place}: dur") * 1e3
    return check_span(float(round(start)), float(round(end)), place)


def _args(event: _Event) -> dict[str, Any]:
    return event.args if isinstance(event.args, dict) else {}


def _size(value: Any) -> Size | None:
    if isinstance(value, list) and len(value) == 3 and all(isinstance(part, int) for part in value):
        return (value[0], value[1], value[2])
    return None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _describe(item: _DeviceProperties) -> Device:
    """What Kineto writes about a device; an AMD one has waves of 64 threads and a hip-style version."""
    amd = item.warpSize == 64
    threads = item.maxThreadsPerMultiprocessor
    waves = threads // item.warpSize if threads and item.warpSize else None
    version = f"{item.computeMajor}.{item.computeMinor}" if item.computeMajor is not None else ""
    return Device(
        device=f"GPU {item.id}",
        name=item.name,
        architecture=version,
        vendor="AMD" if amd else "NVIDIA",
        compute_units=item.numSms,
        waves_per_unit=waves,
        memory_bytes=item.totalGlobalMem,
    )
