"""What is asked of the engine: how requests arrive and how long they are (the words of `vllm bench serve`)."""

from __future__ import annotations

import math

import msgspec

from moesim.errors import InputError


class ClosedLoop(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="closed_loop"):
    """Clients that keep `concurrency` requests in flight: a finished one is followed by the next at once."""

    concurrency: int


class OpenLoop(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="open_loop"):
    """Requests at `request_rate_per_s`; gaps are gamma with shape `burstiness` (1: Poisson, below 1: bursty)."""

    request_rate_per_s: float
    burstiness: float = 1.0


class AllAtOnce(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="all_at_once"):
    """Every request is there at time zero (an offline batch)."""


class TraceRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One request of a trace; requests with the same `prefix_id` share their first `prefix_tokens`."""

    arrival_s: float
    input_tokens: int
    output_tokens: int
    prefix_id: int = -1
    prefix_tokens: int = 0


class Trace(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="trace"):
    """Recorded requests, in order of arrival."""

    requests: tuple[TraceRequest, ...]
    source: str


Arrival = ClosedLoop | OpenLoop | AllAtOnce | Trace


class Workload(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Requests to serve.

    Lengths are drawn uniformly from `len * (1 - range_ratio)` to `len * (1 + range_ratio)` tokens.
    The first `cached_prefix_tokens` of every prompt were computed before this run (a warm prefix cache);
    the first `shared_prefix_tokens` are one text shared by all of them (a system prompt).
    """

    arrival: Arrival
    input_tokens: int = 512
    output_tokens: int = 128
    num_prompts: int = 100
    range_ratio: float = 0.0
    shared_prefix_tokens: int = 0
    cached_prefix_tokens: int = 0


def check_workload(workload: Workload) -> Workload:
    """Refuse workloads that cannot run; returns it unchanged. Raises InputError naming the field."""
    arrival = workload.arrival
    if isinstance(arrival, Trace) and not arrival.requests:
        raise InputError(f"trace {arrival.source}: holds no requests")
    for field in ("input_tokens", "output_tokens", "num_prompts"):
        value = getattr(workload, field)
        if not 1 <= value <= 100_000_000:
            raise InputError(f"{field}: {value} is out of range, must be at least 1")
    for field in ("shared_prefix_tokens", "cached_prefix_tokens"):
        value = getattr(workload, field)
        if not 0 <= value <= workload.input_tokens:
            raise InputError(f"{field}: {value} is out of range, must be 0 to input_tokens = {workload.input_tokens}")
    if not 0 <= workload.range_ratio < 1:
        raise InputError(f"range_ratio: {workload.range_ratio} is out of range, must be 0 to below 1")
    if isinstance(arrival, ClosedLoop) and arrival.concurrency < 1:
        raise InputError(f"concurrency: {arrival.concurrency} is out of range, must be at least 1")
    if isinstance(arrival, OpenLoop):
        _check_positive("request_rate", arrival.request_rate_per_s)
        _check_positive("burstiness", arrival.burstiness)
    return workload


def _check_positive(field: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{field}: {value} is out of range, must be a positive number")
