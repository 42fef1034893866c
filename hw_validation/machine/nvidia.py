"""NVIDIA GPUs through NVML (the package pynvml, when it is installed) or nvidia-smi."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hw_validation.machine.gpus import Gpu, GpuSample, number, scaled
from hw_validation.machine.tools import run_tool

_WHAT = "index,name,driver_version,memory.total,power.limit,clocks.max.sm,clocks.max.mem,uuid,pci.bus_id"
_NOW = "index,utilization.gpu,utilization.memory,memory.used,power.draw,clocks.sm,temperature.gpu"


def list_gpus() -> list[Gpu]:
    """All GPUs that nvidia-smi shows; empty without it."""
    return [
        Gpu(
            index=int(row[0]),
            name=row[1],
            vendor="nvidia",
            driver=row[2],
            memory_bytes=scaled(row[3], 2.0**20),
            power_limit_w=number(row[4]),
            max_sm_clock_mhz=number(row[5]),
            max_memory_clock_mhz=number(row[6]),
            uuid=row[7],
            pci_bus=row[8],
        )
        for row in _query(_WHAT)
    ]


def topology() -> str:
    """The matrix of links between GPUs and network cards, as nvidia-smi prints it."""
    return run_tool(["nvidia-smi", "topo", "-m"])


def sample_with_smi() -> list[GpuSample]:
    """One sample of all GPUs through nvidia-smi (about 50 ms); empty without it."""
    return [
        GpuSample(
            index=int(row[0]),
            busy=scaled(row[1], 0.01),
            memory_busy=scaled(row[2], 0.01),
            memory_used_bytes=scaled(row[3], 2.0**20),
            power_w=number(row[4]),
            sm_clock_mhz=number(row[5]),
            temperature_c=number(row[6]),
        )
        for row in _query(_NOW)
    ]


def open_nvml() -> Callable[[], list[GpuSample]] | None:
    """A function that samples all GPUs through NVML (under 1 ms each); None where NVML cannot be used."""
    try:
        import pynvml as nvml
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(place) for place in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError:
        return None
    return lambda: [_read(nvml, place, handle) for place, handle in enumerate(handles)]


def _read(nvml: Any, index: int, handle: Any) -> GpuSample:
    def ask(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except nvml.NVMLError:
            return None

    busy = ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    memory = ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    return GpuSample(
        index=index,
        busy=scaled(busy.gpu, 0.01) if busy else None,
        memory_busy=scaled(busy.memory, 0.01) if busy else None,
        memory_used_bytes=float(memory.used) if memory else None,
        power_w=scaled(ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle)), 1e-3),
        sm_clock_mhz=number(ask(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))),
        temperature_c=number(ask(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))),
    )


def _query(fields: str) -> list[list[str]]:
    text = run_tool(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"])
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    return [row for row in rows if len(row) == len(fields.split(",")) and row[0].isdigit()]
