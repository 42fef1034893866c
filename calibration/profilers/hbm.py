"""Bytes that a kernel moved to and from memory, its bandwidth, and how full it kept the compute units.

AMD: from the raw request counters of the L2's memory side (one channel a TCC instance). Reads are of 32, 64 or,
on MI300, 128 bytes; TCC_BUBBLE counts the 128-byte ones there, and they are in RDREQ as well (ROCm documentation,
"MI300 and MI200 performance counters", derived metrics FETCH_SIZE and WRITE_SIZE). Writes are of 32 or 64 bytes.
What lies behind the L2 on MI300 is the Infinity Cache, so the bytes are what the HBM moves at most; requests to
other devices are in them too (RDREQ less RDREQ_DRAM, 0.1 % of the saved copy).

NVIDIA: dram__bytes_read.sum and dram__bytes_write.sum of Nsight Compute, or its "Memory Throughput" times duration.
Nsight Systems samples the memory's load in per cent of its peak: bytes follow from the mean and the sampled time.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from calibration.profilers.tables import Device, Profile

Values = Mapping[str, float]
_OCCUPANCY = (
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "Achieved Occupancy",
    "est. achieved occupancy %",
)
SAMPLED = "sampled time"
"""Counter of the time over which a device's metrics were sampled."""
_SAMPLES = re.compile(r"^DRAM (?P<way>Read|Write) (?:Bandwidth|Throughput)\b.*%")
_TICK_S = 0.9e-9
_INSTANCE = re.compile(r"^(?P<name>.+)\[\d+\]$")


@dataclass(frozen=True, slots=True)
class Traffic:
    """Memory traffic of one dispatch. None where the counters do not say; `source` names the counters used.

    `occupancy`: mean share of the wave (warp) slots in use while the kernel ran.
    """

    kernel: str
    device: str
    dispatch: int
    duration_s: float | None
    read_bytes: float | None
    write_bytes: float | None
    total_bytes: float | None
    occupancy: float | None
    source: str

    @property
    def bytes_per_s(self) -> float | None:
        """Achieved bandwidth; None without bytes or without a time of at least a tick of the tools' clocks."""
        if self.total_bytes is None or self.duration_s is None or self.duration_s < _TICK_S:
            return None
        return self.total_bytes / self.duration_s


@dataclass(frozen=True, slots=True)
class DeviceTraffic:
    """Memory traffic of a device over the whole recording, from sampled loads; None without the device's peak."""

    device: str
    sampled_s: float
    read_share: float | None
    write_share: float | None
    read_bytes: float | None
    write_bytes: float | None
    bytes_per_s: float | None


def measure_devices(profile: Profile) -> tuple[DeviceTraffic, ...]:
    """Traffic of every device whose memory load was sampled."""
    peaks = {device.device: device.memory_bytes_per_s for device in profile.devices}
    times = {item.device: item.value for item in profile.counters if item.counter == SAMPLED}
    shares: dict[str, dict[str, float]] = defaultdict(dict)
    for counter in profile.counters:
        if counter.dispatch is None and (found := _SAMPLES.match(counter.counter)):
            shares[counter.device][found["way"]] = counter.value / 100
    return tuple(_device(name, times.get(name, 0.0), ways, peaks.get(name)) for name, ways in sorted(shares.items()))


def _device(name: str, sampled_s: float, ways: Mapping[str, float], peak: float | None) -> DeviceTraffic:
    read, write = ways.get("Read"), ways.get("Write")
    rates = [share * peak for share in (read, write) if share is not None and peak is not None]
    return DeviceTraffic(
        device=name,
        sampled_s=sampled_s,
        read_share=read,
        write_share=write,
        read_bytes=read * peak * sampled_s if read is not None and peak is not None else None,
        write_bytes=write * peak * sampled_s if write is not None and peak is not None else None,
        bytes_per_s=sum(rates) if len(rates) == 2 else None,
    )


def measure_traffic(profile: Profile) -> tuple[Traffic, ...]:
    """Traffic and occupancy of every dispatch that has counters for either."""
    values: dict[tuple[str, str, int], dict[str, float]] = defaultdict(dict)
    for counter in profile.counters:
        if counter.dispatch is not None:
            values[counter.kernel, counter.device, counter.dispatch][counter.counter] = counter.value
    times = _durations(profile)
    devices = {device.device: device for device in profile.devices}
    found: list[Traffic] = []
    for (kernel, device, dispatch), counted in values.items():
        traffic = _traffic(counted, times.get((device, dispatch, kernel)))
        occupancy = _occupancy(counted, devices.get(device))
        if traffic is not None or occupancy is not None:
            read, write, total, source = traffic or (None, None, None, "")
            time_s = times.get((device, dispatch, kernel))
            found.append(Traffic(kernel, device, dispatch, time_s, read, write, total, occupancy, source))
    return tuple(found)


def amd_read_bytes(values: Values) -> float | None:
    """Bytes read: 128 a TCC_BUBBLE, 32 a 32-byte request, 64 each other; MI200 has no 128-byte requests.

    None when a counter that the formula needs was not collected.
    """
    for name in ("TCC_EA0_RDREQ", "TCC_EA_RDREQ"):
        all_reads, small = _total(values, name), _total(values, f"{name}_32B")
        large = _total(values, "TCC_BUBBLE") if name == "TCC_EA0_RDREQ" else 0.0
        if all_reads is not None and small is not None and large is not None:
            return 128 * large + 64 * (all_reads - large - small) + 32 * small
    return None


def amd_write_bytes(values: Values) -> float | None:
    """Bytes written: 64 a 64-byte request, 32 each other. None when a counter is missing."""
    for name in ("TCC_EA0_WRREQ", "TCC_EA_WRREQ"):
        all_writes, large = _total(values, name), _total(values, f"{name}_64B")
        if all_writes is not None and large is not None:
            return 64 * large + 32 * (all_writes - large)
    return None


def _total(values: Values, name: str) -> float | None:
    """The counter over all channels: the tool's own sum, else the sum over the channels, else the plain counter."""
    if f"{name}_sum" in values:
        return values[f"{name}_sum"]
    channels = [value for key, value in values.items() if (found := _INSTANCE.match(key)) and found["name"] == name]
    return sum(channels) if channels else values.get(name)


def _traffic(values: Values, time_s: float | None) -> tuple[float | None, float | None, float | None, str] | None:
    read, write = amd_read_bytes(values), amd_write_bytes(values)
    source = "TCC request counters"
    if read is None and write is None:
        read, write = values.get("dram__bytes_read.sum"), values.get("dram__bytes_write.sum")
        source = "dram__bytes"
    if read is not None and write is not None:
        return read, write, read + write, source
    total = values.get("dram__bytes.sum")
    if total is None and (rate := _dram_rate(values)) is not None and time_s is not None:
        total, source = rate * time_s, "memory throughput times duration"
    return (read, write, total, source) if (read, write, total) != (None, None, None) else None


def _dram_rate(values: Values) -> float | None:
    """Bytes a second as Nsight Compute writes them: the raw metric, or "Memory Throughput" of its memory section."""
    named = ("dram__bytes.sum.per_second", "Memory Throughput (byte/s)")
    return next((values[name] for name in named if name in values), None)


def _occupancy(values: Values, device: Device | None) -> float | None:
    """NVIDIA's own figure, or waves in flight over the device's slots.

    AMD: SQ_LEVEL_WAVES added up each cycle (SQ_WAVE_CYCLES counts every fourth) over the GRBM_GUI_ACTIVE cycles of
    one die; rocprofv3 gives the sum over all dies. Needs the device's units, slots and dies. The active cycles
    include set-up around the kernel, so that the share is too low for kernels of a few microseconds.
    """
    for name in _OCCUPANCY:
        if name in values:
            return values[name] / 100
    if device is None or not device.compute_units or not device.waves_per_unit:
        return None
    level, quarter = values.get("SQ_LEVEL_WAVES_ACCUM"), values.get("SQ_WAVE_CYCLES")
    waves = level if level is not None else 4 * quarter if quarter is not None else None
    active = values.get("GRBM_GUI_ACTIVE")
    if waves is None or active is None or active < 1:
        return None
    return waves / (active / (device.dies or 1)) / (device.compute_units * device.waves_per_unit)


def _durations(profile: Profile) -> dict[tuple[str, int, str], float]:
    """Median duration of each dispatch, over the passes in which counters were collected."""
    spans: dict[tuple[str, int, str], list[float]] = defaultdict(list)
    for kernel in profile.kernels:
        if kernel.dispatch is not None and kernel.duration_s is not None:
            spans[kernel.device, kernel.dispatch, kernel.name].append(kernel.duration_s)
    return {key: median(times) for key, times in spans.items()}
