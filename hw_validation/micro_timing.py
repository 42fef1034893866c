"""How long GPU work takes by itself, without the time the host needs to launch it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_REPLAYS = 5
_REPLAY_MS = 8.0
_MAX_CALLS = 200


def time_gpu_us(calls: Sequence[Callable[[], object]]) -> float:
    """Microseconds a call, from replays of a captured graph that goes through `calls` in turn (median).

    Give calls that work on different data, so that one does not find its data in the cache of the one before.
    """
    import torch

    for call in calls:
        call()
    count = _calls_per_replay(calls)
    graph = _capture(calls[place % len(calls)] for place in range(count))
    graph.replay()
    torch.cuda.synchronize()
    return median(_events_ms(graph.replay) for _ in range(_REPLAYS)) * 1e3 / count


def time_launches_us(launch: Callable[[], object], count: int = 400, rounds: int = 9) -> float:
    """Microseconds the host needs to launch one kernel, the GPU keeping up (median over rounds)."""
    import torch

    for _ in range(count):
        launch()
    torch.cuda.synchronize()
    times: list[float] = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(count):
            launch()
        times.append(time.perf_counter() - begin)
        torch.cuda.synchronize()
    return 1e6 * median(times) / count


def time_graph_us(kernels: int, rounds: int = 9) -> dict[str, float | None]:
    """A captured graph of `kernels` tiny kernels: microseconds to launch it, and until it has run."""
    import torch

    cell = torch.zeros(1, device="cuda")
    graph = _capture(partial(cell.add_, 1.0) for _ in range(kernels))
    graph.replay()
    torch.cuda.synchronize()
    launch: list[float] = []
    whole: list[float] = []
    for _ in range(rounds):
        begin = time.perf_counter()
        graph.replay()
        launch.append(time.perf_counter() - begin)
        torch.cuda.synchronize()
        whole.append(time.perf_counter() - begin)
    gpu_ms = median(_events_ms(graph.replay) for _ in range(rounds))
    return {"launch_us": 1e6 * median(launch), "whole_us": 1e6 * median(whole), "gpu_us": 1e3 * gpu_ms}


def _capture(calls: Iterable[Callable[[], object]]) -> torch.cuda.CUDAGraph:
    """A graph of `calls`, captured without torch.cuda.graph's emptying of caches, which is slow."""
    import torch

    graph, stream = torch.cuda.CUDAGraph(), _capture_stream()
    stream.wait_stream(torch.cuda.current_stream())
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        graph.capture_begin()
        try:
            for call in calls:
                call()
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph


@cache
def _capture_stream() -> torch.cuda.Stream:
    import torch

    return torch.cuda.Stream()


def _calls_per_replay(calls: Sequence[Callable[[], object]]) -> int:
    once_ms = max(1e-3, median(_events_ms(calls[place % len(calls)]) for place in range(3)))
    rounds = math.ceil(_REPLAY_MS / once_ms / len(calls))
    return len(calls) * max(1, min(rounds, _MAX_CALLS // len(calls)))


def _events_ms(work: Callable[[], object]) -> float:
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end))
