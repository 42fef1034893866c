"""Points in time on the GPU, or on the host where there is no GPU."""

from __future__ import annotations

import time
from typing import Any, Protocol


class Marks(Protocol):
    """Drops marks into the stream of GPU work and tells the milliseconds between two of them."""

    def mark(self) -> Any:
        """A mark behind all work given to the GPU so far."""
        ...

    def elapsed_ms(self, begin: Any, end: Any) -> float:
        """Milliseconds from `begin` to `end`; both must have been reached (`wait`)."""
        ...

    def wait(self) -> None:
        """Return when the GPU has reached every mark."""
        ...


class GpuMarks:
    """CUDA or HIP events on the current stream."""

    def mark(self) -> Any:
        """An event behind the work of the current stream."""
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def elapsed_ms(self, begin: Any, end: Any) -> float:
        """Milliseconds between two events that have happened."""
        return float(begin.elapsed_time(end))

    def wait(self) -> None:
        """Return when the GPU is idle."""
        import torch

        torch.cuda.synchronize()


class HostMarks:
    """The host's clock, for engines that compute on the CPU."""

    def mark(self) -> float:
        """The host's time in seconds."""
        return time.perf_counter()

    def elapsed_ms(self, begin: float, end: float) -> float:
        """Milliseconds between two host times."""
        return 1e3 * (end - begin)

    def wait(self) -> None:
        """Nothing to wait for."""


def make_marks() -> Marks:
    """GPU marks where torch sees a GPU, host marks elsewhere."""
    import torch

    return GpuMarks() if torch.cuda.is_available() else HostMarks()
