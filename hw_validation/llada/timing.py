"""Where a generation's time goes: the forwards and the sampling between them."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Timings:
    """One generation, in milliseconds: wall clock in all, and each step's forward and sampling."""

    total_ms: float
    forward_ms: tuple[float, ...]
    sampling_ms: tuple[float, ...]


class StepClock:
    """Marks the phases of every step: CUDA events on a GPU (the device's time), the host's clock on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._events: list[torch.cuda.Event] = []
        self._seconds: list[float] = []
        self._started = 0.0

    def start(self) -> None:
        """The generation begins; waits for earlier work on the device."""
        self._synchronize()
        self._started = time.perf_counter()

    def begin(self) -> None:
        """A step begins."""
        self._mark()

    def predicted(self) -> None:
        """The step's forward is done."""
        self._mark()

    def sampled(self) -> None:
        """The step's tokens are chosen."""
        self._mark()

    def finish(self) -> Timings:
        """The generation is over: its times, after waiting for the device."""
        self._synchronize()
        total = (time.perf_counter() - self._started) * 1e3
        gaps = self._gaps()
        return Timings(total, tuple(gaps[0::3]), tuple(gaps[1::3]))

    def _mark(self) -> None:
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append(event)
        else:
            self._seconds.append(time.perf_counter())

    def _gaps(self) -> list[float]:
        """Milliseconds between successive marks: forward, sampling, gap to the next step, forward, ..."""
        if self._on_gpu:
            return [a.elapsed_time(b) for a, b in zip(self._events, self._events[1:], strict=False)]
        return [(b - a) * 1e3 for a, b in zip(self._seconds, self._seconds[1:], strict=False)]

    def _synchronize(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()
