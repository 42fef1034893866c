"""A simulated run's schedule, frozen as arrays, and what it would have lasted under other constants.

A fit needs the slope of every prediction against every constant. Simulating once per constant would cost minutes;
the order of events hardly moves for small changes, so the steps that one simulation met are priced anew instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from moesim.costs.kernels import OperatorCost
from moesim.costs.step import StepModel, host_seconds, weights_s
from moesim.engine.group import Segment, StepLog

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepTable:
    """Segments of equal steps as arrays [segments]; columns as in `moesim.engine.group.Segment`.

    `tokens`, `group_tokens`, `rows`: sizes as run. `seconds`: of one step, as simulated.
    """

    steps: FloatArray
    seconds: FloatArray
    decodes: FloatArray
    queued: FloatArray
    tokens: NDArray[np.int64]
    group_tokens: NDArray[np.int64]
    rows: NDArray[np.int64]
    prompt_tokens: FloatArray
    rank_decodes: FloatArray
    rank_context: FloatArray
    chunks: FloatArray
    chunk_tokens: FloatArray
    pairs: FloatArray
    window_pairs: FloatArray
    kv_tokens: FloatArray

    def where(self, mask: NDArray[np.bool_]) -> StepTable:
        """The segments that `mask` keeps."""
        return StepTable(*(getattr(self, field.name)[mask] for field in fields(self)))


def step_table(logs: Sequence[StepLog]) -> StepTable:
    """All segments of a traced simulation."""
    segments = [segment for log in logs for segment in log.segments]
    if not segments:
        raise ValueError("the simulation was run without trace")
    return table_of(segments)


def table_of(segments: Sequence[Segment]) -> StepTable:
    """Segments as arrays."""
    columns = {
        name: np.array(values) for name, values in zip(Segment._fields, zip(*segments, strict=True), strict=True)
    }
    sizes = columns["sizes"].astype(np.int64)
    floats = (
        "decodes",
        "queued",
        "rank_decodes",
        "rank_context",
        "chunks",
        "chunk_tokens",
        "pairs",
        "window_pairs",
        "kv_tokens",
    )
    return StepTable(
        steps=columns["steps"].astype(float),
        seconds=columns["span_s"] / columns["steps"],
        tokens=sizes[:, 0],
        group_tokens=sizes[:, 1],
        rows=sizes[:, 2],
        prompt_tokens=columns["prefill_tokens"].astype(float),
        **{name: columns[name].astype(float) for name in floats},
    )


def replay_seconds(
    model: StepModel, table: StepTable, attention_s: FloatArray | None = None, host: bool = True
) -> FloatArray:
    """Seconds of one step of every segment under `model`, without the routing draws' spread [segments].

    `attention_s` [segments] when it is known already; without `host` the GPU's work alone.
    """
    if attention_s is None:
        attention_s = attention_seconds(model, table)
    stages = model.layout.deployment.pipeline_parallel_size
    groups = np.clip(table.rank_decodes + table.chunks, 1, stages)
    prompts = -(-table.prompt_tokens // groups)
    alike = (table.group_tokens - prompts + np.round(prompts**model.prompt_routing_exponent)).astype(np.int64)
    gpu_s = _summed(model.token_operators, model.token_grid, table.tokens) + sampled_seconds(model, table)
    grid = model.token_grid * model.layout.deployment.lockstep_ranks
    gpu_s = gpu_s + _summed(model.routed_operators, grid, table.group_tokens)
    read_s = weights_s(model.layout, model.token_grid.astype(float), model.routed_operators["routed experts"].memory_s)
    gpu_s = gpu_s + np.interp(alike, grid, read_s) - np.interp(table.group_tokens, grid, read_s)
    gpu_s = gpu_s + attention_s / groups
    if not host:
        return gpu_s
    serial_s, launch_s = host_seconds_of(model, table)
    if model.layout.deployment.async_scheduling:
        return np.maximum(gpu_s, serial_s + launch_s)
    return serial_s + np.maximum(gpu_s, launch_s)


def sampled_seconds(model: StepModel, table: StepTable) -> FloatArray:
    """GPU seconds of head and sampling in one step of every segment [segments]."""
    return _summed(model.row_operators, model.row_grid, table.rows) * (table.rows > 0)


def _summed(operators: Mapping[str, OperatorCost], grid: IntArray, sizes: IntArray) -> FloatArray:
    """Seconds of all operators at `sizes`, which lie on or between the points of `grid`."""
    return np.interp(sizes, grid, reduce(np.add, (cost.seconds for cost in operators.values())))


def host_seconds_of(model: StepModel, table: StepTable) -> tuple[FloatArray, FloatArray]:
    """Host seconds of every segment's step: (scheduling, launching)."""
    captured = (table.tokens < len(model.padded)).astype(float)
    sequences = table.rank_decodes + table.chunks
    return host_seconds(model.layout, model.launches, captured, sequences, (table.chunks > 0).astype(float))


def attention_seconds(model: StepModel, table: StepTable) -> FloatArray:
    """Attention of every segment's step on its busiest rank."""
    attention, seconds = model.attention, np.zeros(len(table.steps))
    decodes, prompts = table.rank_decodes > 0, table.chunks > 0
    seconds[decodes] = attention.decode_rows_s(table.rank_decodes[decodes], table.rank_context[decodes])
    chunks = (table.chunks, table.chunk_tokens, table.pairs, table.window_pairs, table.kv_tokens)
    seconds[prompts] += attention.prefill_rows_s(np.stack([column[prompts] for column in chunks], axis=1))
    return seconds
