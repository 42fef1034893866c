"""rocprofv3's JSON output (its schema file, `rocprofv3-schema.json` of the rocprofiler-sdk)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from calibration.profilers.building import (
    CounterTable,
    RawKernel,
    blocks_of,
    check_span,
    make_kernels,
    origin_ns,
    place_by_launch,
)
from calibration.profilers.steps import StepFinder, choose_steps, looks_like_step, make_step
from calibration.profilers.tables import Device, Profile, Size, Step
from calibration.sources import LIMITS, Limits, check_number, read_json
from moesim.errors import InputError

_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Handle(msgspec.Struct):
    handle: int


class _Size(msgspec.Struct):
    x: int
    y: int
    z: int

    def size(self) -> Size:
        return (self.x, self.y, self.z)


class _DispatchInfo(msgspec.Struct):
    agent_id: _Handle
    queue_id: _Handle
    kernel_id: int
    dispatch_id: int
    workgroup_size: _Size
    grid_size: _Size


class _Correlation(msgspec.Struct):
    internal: int


class _Dispatch(msgspec.Struct):
    start_timestamp: _Count
    end_timestamp: _Count
    correlation_id: _Correlation
    dispatch_info: _DispatchInfo
    stream_id: _Handle | None = None


class _Symbol(msgspec.Struct):
    kernel_id: int
    formatted_kernel_name: str = ""
    kernel_name: str = ""


class _Agent(msgspec.Struct):
    id: _Handle
    type: int
    node_id: int = -1
    name: str = ""
    product_name: str = ""
    gfx_target_version: int = 0
    cu_count: int | None = None
    simd_per_cu: int | None = None
    max_waves_per_simd: int | None = None
    num_xcc: int | None = None


class _CounterName(msgspec.Struct):
    id: _Handle
    name: str


class _Reading(msgspec.Struct):
    counter_id: _Handle
    value: float


class _DispatchData(msgspec.Struct):
    dispatch_info: _DispatchInfo
    correlation_id: _Correlation
    start_timestamp: _Count | None = None
    end_timestamp: _Count | None = None


class _Collection(msgspec.Struct):
    dispatch_data: _DispatchData
    records: list[_Reading]


class _Callbacks(msgspec.Struct):
    counter_collection: list[_Collection] = []


class _Call(msgspec.Struct, gc=False):
    start_timestamp: _Count
    end_timestamp: _Count
    correlation_id: _Correlation


class _Message(msgspec.Struct):
    key: int
    value: str


class _Strings(msgspec.Struct):
    marker_api: list[_Message] = []


class _Buffers(msgspec.Struct):
    kernel_dispatch: list[_Dispatch] = []
    hip_api: list[_Call] = []
    marker_api: list[_Call] = []


class _Metadata(msgspec.Struct):
    pid: int = 0


class _Process(msgspec.Struct):
    agents: list[_Agent] = []
    counters: list[_CounterName] = []
    kernel_symbols: list[_Symbol] = []
    callback_records: _Callbacks = msgspec.field(default_factory=_Callbacks)
    buffer_records: _Buffers = msgspec.field(default_factory=_Buffers)
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)
    strings: _Strings = msgspec.field(default_factory=_Strings)


class _Document(msgspec.Struct):
    processes: list[_Process] = msgspec.field(name="rocprofiler-sdk-tool")


def read(path: Path, limits: Limits = LIMITS) -> Profile:
    """All kernel dispatches and counter readings of all processes. Raises InputError."""
    processes = read_json(path, _Document, limits).processes
    several = len(processes) > 1
    raws: list[RawKernel] = []
    counters, devices = CounterTable(path), list[Device]()
    for process in processes:
        named = _Named(path, process, f"process {process.metadata.pid} " if several else "")
        raws.extend(named.kernel(dispatch) for dispatch in process.buffer_records.kernel_dispatch)
        found = _collect(named, process.callback_records.counter_collection, counters)
        raws.extend(found if not process.buffer_records.kernel_dispatch else ())
        devices.extend(named.devices())
    made = counters.make()
    placed, steps = _place(raws, processes, path)
    absent = [] if steps else ["steps: no marker range names an engine step"]
    absent += ["counters: none were collected"] if not made else []
    absent += ["kernels: no dispatch was recorded"] if not raws else []
    return Profile(
        path=str(path),
        tool="rocprofv3 (JSON)",
        kernels=make_kernels(placed),
        counters=made,
        steps=tuple(steps),
        devices=tuple(devices),
        absent=tuple(absent),
    )


def _place(
    raws: Sequence[RawKernel], processes: Sequence[_Process], path: Path
) -> tuple[Sequence[RawKernel], list[Step]]:
    """The kernels in the marked steps whose host range holds their launch; several processes share no correlations.

    A marker's text is found by its correlation. With several processes the steps are left out.
    """
    if len(processes) != 1:
        return raws, []
    process, origin = processes[0], origin_ns(raws)
    names = {message.key: message.value for message in process.strings.marker_api}
    marks = [(names.get(call.correlation_id.internal, ""), call) for call in process.buffer_records.marker_api]
    steps = choose_steps([_step(name, call, origin, path) for name, call in marks if looks_like_step(name)])
    launches = {call.correlation_id.internal: call.start_timestamp for call in process.buffer_records.hip_api}
    finder = StepFinder(steps)
    return place_by_launch(raws, lambda raw: launches.get(raw.correlation or -1), finder.at, origin), steps


def _step(name: str, call: _Call, origin: float, path: Path) -> Step:
    start, end = check_span(call.start_timestamp, call.end_timestamp, f"{path}: range {name}")
    return make_step(name, (start - origin) * 1e-9, (end - start) * 1e-9, on_device=False)


class _Named:
    """Looks up what a process's records refer to by number."""

    def __init__(self, path: Path, process: _Process, prefix: str) -> None:
        self.path = path
        self._agents = {agent.id.handle: agent for agent in process.agents}
        self._symbols = {
            item.kernel_id: item.formatted_kernel_name or item.kernel_name for item in process.kernel_symbols
        }
        self.counters = {counter.id.handle: counter.name for counter in process.counters}
        self._prefix = prefix

    def device(self, handle: int) -> str:
        agent = self._agents.get(handle)
        number = agent.node_id if agent is not None and agent.node_id >= 0 else handle
        return f"{self._prefix}Agent {number}"

    def devices(self) -> Sequence[Device]:
        return [_describe(agent, self.device(handle)) for handle, agent in self._agents.items() if agent.type == 2]

    def name(self, info: _DispatchInfo) -> str:
        name = self._symbols.get(info.kernel_id)
        if name is None:
            raise InputError(
                f"{self.path}: dispatch {info.dispatch_id} names kernel_id {info.kernel_id}, which no symbol has"
            )
        return name

    def kernel(self, dispatch: _Dispatch) -> RawKernel:
        return self.make(
            dispatch.dispatch_info,
            dispatch.correlation_id,
            (dispatch.start_timestamp, dispatch.end_timestamp),
            dispatch.stream_id,
        )

    def make(
        self,
        info: _DispatchInfo,
        correlation: _Correlation,
        span: tuple[int, int] | None,
        stream: _Handle | None = None,
    ) -> RawKernel:
        place = f"{self.path}: dispatch {info.dispatch_id}"
        start, end = check_span(*span, place) if span is not None else (None, None)
        block = info.workgroup_size.size()
        return RawKernel(
            name=self.name(info),
            device=self.device(info.agent_id.handle),
            start_ns=start,
            end_ns=end,
            stream=str((stream or info.queue_id).handle),
            grid=blocks_of(info.grid_size.size(), block, place),
            block=block,
            correlation=correlation.internal,
            dispatch=info.dispatch_id,
        )


def _collect(named: _Named, collections: Sequence[_Collection], counters: CounterTable) -> list[RawKernel]:
    """Adds the readings to `counters`; returns their dispatches, for files that hold no other dispatch records."""
    raws: list[RawKernel] = []
    for index, collection in enumerate(collections):
        data = collection.dispatch_data
        start, end = data.start_timestamp, data.end_timestamp
        raw = named.make(data.dispatch_info, data.correlation_id, (start, end) if start and end is not None else None)
        raws.append(raw)
        for reading in collection.records:
            counter = named.counters.get(reading.counter_id.handle)
            if counter is None:
                handle = reading.counter_id.handle
                place = f"{named.path}: dispatch {raw.dispatch}"
                raise InputError(f"{place} names counter {handle}, which the file does not describe")
            value = check_number(reading.value, f"{named.path}: {counter} of dispatch {raw.dispatch}")
            counters.add(raw, counter, value, start or index)
    return raws


def _describe(agent: _Agent, device: str) -> Device:
    slots = agent.simd_per_cu * agent.max_waves_per_simd if agent.simd_per_cu and agent.max_waves_per_simd else None
    return Device(
        device=device,
        name=agent.product_name or agent.name,
        architecture=_architecture(agent.gfx_target_version),
        vendor="AMD",
        compute_units=agent.cu_count,
        waves_per_unit=slots,
        dies=agent.num_xcc,
    )


def _architecture(version: int) -> str:
    """gfx name of a target version: 90402 is major 9, minor 4, stepping 2 (a hexadecimal digit), so gfx942."""
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}" if version else ""
