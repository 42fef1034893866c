"""Requests: what a workload asks for, and what becomes of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.specs.workload import AllAtOnce, ClosedLoop, OpenLoop, Trace, Workload

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(slots=True, eq=False)
class Request:
    """One request on its way through an engine. Times are simulated seconds; -1 is "not yet".

    `target`: tokens to prefill before the next token comes out (the prompt, or after a preemption the prompt
    and all tokens emitted so far). `ready_s`: when it reaches the engine. `stalled_s`: when it was preempted.
    `computed`: tokens of it in the KV cache. `blocks`: KV blocks owned.
    """

    index: int
    input_tokens: int
    output_tokens: int
    prefix_id: int
    prefix_tokens: int
    warm_tokens: int
    target: int
    sent_s: float = -1.0
    ready_s: float = -1.0
    first_token_s: float = -1.0
    last_token_s: float = -1.0
    stalled_s: float = -1.0
    computed: int = 0
    emitted: int = 0
    finish_step: int = -1
    decode_from: int = -1
    ready_step: int = 0
    blocks: int = 0
    shared_blocks: int = 0
    engine: int = 0


@dataclass(frozen=True, slots=True)
class RequestTable:
    """Lengths and arrival times [requests] of a workload; `arrival_s` is empty for a closed loop."""

    input_tokens: IntArray
    output_tokens: IntArray
    prefix_id: IntArray
    prefix_tokens: IntArray
    arrival_s: FloatArray
    warm_tokens: int

    def __len__(self) -> int:
        return len(self.input_tokens)

    def requests(self) -> list[Request]:
        """Fresh requests in order of arrival."""
        inputs = self.input_tokens.tolist()
        rest = (column.tolist() for column in (self.output_tokens, self.prefix_id, self.prefix_tokens))
        warm = np.minimum(self.input_tokens, self.warm_tokens).tolist()
        return list(map(Request, range(len(inputs)), inputs, *rest, warm, inputs))

    @property
    def longest(self) -> int:
        """Most tokens of any request, prompt and output."""
        return int((self.input_tokens + self.output_tokens).max())


def make_requests(workload: Workload, rng: np.random.Generator) -> RequestTable:
    """Draw the workload's requests: lengths, shared prefixes and arrival times, sorted by arrival."""
    if isinstance(workload.arrival, Trace):
        return _from_trace(workload.arrival, workload.cached_prefix_tokens)
    count = workload.num_prompts
    shared = workload.shared_prefix_tokens
    inputs = _lengths(workload.input_tokens, workload.range_ratio, count, rng)
    return RequestTable(
        input_tokens=inputs,
        output_tokens=_lengths(workload.output_tokens, workload.range_ratio, count, rng),
        prefix_id=np.full(count, 0 if shared else -1),
        prefix_tokens=np.minimum(np.full(count, shared), inputs),
        arrival_s=_arrivals(workload, count, rng),
        warm_tokens=workload.cached_prefix_tokens,
    )


def _lengths(mean: int, ratio: float, count: int, rng: np.random.Generator) -> IntArray:
    low, high = round(mean * (1 - ratio)), round(mean * (1 + ratio))
    return np.maximum(rng.integers(low, high + 1, size=count), 1)


def _arrivals(workload: Workload, count: int, rng: np.random.Generator) -> FloatArray:
    arrival = workload.arrival
    if isinstance(arrival, OpenLoop):
        shape = arrival.burstiness
        return np.cumsum(rng.gamma(shape, 1 / (arrival.request_rate_per_s * shape), size=count))
    if isinstance(arrival, AllAtOnce):
        return np.zeros(count)
    if not isinstance(arrival, ClosedLoop):
        raise TypeError(f"no arrival times for {arrival!r}")
    return np.empty(0)


def _from_trace(trace: Trace, warm_tokens: int) -> RequestTable:
    ordered = sorted(trace.requests, key=lambda item: item.arrival_s)
    return RequestTable(
        input_tokens=np.array([item.input_tokens for item in ordered]),
        output_tokens=np.array([item.output_tokens for item in ordered]),
        prefix_id=np.array([item.prefix_id for item in ordered]),
        prefix_tokens=np.array([item.prefix_tokens for item in ordered]),
        arrival_s=np.array([item.arrival_s for item in ordered]),
        warm_tokens=warm_tokens,
    )
