"""How long the steps of a segment take: the batch is fixed, only its context grows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.costs.step import NOISE_STEPS, StepModel
from moesim.engine.scheduler import StepPlan

FloatArray = NDArray[np.float64]
Sizes = tuple[int, int, int]
_SHORT_SEGMENT = 24
_OFFSETS = np.arange(4096, dtype=float)


@dataclass(slots=True)
class SegmentTimes:
    """Step times of a segment: `durations` and absolute `ends` in seconds, and its sizes as run."""

    start_s: float
    durations: Sequence[float]
    ends: Sequence[float]
    sizes: Sizes

    def ended_by(self, now: float, steps: int) -> int:
        """How many of the first `steps` steps have ended by `now`."""
        return bisect_right(self.ends, now, 0, steps)


@dataclass(slots=True)
class LinearStep:
    """A batch whose step lasts serial + max(floor, fixed + spread * draw + attention(context))."""

    fixed_s: float
    spread_s: float
    floor_s: float
    serial_s: float
    groups: int
    sizes: Sizes


def segment_times(
    model: StepModel, plans: list[StepPlan | None], steps: int, first_step: int, start_s: float
) -> SegmentTimes:
    """Times of `steps` steps of ranks in lockstep; step `first_step + i` takes its own routing draw.

    Args:
        plans: one per rank, None for an idle rank (which runs a dummy batch).
    """
    if len(plans) == 1 and steps < _SHORT_SEGMENT and plans[0] is not None:
        return _short_segment(model, plans[0], steps, first_step, start_s)
    step = linear_step(model, plans)
    attention = np.zeros(steps)
    for plan in plans:
        if plan is not None:
            attention = np.maximum(attention, _attention_s(model, plan, steps))
    draws = model.noise[(first_step + np.arange(steps)) % NOISE_STEPS]
    gpu = step.fixed_s + step.spread_s * draws + attention / step.groups
    durations = step.serial_s + np.maximum(gpu, step.floor_s)
    ends = np.cumsum(np.concatenate([[start_s], durations]))[1:]
    return SegmentTimes(start_s, durations.tolist(), ends.tolist(), step.sizes)


def _short_segment(model: StepModel, plan: StepPlan, steps: int, first_step: int, start_s: float) -> SegmentTimes:
    """The same in plain floats, which is faster than arrays for a few steps of one rank."""
    step = _decode_step(model, plan.decodes) if not plan.chunks else linear_step(model, [plan])
    attention, noise = model.attention, model.noise_list
    prefill = _prefill_s(model, plan)
    durations: list[float] = []
    ends: list[float] = []
    clock = start_s
    for offset in range(steps):
        gpu = attention.decode_s(plan.decodes, plan.context + plan.decodes * offset) + prefill
        gpu = step.fixed_s + step.spread_s * noise[(first_step + offset) % NOISE_STEPS] + gpu / step.groups
        seconds = step.serial_s + (gpu if gpu > step.floor_s else step.floor_s)
        clock += seconds
        durations.append(seconds)
        ends.append(clock)
    return SegmentTimes(start_s, durations, ends, step.sizes)


def _attention_s(model: StepModel, plan: StepPlan, steps: int) -> FloatArray:
    """Attention of one rank in each of `steps` steps."""
    coefficients = model.attention
    seconds = np.full(steps, _prefill_s(model, plan))
    if plan.decodes:
        cached = plan.context + plan.decodes * _OFFSETS[:steps]
        seconds += coefficients.start_s + coefficients.decode_full_s * cached
        if coefficients.decode_window_s:
            seconds += coefficients.decode_window_s * np.minimum(cached, plan.decodes * coefficients.window)
    return seconds


def _prefill_s(model: StepModel, plan: StepPlan) -> float:
    return model.attention.prefill_s(len(plan.chunks), plan.pairs, plan.window_pairs, plan.kv_tokens)


def _decode_step(model: StepModel, decodes: int) -> LinearStep:
    """A rank's decode batch, remembered by its size."""
    known = model.decode_steps.get(decodes)
    if known is None:
        plan = StepPlan(1, decodes, 0, decodes, decodes)
        known = model.decode_steps[decodes] = linear_step(model, [plan])
    return known  # pyright: ignore[reportReturnType]


def linear_step(model: StepModel, plans: list[StepPlan | None]) -> LinearStep:
    """All of a step that does not depend on context lengths.

    With pipeline stages each stage works on another part of the sequences, so a cycle in which every sequence
    advances lasts one traversal by the largest part. Captured graphs run every rank at the largest rank's
    size; idle ranks run a dummy batch of one token.
    """
    tokens = [max(plan.tokens, 1) if plan is not None else 1 for plan in plans]
    rows = max((plan.rows for plan in plans if plan is not None), default=0)
    sequences = max((plan.decodes + len(plan.chunks) for plan in plans if plan is not None), default=1)
    has_prefill = any(plan is not None and plan.chunks for plan in plans)
    groups = max(1, min(model.layout.deployment.pipeline_parallel_size, sequences))
    share, rows = -(-max(tokens) // groups), -(-rows // groups)
    size = model.run_size(share)
    group = size * len(plans) if share < len(model.padded) else -(-sum(tokens) // groups)
    serial, launch = model.host_s(share, sequences, has_prefill)
    overlap = model.layout.deployment.async_scheduling
    return LinearStep(
        fixed_s=model.gpu_fixed_s(size, group, rows),
        spread_s=model.routed_sd_s[group],
        floor_s=serial + launch if overlap else launch,
        serial_s=0.0 if overlap else serial,
        groups=groups,
        sizes=(size, group, rows),
    )
