"""Single engine steps priced without a simulation: for sweeps of decode, prefill and mixed steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.replay import (
    StepTable,
    attention_seconds,
    host_seconds_of,
    replay_seconds,
    sampled_seconds,
    table_of,
)
from calibration.runs import StepPoint
from moesim.costs.closed_form import Batch, estimate_step
from moesim.costs.layout import make_layout
from moesim.costs.operators import StepOperators
from moesim.engine.group import Segment
from moesim.specs.model import Model
from moesim.specs.scenario import Scenario

FloatArray = NDArray[np.float64]


def with_layers(model: Model, layers: int | None) -> Model:
    """The model cut to its first `layers` layers (dense ones come first)."""
    if layers is None or layers == model.num_layers:
        return model
    dense = min(model.num_dense_layers, layers)
    return msgspec.structs.replace(model, num_layers=layers, num_dense_layers=dense, num_moe_layers=layers - dense)


def steps_table(operators: StepOperators, points: Sequence[StepPoint]) -> StepTable:
    """The steps as segments of one step each, at the sizes that the engine would run.

    A point is one rank's batch; ranks that step together all have one like it.
    """
    ranks = operators.layout.deployment.lockstep_ranks
    segments: list[Segment] = []
    for point in points:
        tokens = point.decodes + point.chunk_tokens
        size = operators.run_size(tokens)
        segments.append(
            Segment(
                start_s=0.0,
                span_s=1.0,
                steps=1,
                decodes=point.decodes * ranks,
                prefill_tokens=point.chunk_tokens * ranks,
                waiting=0,
                queued=point.chunks * ranks,
                sizes=(size, size * ranks, point.decodes + point.chunks),
                rank_decodes=point.decodes,
                rank_context=point.context_tokens,
                chunks=point.chunks,
                chunk_tokens=point.chunk_tokens,
                pairs=point.pairs,
                window_pairs=point.pairs,
                kv_tokens=point.kv_tokens,
            )
        )
    return table_of(segments)


def step_bytes(point: StepPoint, scenario: Scenario) -> float:
    """HBM bytes read and written by a step of one rank, in closed form."""
    layout = make_layout(
        scenario.model, scenario.deployment, scenario.cluster, scenario.parameters, scenario.routing, scenario.seed
    )
    batch = Batch(
        decodes=point.decodes,
        context_tokens=round(point.context_tokens),
        prompts=point.chunks,
        prompt_tokens=point.chunk_tokens // max(point.chunks, 1),
    )
    return estimate_step(layout, batch).hbm_bytes


def largest_sizes(points: Sequence[StepPoint]) -> tuple[int, int]:
    """Most tokens and most sampled rows of any point, with room for padding."""
    tokens = max(point.decodes + point.chunk_tokens for point in points)
    rows = max(point.decodes + point.chunks for point in points)
    return max(2 * tokens if tokens <= 512 else tokens, 16), rows


def step_values(operators: StepOperators, table: StepTable) -> dict[str, FloatArray]:
    """Seconds of every step: `step` as the GPU's events see it, `forward` the GPU's work without head and sampling,
    `experts` and `attention` the part of it that they take, and `launch` the host's launching alone.

    Steps with decodes were measured in a row, so all of the host's work may decide them, beside the GPU; prompts alone
    met an idle engine, which prepares before it launches.
    """
    serial_s, launch_s = host_seconds_of(operators, table)
    attention_s = attention_seconds(operators, table)
    gpu_s = replay_seconds(operators, table, attention_s, host=False)
    alone = table.decodes == 0
    return {
        "step": np.where(alone, serial_s + np.maximum(gpu_s, launch_s), np.maximum(gpu_s, launch_s + serial_s)),
        "forward": gpu_s - sampled_seconds(operators, table),
        "experts": np.interp(table.group_tokens, operators.group_grid, operators.routed["routed experts"].seconds),
        "attention": attention_s,
        "launch": launch_s,
    }


def step_slopes(
    moved: Mapping[str | None, StepOperators], points: Sequence[StepPoint], names: Sequence[str], step: float
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """Values [points] of what `step_values` gives, and their logarithms' slopes [points, names]."""
    base = moved[None]
    table = steps_table(base, points)
    values = step_values(base, table)
    slopes = {kind: np.zeros((len(points), len(names))) for kind in values}
    for column, name in enumerate(names):
        if name in moved:
            other = step_values(moved[name], table)
            for kind, found in values.items():
                there = found > 0
                slopes[kind][there, column] = np.log(other[kind][there] / found[there]) / step
    return values, slopes
