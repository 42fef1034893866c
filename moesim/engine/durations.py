"""How long the steps of a segment take: the batch is fixed, only its context grows."""

from __future__ import annotations

from array import array
from bisect import bisect_right
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
    """Step times of a segment: `durations` and absolute `ends` in seconds, its sizes as run, host time of a step."""

    start_s: float
    durations: list[float] | FloatArray
    ends: list[float] | FloatArray
    sizes: Sizes
    host_s: float

    def end_s(self, steps: int) -> float:
        """When the first `steps` steps have ended."""
        return float(self.ends[steps - 1])

    def append_durations(self, target: array[float], steps: int) -> None:
        """Append the durations of the first `steps` steps."""
        durations = self.durations
        if isinstance(durations, list):
            target.extend(durations if steps == len(durations) else durations[:steps])
        else:
            target.frombytes(durations[:steps].tobytes())

    def ended_by(self, now: float, steps: int) -> int:
        """How many of the first `steps` steps have ended by `now`."""
        return bisect_right(self.ends, now, 0, steps)

    def host_bound(self, step: int) -> bool:
        """Whether the host, not the GPU, decided how long a step took."""
        return float(self.durations[step]) <= self.host_s * (1 + 1e-9)


@dataclass(slots=True)
class LinearStep:
    """A batch whose step lasts serial + max(floor, fixed + spread * draw + attention(context)).

    `host_s`: all host time of the step.
    """

    fixed_s: float
    spread_s: float
    floor_s: float
    serial_s: float
    host_s: float
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
    return SegmentTimes(start_s, durations, ends, step.sizes, step.host_s)


def _short_segment(model: StepModel, plan: StepPlan, steps: int, first_step: int, start_s: float) -> SegmentTimes:
    """The same in plain floats, which is faster than arrays for a few steps of one rank."""
    step = _known_step(model, plan)
    attention, noise = model.attention, model.noise_list
    decodes, context = plan.decodes, plan.context
    fixed, spread, floor, serial, groups = step.fixed_s, step.spread_s, step.floor_s, step.serial_s, step.groups
    prefill = _prefill_s(model, plan) if plan.chunks else 0.0
    durations: list[float] = []
    ends: list[float] = []
    clock = start_s
    for index in range(first_step, first_step + steps):
        gpu = fixed + spread * noise[index % NOISE_STEPS] + (attention.decode_s(decodes, context) + prefill) / groups
        seconds = serial + (gpu if gpu > floor else floor)
        clock += seconds
        context += decodes
        durations.append(seconds)
        ends.append(clock)
    return SegmentTimes(start_s, durations, ends, step.sizes, step.host_s)


def _attention_s(model: StepModel, plan: StepPlan, steps: int) -> FloatArray:
    """Attention of one rank in each of `steps` steps."""
    coefficients = model.attention
    seconds = np.full(steps, _prefill_s(model, plan))
    if plan.decodes:
        cached = plan.context + plan.decodes * _OFFSETS[:steps]
        seconds += coefficients.decode_steps_s(plan.decodes, cached)
    return seconds


def _prefill_s(model: StepModel, plan: StepPlan) -> float:
    new = plan.tokens - plan.decodes
    return model.attention.prefill_s(len(plan.chunks), new, plan.pairs, plan.window_pairs, plan.kv_tokens)


def _known_step(model: StepModel, plan: StepPlan) -> LinearStep:
    """A lone rank's step, remembered by all that it depends on."""
    key = (plan.tokens, plan.rows, plan.decodes, len(plan.chunks))
    known = model.known_steps.get(key)
    if known is None:
        known = model.known_steps[key] = linear_step(model, [plan])
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
        host_s=serial + launch,
        groups=groups,
        sizes=(size, group, rows),
    )
