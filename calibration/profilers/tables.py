"""What every profiler's file becomes: one table of kernels, one of counters, the steps, and what is absent."""

from __future__ import annotations

import msgspec

Size = tuple[int, int, int]


class Kernel(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One execution of a kernel. None where the file does not say.

    `start_s`: seconds after the start of the file's first kernel. `grid` counts blocks (workgroups) and `block`
    threads (work-items) in x, y, z; formats that give only products have them as (n, 1, 1). `dispatch`: the
    number by which the file's counters name the execution. `graph_node`: node of a captured graph. `step`:
    index in the profile's steps.
    """

    name: str
    device: str
    start_s: float | None = None
    duration_s: float | None = None
    stream: str | None = None
    grid: Size | None = None
    block: Size | None = None
    correlation: int | None = None
    dispatch: int | None = None
    graph_node: int | None = None
    step: int | None = None


class Counter(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A counter's value over one execution of a kernel, or over the whole file (`dispatch` None).

    `unit` is in SI or the tool's own word ("%", "byte", "byte/s", "s"); '' where the tool gives none, as
    rocprofv3 does for raw counts.
    """

    kernel: str
    device: str
    dispatch: int | None
    counter: str
    value: float
    unit: str = ""


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of requests in a step: how many, and sums over them of query and key lengths.

    `query`, `key`: sums of new tokens and of tokens attended to; `query_query`, `query_key`: sums of the
    requests' products. None where the annotation has the short form.
    """

    requests: int
    query: int | None = None
    key: int | None = None
    query_query: int | None = None
    query_key: int | None = None


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One engine step marked in the file; times as in `Kernel` (a host mark may begin before the first kernel).

    `tokens`: all new tokens. `context`, `generation`: prefilling and decoding requests.
    """

    name: str
    start_s: float
    duration_s: float
    on_device: bool
    tokens: int | None = None
    context: Tokens | None = None
    generation: Tokens | None = None


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A device as the file describes it; None where it does not."""

    device: str
    name: str = ""
    architecture: str = ""
    vendor: str = ""
    compute_units: int | None = None
    waves_per_unit: int | None = None
    dies: int | None = None
    memory_bytes: int | None = None
    memory_bytes_per_s: float | None = None


class Total(msgspec.Struct, frozen=True, kw_only=True):
    """All executions of one name, for files that hold sums only. `what`: kernel, API call, copy, marker, ..."""

    what: str
    name: str
    count: int
    total_s: float


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A profiler's file. `absent` says, for each table that the file lacks, why; `remarks` what was left out.

    `totals` holds what is no execution of a kernel (API calls, copies) or is given as sums only.
    """

    path: str
    tool: str
    kernels: tuple[Kernel, ...] = ()
    counters: tuple[Counter, ...] = ()
    steps: tuple[Step, ...] = ()
    devices: tuple[Device, ...] = ()
    totals: tuple[Total, ...] = ()
    absent: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
