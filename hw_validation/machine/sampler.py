"""Samples of all GPUs while something runs, by a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from hw_validation.machine import amd, nvidia
from hw_validation.machine.gpus import GpuSample
from hw_validation.summaries import summarize

Reader = Callable[[], list[GpuSample]]
COLUMNS = ("t_s", *GpuSample.__struct_fields__)


def choose_reader() -> tuple[str, Reader | None]:
    """The first way that shows a GPU: NVML, nvidia-smi, amd-smi or rocm-smi; ("none", None) without one."""
    nvml = nvidia.open_nvml()
    for name, reader in (("nvml", nvml), ("nvidia-smi", nvidia.sample_with_smi), ("amd-smi", amd.sample)):
        if reader is not None and reader():
            return name, reader
    return "none", None


class GpuSampler:
    """Samples every `period_s` between entering and leaving the block. Without a reader it samples nothing."""

    def __init__(self, reader: Reader | None, period_s: float = 0.5) -> None:
        self._reader = reader
        self._period_s = period_s
        self._rows: list[tuple[float, GpuSample]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._begin_s = 0.0

    def __enter__(self) -> GpuSampler:
        self._begin_s = time.monotonic()
        if self._reader is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        if self._reader is not None:
            self._thread.join()

    def _loop(self) -> None:
        assert self._reader is not None
        while True:
            now = time.monotonic() - self._begin_s
            self._rows.extend((now, sample) for sample in self._reader())
            if self._end.wait(self._period_s):
                return

    def table(self) -> dict[str, list[float | int | None]]:
        """The samples as columns (names in COLUMNS), in order of time."""
        columns: dict[str, list[float | int | None]] = {"t_s": [round(t_s, 3) for t_s, _ in self._rows]}
        for name in GpuSample.__struct_fields__:
            columns[name] = [getattr(sample, name) for _, sample in self._rows]
        return columns

    def values(self) -> dict[str, float | None]:
        """Statistics over time and GPUs: power, clock, share busy; empty without samples."""
        found: dict[str, float | None] = {}
        for name, unit, field in (
            ("gpu_power", "w", "power_w"),
            ("gpu_sm_clock", "mhz", "sm_clock_mhz"),
            ("gpu_busy", "share", "busy"),
            ("gpu_memory_used", "bytes", "memory_used_bytes"),
        ):
            statistics = summarize(name, unit, [getattr(sample, field) for _, sample in self._rows])
            kept = (f"{name}_mean_{unit}", f"{name}_p90_{unit}")
            found |= {key: value for key, value in statistics.items() if key in kept}
        return found
