"""The GPU kernels of a step, from torch.profiler: time by kernel name, and the time in which any kernel ran."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from hw_validation.client import Client
from hw_validation.plan import WARM_STEPS, KernelsPoint

_NAME_CHARS = 160
_STEPS = 4


class KernelTable(NamedTuple):
    """Kernels by falling total time as (name, calls a step, microseconds a step), and sums over all."""

    values: dict[str, float | None]
    rows: list[tuple[str, float, float]]


def measure_kernels(client: Client, point: KernelsPoint) -> KernelTable:
    """Profile `_STEPS` decode steps of `batch_size` sequences, or as many prefills of `prefill_tokens`."""
    if point.prefill_tokens:
        _prefill(client, point.prefill_tokens)
        client.engine.drain()
        with profile_gpu() as profile:
            for _ in range(_STEPS):
                _prefill(client, point.prefill_tokens)
            client.engine.drain()
    else:
        sent = [client.send(point.context_len, 64 + point.batch_size) for _ in range(point.batch_size)]
        while any(not answer.tokens_s for answer in client.pending.values()):
            client.step()
        for _ in range(WARM_STEPS):
            client.step()
        client.engine.drain()
        with profile_gpu() as profile:
            for _ in range(_STEPS):
                client.step()
            client.engine.drain()
        client.abort(sent)
        client.engine.drain()
    return tabulate_kernels(device_events(profile), _STEPS)


def tabulate_kernels(events: Iterable[tuple[str, float, float]], steps: int) -> KernelTable:
    """Sum (name, begin in µs, length in µs) events by name, and their union in time, a step."""
    calls: dict[str, int] = defaultdict(int)
    total_us: dict[str, float] = defaultdict(float)
    spans: list[tuple[float, float]] = []
    for name, begin_us, length_us in events:
        calls[name[:_NAME_CHARS]] += 1
        total_us[name[:_NAME_CHARS]] += length_us
        spans.append((begin_us, begin_us + length_us))
    rows = [(name, calls[name] / steps, round(us / steps, 3)) for name, us in total_us.items()]
    values: dict[str, float | None] = {
        "kernels_per_step": sum(calls.values()) / steps,
        "kernel_sum_us": sum(total_us.values()) / steps,
        "kernel_busy_us": _union_us(spans) / steps,
    }
    return KernelTable(values, sorted(rows, key=lambda row: -row[2]))


def _prefill(client: Client, tokens: int) -> None:
    client.send(tokens, 1)
    client.finish()


def profile_gpu() -> Any:
    """A torch.profiler that notes what runs on the GPU."""
    from torch.profiler import ProfilerActivity, profile

    return profile(activities=[ProfilerActivity.CUDA])


def device_events(profile: Any) -> list[tuple[str, float, float]]:
    """(name, begin in µs, length in µs) of what ran on the GPU, from a torch.profiler."""
    from torch.autograd import DeviceType

    events = profile.events() or []
    return [
        (event.name, float(event.time_range.start), float(event.time_range.elapsed_us()))
        for event in events
        if event.device_type == DeviceType.CUDA
    ]


def _union_us(spans: list[tuple[float, float]]) -> float:
    """Microseconds covered by at least one span."""
    covered, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        if end > reached:
            covered += end - max(begin, reached)
            reached = end
    return covered
