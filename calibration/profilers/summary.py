"""A profile in numbers for people: kernels by total time, gaps between them, steps, memory traffic."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from calibration.profilers.hbm import Traffic, measure_traffic
from calibration.profilers.tables import Kernel, Profile, Step


@dataclass(frozen=True, slots=True)
class KernelRow:
    """All executions of one kernel. Times None where the file has none; traffic None where no counter says."""

    kernel: str
    launches: int
    total_s: float | None
    share: float | None
    median_s: float | None
    read_bytes: float | None = None
    write_bytes: float | None = None
    bytes_per_s: float | None = None
    peak_share: float | None = None
    occupancy: float | None = None


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """How one device was used, from its first kernel's start to its last one's end.

    `gap_median_s`: between the end of a kernel and the start of the next one of the same stream, over gaps
    without overlap.
    """

    device: str
    name: str
    launches: int
    span_s: float
    busy_s: float
    idle_share: float
    gap_median_s: float | None
    gap_p90_s: float | None


@dataclass(frozen=True, slots=True)
class StepRow:
    """One engine step: what was in it, and its kernels (`device_s`: from the first one's start to the last's end)."""

    step: str
    tokens: int | None
    context_requests: int | None
    context_tokens: int | None
    generation_requests: int | None
    generation_keys: int | None
    kernels: int
    kernel_s: float | None
    device_s: float | None
    annotated_s: float


def list_kernels(profile: Profile) -> list[KernelRow]:
    """Rows by falling total time; from sums where the file holds no single executions."""
    if not profile.kernels:
        kernels = [total for total in profile.totals if total.what == "kernel"]
        whole = sum(total.total_s for total in kernels)
        rows = [KernelRow(item.name, item.count, item.total_s, _share(item.total_s, whole), None) for item in kernels]
    else:
        rows = _from_executions(profile)
    return sorted(rows, key=lambda row: -(row.total_s or 0.0))


def list_devices(profile: Profile) -> list[DeviceRow]:
    """A row a device whose kernels have start times."""
    names = {device.device: device.name for device in profile.devices}
    grouped: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in profile.kernels:
        if kernel.start_s is not None and kernel.duration_s is not None:
            grouped[kernel.device].append(kernel)
    return [_device_row(device, names.get(device, ""), kernels) for device, kernels in sorted(grouped.items())]


def list_steps(profile: Profile) -> list[StepRow]:
    """A row a step, with the kernels that belong to it."""
    grouped: dict[int, list[Kernel]] = defaultdict(list)
    for kernel in profile.kernels:
        if kernel.step is not None:
            grouped[kernel.step].append(kernel)
    return [_step_row(step, grouped[index]) for index, step in enumerate(profile.steps)]


def list_absent(profile: Profile) -> list[str]:
    """What the file does not hold, with what would be needed for memory traffic and occupancy."""
    lines = list(profile.absent)
    traffic = measure_traffic(profile)
    if profile.counters and all(item.total_bytes is None for item in traffic):
        lines.append(
            "memory traffic: needs TCC_EA0_RDREQ_sum, TCC_EA0_RDREQ_32B_sum, TCC_BUBBLE_sum, TCC_EA0_WRREQ_sum and "
            "TCC_EA0_WRREQ_64B_sum (MI300; TCC_EA_* on MI200), or dram__bytes_read.sum and dram__bytes_write.sum"
        )
    if profile.counters and all(item.occupancy is None for item in traffic):
        lines.append(
            "occupancy: needs SQ_WAVE_CYCLES, GRBM_GUI_ACTIVE and the device's description, or "
            "sm__warps_active.avg.pct_of_peak_sustained_active"
        )
    return lines


def _from_executions(profile: Profile) -> list[KernelRow]:
    grouped: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in profile.kernels:
        grouped[kernel.name].append(kernel)
    traffic: dict[str, list[Traffic]] = defaultdict(list)
    for item in measure_traffic(profile):
        traffic[item.kernel].append(item)
    whole = sum(kernel.duration_s or 0.0 for kernel in profile.kernels)
    peaks = {device.memory_bytes_per_s for device in profile.devices if device.memory_bytes_per_s}
    peak = peaks.pop() if len(peaks) == 1 else None
    return [_kernel_row(name, kernels, traffic[name], whole, peak) for name, kernels in grouped.items()]


def _kernel_row(
    name: str, kernels: Sequence[Kernel], traffic: Sequence[Traffic], whole_s: float, peak: float | None
) -> KernelRow:
    times = [kernel.duration_s for kernel in kernels if kernel.duration_s is not None]
    rate = _median(item.bytes_per_s for item in traffic)
    return KernelRow(
        kernel=name,
        launches=len(kernels),
        total_s=sum(times) if times else None,
        share=_share(sum(times), whole_s) if times else None,
        median_s=median(times) if times else None,
        read_bytes=_median(item.read_bytes for item in traffic),
        write_bytes=_median(item.write_bytes for item in traffic),
        bytes_per_s=rate,
        peak_share=rate / peak if rate is not None and peak else None,
        occupancy=_median(item.occupancy for item in traffic),
    )


def _device_row(device: str, name: str, kernels: Sequence[Kernel]) -> DeviceRow:
    spans = sorted((kernel.start_s or 0.0, (kernel.start_s or 0.0) + (kernel.duration_s or 0.0)) for kernel in kernels)
    span = max(end for _, end in spans) - spans[0][0]
    busy = _covered_s(spans)
    gaps = sorted(_gaps_s(kernels))
    return DeviceRow(
        device=device,
        name=name,
        launches=len(kernels),
        span_s=span,
        busy_s=busy,
        idle_share=max(1 - busy / span, 0.0) if span else 0.0,
        gap_median_s=median(gaps) if gaps else None,
        gap_p90_s=gaps[int(0.9 * (len(gaps) - 1))] if gaps else None,
    )


def _gaps_s(kernels: Sequence[Kernel]) -> list[float]:
    """Idle times between neighbours of a stream."""
    streams: dict[str | None, list[tuple[float, float]]] = defaultdict(list)
    for kernel in kernels:
        start = kernel.start_s or 0.0
        streams[kernel.stream].append((start, start + (kernel.duration_s or 0.0)))
    gaps: list[float] = []
    for spans in streams.values():
        spans.sort()
        gaps.extend(max(late[0] - early[1], 0.0) for early, late in pairwise(spans))
    return gaps


def _covered_s(spans: Iterable[tuple[float, float]]) -> float:
    """Time covered by at least one of the spans, which are in order of start."""
    covered, reached = 0.0, float("-inf")
    for start, end in spans:
        if end > reached:
            covered += end - max(start, reached)
            reached = end
    return covered


def _step_row(step: Step, kernels: Sequence[Kernel]) -> StepRow:
    spans = [(kernel.start_s, kernel.duration_s) for kernel in kernels]
    timed = [(start, start + length) for start, length in spans if start is not None and length is not None]
    return StepRow(
        step=step.name,
        tokens=step.tokens,
        context_requests=step.context.requests if step.context else None,
        context_tokens=step.context.query if step.context else None,
        generation_requests=step.generation.requests if step.generation else None,
        generation_keys=step.generation.key if step.generation else None,
        kernels=len(kernels),
        kernel_s=sum(end - start for start, end in timed) if timed else None,
        device_s=max(end for _, end in timed) - min(start for start, _ in timed) if timed else None,
        annotated_s=step.duration_s,
    )


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
