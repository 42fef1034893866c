"""How long the steps of a segment take: the batch is fixed, only its context grows."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from moesim.costs.step import NOISE_STEPS, StepModel
from moesim.engine.decode_table import DecodeTable
from moesim.engine.rebalancing import Shift
from moesim.engine.scheduler import StepPlan

FloatArray = NDArray[np.float64]
Sizes = tuple[int, int, int]
_FEW = 48
_KEPT = 4096


@dataclass(slots=True)
class SegmentTimes:
    """Step times of a segment: `durations` in seconds, its sizes as run, and the host time of a step.

    `moments`: when it starts, and when each step has ended.
    """

    start_s: float
    durations: list[float] | FloatArray
    moments: list[float] | FloatArray
    sizes: Sizes
    host_s: float

    def end_s(self, steps: int) -> float:
        """When the first `steps` steps have ended."""
        return float(self.moments[steps])

    def append_durations(self, target: array[float], steps: int) -> None:
        """Append the durations of the first `steps` steps."""
        durations = self.durations
        if isinstance(durations, list):
            target.fromlist(durations if steps == len(durations) else durations[:steps])
        else:
            target.frombytes(durations[:steps].tobytes())

    def ended_by(self, now: float, steps: int) -> int:
        """How many of the first `steps` steps have ended by `now`."""
        return bisect_right(self.moments, now, 1, steps + 1) - 1

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
    model: StepModel,
    plans: list[StepPlan | None],
    steps: int,
    first_step: int,
    start_s: float,
    shift: Shift | None = None,
) -> SegmentTimes:
    """Times of `steps` steps of ranks in lockstep; step `first_step + i` takes its own routing draw.

    Args:
        plans: one per rank, None for an idle rank (which runs a dummy batch).
        shift: what balancing and drift add to the tables.
    """
    lone = plans[0] if len(plans) == 1 else None
    step = _lone_step(model, lone) if lone is not None else linear_step(model, plans)
    if shift is None and steps * len(plans) < _FEW:
        if steps == 1 and lone is not None:
            return _one_step(model, step, lone, first_step, start_s)
        return _few_steps(model, step, plans, steps, first_step, start_s)
    by_rank = [_attention_s(model, plan, steps) for plan in plans if plan is not None]
    attention = by_rank[0] if len(by_rank) == 1 else reduce(np.maximum, by_rank)
    begin = first_step % NOISE_STEPS
    draws = model.noise[begin : begin + steps]
    gpu = step.fixed_s + step.spread_s * draws + attention / step.groups
    if shift is not None:
        gpu += shift.extra(step.sizes[1])
    durations = step.serial_s + np.maximum(gpu, step.floor_s)
    if shift is not None:
        durations[0] += shift.stall_s
    moments = np.cumsum(np.concatenate([[start_s], durations]))
    return SegmentTimes(start_s, durations, moments, step.sizes, step.host_s)


def _few_steps(
    model: StepModel, step: LinearStep, plans: list[StepPlan | None], steps: int, first_step: int, start_s: float
) -> SegmentTimes:
    """The same in plain floats, which is faster than arrays for a few steps."""
    by_rank = [_few_attention_s(model, plan, steps) for plan in plans if plan is not None]
    slowest = by_rank[0] if len(by_rank) == 1 else list(map(max, *by_rank))
    fixed, spread, floor, serial, groups = step.fixed_s, step.spread_s, step.floor_s, step.serial_s, step.groups
    begin = first_step % NOISE_STEPS
    noise = model.noise_list[begin : begin + steps]
    gpu = [fixed + spread * draw + seconds / groups for draw, seconds in zip(noise, slowest, strict=True)]
    durations = [serial + (seconds if seconds > floor else floor) for seconds in gpu]
    return SegmentTimes(start_s, durations, list(accumulate(durations, initial=start_s)), step.sizes, step.host_s)


def _one_step(model: StepModel, step: LinearStep, plan: StepPlan, index: int, start_s: float) -> SegmentTimes:
    """The same for one step of a lone rank."""
    attention = _prefill_s(model, plan) if plan.chunks else 0.0
    if plan.decodes:
        start, slope, _ = _decode_table(model, plan.decodes).piece(plan.context)
        attention += start + slope * plan.context
    gpu = step.fixed_s + step.spread_s * model.noise_list[index % NOISE_STEPS] + attention / step.groups
    seconds = step.serial_s + (gpu if gpu > step.floor_s else step.floor_s)
    return SegmentTimes(start_s, [seconds], [start_s, start_s + seconds], step.sizes, step.host_s)


def _few_attention_s(model: StepModel, plan: StepPlan, steps: int) -> list[float]:
    prefill = _prefill_s(model, plan) if plan.chunks else 0.0
    if not plan.decodes:
        return [prefill] * steps
    return _decode_table(model, plan.decodes).few_steps_s(plan.context, steps, prefill)


def _attention_s(model: StepModel, plan: StepPlan, steps: int) -> FloatArray:
    """Attention of one rank in each of `steps` steps."""
    prefill = _prefill_s(model, plan) if plan.chunks else 0.0
    if not plan.decodes:
        return np.full(steps, prefill)
    return _decode_table(model, plan.decodes).steps_s(plan.context, steps, prefill)


def _decode_table(model: StepModel, decodes: int) -> DecodeTable:
    try:
        return model.decode_tables[decodes]  # pyright: ignore[reportReturnType]
    except KeyError:
        made = model.decode_tables[decodes] = DecodeTable(model.attention, decodes)
        return made


def _prefill_s(model: StepModel, plan: StepPlan) -> float:
    """Attention of a step's chunks; prompts of equal lengths, the usual benchmark, are asked once."""
    new = plan.tokens - plan.decodes
    key = (len(plan.chunks), new, plan.pairs, plan.window_pairs, plan.kv_tokens)
    known = model.known_prefills.get(key)
    if known is None:
        if len(model.known_prefills) >= _KEPT:
            model.known_prefills.clear()
        known = model.known_prefills[key] = model.attention.prefill_s(*key)
    return known


def _lone_step(model: StepModel, plan: StepPlan) -> LinearStep:
    """`linear_step` of a lone rank, remembered by what the plan says at first sight."""
    key = (plan.tokens, plan.rows, plan.decodes, len(plan.chunks))
    try:
        return model.known_steps[key]  # pyright: ignore[reportReturnType]
    except KeyError:
        made = model.known_steps[key] = linear_step(model, [plan])
        return made


def linear_step(model: StepModel, plans: list[StepPlan | None]) -> LinearStep:
    """All of a step that does not depend on context lengths, remembered by what it depends on.

    With pipeline stages each stage works on another part of the sequences, so a cycle in which every sequence
    advances lasts one traversal by the largest part. Captured graphs run every rank at the largest rank's
    size; idle ranks run a dummy batch of one token.
    """
    largest = total = rows = prompts = 0
    sequences = 1
    for plan in plans:
        if plan is None:
            total += 1
            continue
        tokens = plan.tokens or 1
        chunks = len(plan.chunks)
        total += tokens
        if chunks:
            prompts += tokens - plan.decodes
        largest = max(largest, tokens)
        rows = max(rows, plan.rows)
        sequences = max(sequences, plan.decodes + chunks)
    key = (max(largest, 1), total, rows, sequences, prompts, len(plans))
    known = model.known_steps.get(key)
    if known is None:
        known = model.known_steps[key] = _make_step(model, *key)
    return known  # pyright: ignore[reportReturnType]


def _make_step(
    model: StepModel, largest: int, total: int, rows: int, sequences: int, prompt_tokens: int, ranks: int
) -> LinearStep:
    groups = max(1, min(model.layout.deployment.pipeline_parallel_size, sequences))
    share, rows = -(-largest // groups), -(-rows // groups)
    operators = model.operators
    size = operators.run_size(share)
    group = size * ranks if share < len(operators.padded) else -(-total // groups)
    serial, launch = model.host_s(share, sequences, prompt_tokens > 0)
    overlap = model.layout.deployment.async_scheduling
    return LinearStep(
        fixed_s=model.gpu_fixed_s(size, group, rows, -(-prompt_tokens // groups)),
        spread_s=model.routed_sd_s[group],
        floor_s=serial + launch if overlap else launch,
        serial_s=0.0 if overlap else serial,
        host_s=serial + launch,
        groups=groups,
        sizes=(size, group, rows),
    )
