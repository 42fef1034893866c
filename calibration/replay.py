"""A simulated run's schedule, frozen as arrays, and what it would have lasted under other constants.

A fit needs the slope of every prediction against every constant. Simulating once per constant would cost minutes;
the order of events hardly moves for small changes, so the steps that one simulation met are priced anew instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from moesim.costs.operators import StepOperators
from moesim.costs.step import alike, host_seconds
from moesim.engine.group import Segment, StepLog

FloatArray = NDArray[np.float64]


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
    operators: StepOperators, table: StepTable, attention_s: FloatArray | None = None, host: bool = True
) -> FloatArray:
    """Seconds of one step of every segment under `operators`, without the routing draws' spread [segments].

    `attention_s` [segments] when it is known already; without `host` the GPU's work alone.
    """
    if attention_s is None:
        attention_s = attention_seconds(operators, table)
    layout = operators.layout
    groups = np.clip(table.rank_decodes + table.chunks, 1, layout.deployment.pipeline_parallel_size)
    independent = alike(layout, table.group_tokens, -(-table.prompt_tokens // groups))
    gpu_s = np.interp(table.tokens, operators.token_grid, operators.token_s) + sampled_seconds(operators, table)
    grid, read_s = operators.group_grid, operators.weights_s
    gpu_s = gpu_s + np.interp(table.group_tokens, grid, operators.routed_s)
    gpu_s = gpu_s + np.interp(independent, grid, read_s) - np.interp(table.group_tokens, grid, read_s)
    gpu_s = gpu_s + attention_s / groups
    if not host:
        return gpu_s
    serial_s, launch_s = host_seconds_of(operators, table)
    if layout.deployment.async_scheduling:
        return np.maximum(gpu_s, serial_s + launch_s)
    return serial_s + np.maximum(gpu_s, launch_s)


def sampled_seconds(operators: StepOperators, table: StepTable) -> FloatArray:
    """GPU seconds of head and sampling in one step of every segment [segments]."""
    return np.interp(table.rows, operators.row_grid, operators.row_s) * (table.rows > 0)


def host_seconds_of(operators: StepOperators, table: StepTable) -> tuple[FloatArray, FloatArray]:
    """Host seconds of every segment's step: (scheduling, launching)."""
    captured = (table.tokens < len(operators.padded)).astype(float)
    sequences = table.rank_decodes + table.chunks
    return host_seconds(operators.layout, operators.launches, captured, sequences, (table.chunks > 0).astype(float))


def attention_seconds(operators: StepOperators, table: StepTable) -> FloatArray:
    """Attention of every segment's step on its busiest rank."""
    attention, seconds = operators.attention, np.zeros(len(table.steps))
    decodes, prompts = table.rank_decodes > 0, table.chunks > 0
    seconds[decodes] = attention.decode_rows_s(table.rank_decodes[decodes], table.rank_context[decodes])
    chunks = (table.chunks, table.chunk_tokens, table.pairs, table.window_pairs, table.kv_tokens)
    seconds[prompts] += attention.prefill_rows_s(np.stack([column[prompts] for column in chunks], axis=1))
    return seconds
